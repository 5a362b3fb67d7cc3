"""The reverse scan and every gradient, derived by hand (docs/math.md).

Each gradient of a pre-activation is `dh` times a factor that does not depend on it, so the factors of a whole chunk are
computed at once. What remains of a step is to multiply them by `dh` and to take one product to the step before. The
gradients of the weights then grow by one product per chunk, and no array of gate gradients outlives its chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...call.problem import Inputs, Variant
from ..gradients import Saved, Setting
from .forward import last_valid, rebuild, zone_out
from .layout import (
    Gates,
    Steps,
    compute_dtype,
    drop_rows,
    entering_rows,
    entering_states,
    gate_width,
    product_adder,
    pull_back,
    resize,
    split_drop,
    split_gates,
    steps_with,
    view_gates,
)
from .normalized import Normalization, Norms
from .packing import pack_inputs, pack_output_gradients, plan_packing
from .sums import Sums


class Chunk(NamedTuple):
    """A chunk of steps on its way back.

    Attributes:
        d: packed gate gradients (N,4U or 3U); first the factors of dh, then, step by step, the gradients.
        z: how much of dh goes through the mixture, (N,U). r: how much of ds goes to the state, without reset_after.
        norms: of the rows' sums, with layer normalisation.
    """

    d: Tensor
    z: Tensor
    r: Tensor | None
    norms: Norms | None = None


def run_backward(
    a: Inputs,
    variant: Variant,
    setting: Setting,
    saved: Saved,
    d_out: Tensor | None,
    d_last: Tensor | None,
    wanted: Inputs,
) -> Inputs:
    """Return the gradients of `forward.run_forward`'s tensor inputs, each laid out as its input; None if not wanted.

    Args:
        saved: as `run_forward` returned it, that of packed rows too; its gates may be empty: they are then rebuilt
            chunk by chunk.
        d_out: (T,B,U) or None; d_last: (B,U) or None. wanted: which gradients to compute, bools.
    """
    after, gates = saved.out if a.mask is None else saved.states, saved.gates
    T, B, U = after.shape
    dtype = compute_dtype(a.x.dtype)
    d_out = None if d_out is None else d_out.to(dtype)
    d_last = a.u.new_zeros(B, U, dtype=dtype) if d_last is None else d_last.to(dtype)
    gates = gates.flatten(0, 1) if gates.dim() == 3 else gates
    packing = plan_packing(a, variant)
    if packing is None:
        d_out = None if d_out is None else fold_outputs(d_out, a.mask, variant).flatten(0, 1)

        def entering(begin: int, end: int) -> Tensor:
            return entering_states(after, begin, end, a.h0, a.resets, a.fresh, variant).flatten(0, 1)

        return scan_back(a, Steps([B] * T), entering, gates, d_out, d_last, variant, wanted)

    if d_out is not None:
        d_out, d_repeated = pack_output_gradients(d_out, packing)
        d_last = d_last if d_repeated is None else d_last + d_repeated
    steps, rows, after_rows = Steps(packing.sizes), pack_inputs(a, packing), after.flatten(0, 1)

    def entering_packed(begin: int, end: int) -> Tensor:
        return entering_rows(after_rows, steps, begin, end, rows.h0, variant)

    d = scan_back(rows, steps, entering_packed, gates, d_out, d_last[packing.order], variant, wanted)
    return d._replace(
        x=torch.zeros_like(a.x).index_put_(packing.places, d.x) if wanted.x else None,
        keep=a.keep.new_zeros(a.keep.shape).index_put_(packing.places, d.keep) if wanted.keep else None,
        h0=torch.empty_like(d.h0).index_copy_(0, packing.order, d.h0) if wanted.h0 else None,
    )


def scan_back(
    a: Inputs,
    all_steps: Steps,
    entering: Callable[[int, int], Tensor],
    gates: Tensor,
    d_out: Tensor | None,
    d_last: Tensor,
    variant: Variant,
    wanted: Inputs,
) -> Inputs:
    """Return the gradients of the inputs of `forward.scan`, as `run_backward` does.

    Args:
        entering: gives the states entering the steps begin..end. gates: (N,4U or 3U) or empty. d_out: (N,U) or None.
    """
    x, dtype, width = a.x, compute_dtype(a.x.dtype), gate_width(variant) * a.u.shape[0]
    sums = Sums(a, variant, wanted, all_steps)
    norm = None if a.scale is None else Normalization(a.u, a.drop, a.scale, variant, dtype)
    w = a.w.to(dtype) if norm is not None and norm.joint and a.w is not None else None
    reverse = Reverse(a.u, a.mask, a.resets, a.drop, variant, d_out, d_last, all_steps, a.keep, wanted.keep, norm)
    d_fresh = torch.zeros_like(a.fresh, dtype=dtype) if wanted.fresh else None
    bounds = list(all_steps.chunks(width, variant.reverse))
    most = max((all_steps.count(begin, end) for begin, end in bounds), default=0)
    buffer = x.new_empty(most, width, dtype=dtype)
    for begin, end in reversed(bounds):
        h = entering(begin, end)
        if gates.dim() == 2:
            packed = gates[all_steps.rows(begin, end)].to(dtype)
        else:
            packed = rebuild(a, all_steps.read(x, begin, end), h, variant)
        h, g = h.to(dtype), view_gates(packed, variant)
        chunk = reverse.fill_factors(buffer[: all_steps.count(begin, end)], g, h, begin, end)
        if norm is not None:
            gx = all_steps.read(x, begin, end).to(dtype) if norm.joint else None
            chunk = chunk._replace(norms=norm.prepare(h, gx if w is None or gx is None else gx @ w))
        reverse.walk(chunk, begin, end, d_fresh)
        sums.add(chunk.d, h, g.r, begin, end, chunk.norms)
    return sums.finish()._replace(
        h0=reverse.finish().to(a.h0.dtype, copy=True) if wanted.h0 else None,
        fresh=None if d_fresh is None else d_fresh.to(x.dtype),
        keep=None if reverse.d_keep is None else reverse.d_keep.view(a.keep.shape).to(x.dtype),
    )


class Reverse:
    """The state of the walk back over all steps.

    Attributes:
        dh: the gradient of the state that leaves the next step, its rows those of that step.
        d_keep: (N,U), the gradient of the zoneout mask, if it is wanted.
    """

    def __init__(
        self, u, mask, resets, drop, variant: Variant, d_out, d_last: Tensor, all_steps: Steps, keep=None,
        wants_keep: bool = False, norm: Normalization | None = None,
    ):  # fmt: skip
        """Begin after the last step: d_out (N,U) or None, d_last (B,U), both in the dtype of sums."""
        T = len(all_steps.sizes)
        self.variant, self.steps = variant, all_steps
        self.mask, self.keep = mask, keep
        self.d_keep = d_last.new_empty(all_steps.starts[-1], u.shape[0]) if wants_keep else None
        self.d_keeps = None if self.d_keep is None else all_steps.split(self.d_keep, 0, T)
        self.drop_n = None if drop is None else split_drop(drop.to(d_last.dtype), variant)[2]
        self.f_back, self.g_back = pull_back(variant.activation), pull_back(variant.recurrent_activation)
        self.some_valid = steps_with(mask, T) if mask is not None else [True] * T
        self.some_reset = steps_with(resets, T)
        self.restarts = () if resets is None else resets[..., None].unbind(0)
        self.select, self.step = make_step(u, drop, variant, d_last.dtype) if norm is None else norm.make_step()
        self.d_after: Sequence[Tensor | None] = [None] * T if d_out is None else all_steps.split(d_out, 0, T)
        self.dh = self.d_last = d_last
        self.d_h0 = torch.empty_like(d_last)
        self.pass_to(0 if variant.reverse else T - 1)

    def pass_to(self, t: int) -> None:
        """Give dh the rows of step t, and add the gradient of its output."""
        if not 0 <= t < len(self.steps.sizes):
            return
        if (size := self.steps.sizes[t]) != self.dh.shape[0]:
            self.dh = resize(self.dh, size, self.d_last, self.d_h0)
        d_after = self.d_after[t]
        self.dh = self.dh if d_after is None else self.dh + d_after

    def finish(self) -> Tensor:
        """Return the gradient of the initial state, (B,U)."""
        self.d_h0[: self.dh.shape[0]] = self.dh
        return self.d_h0

    def fill_factors(self, d_packed: Tensor, g: Gates, h: Tensor, begin: int, end: int) -> Chunk:
        """Fill `d_packed` (N,..) with what dh is multiplied by in each gate's gradient."""
        d = view_gates(d_packed, self.variant)
        self.f_back(torch.sub(1, g.z, out=d.n), g.n)
        self.g_back(torch.sub(h, g.n, out=d.z), g.z)
        z, r, rows = g.z, None, self.steps.rows(begin, end)
        if self.d_keep is not None:
            torch.mul(1 - g.z, g.n - h, out=self.d_keep[rows])
        if self.keep is not None:
            keep = self.steps.read(self.keep, begin, end).to(d_packed.dtype)
            d.n.mul_(keep)
            d.z.mul_(keep)
            z = zone_out(z, keep)
        if d.gh_n is not None:
            torch.mul(d.n, g.r, out=d.gh_n)
            self.g_back(torch.mul(d.n, g.gh_n, out=d.r), g.r)  # type: ignore[arg-type]
        else:
            # The factor of ds = da_n R_h', which is known only in the walk.
            h_n, r = drop_rows(h, self.drop_n), drop_rows(g.r, self.drop_n)
            self.g_back(d.r.copy_(h_n), g.r)
        if self.mask is not None:
            # A masked step is the identity: all of dh goes on, nothing to the gates, whatever the padding holds.
            masked = ~self.mask[begin:end].flatten()[:, None]
            d_packed.masked_fill_(masked, 0.0)
            if self.d_keep is not None:
                self.d_keep[rows].masked_fill_(masked, 0.0)
            z, r = z.masked_fill(masked, 1.0), None if r is None else r.masked_fill(masked, 0.0)
        return Chunk(d_packed, z, r)

    def walk(self, chunk: Chunk, begin: int, end: int, d_fresh: Tensor | None) -> None:
        """Turn the factors of steps begin..end into gradients, from the last processed step to the first."""
        parts, step = self.steps.split_all(self.select(chunk), begin, end), self.step
        sizes, T, clip = self.steps.sizes, len(self.steps.sizes), self.variant.gradient_clip
        for k in range(end - begin) if self.variant.reverse else reversed(range(end - begin)):
            t = begin + k
            before = t + (1 if self.variant.reverse else -1)
            restarts = self.some_reset[t]
            # The output's gradient of the step before is added on the way where its rows are the same.
            together = 0 <= before < T and not restarts and sizes[before] == sizes[t] and clip is None
            d_before = self.d_after[before] if together else None
            if self.some_valid[t] and sizes[t]:
                if self.d_keeps is not None:
                    self.d_keeps[t].mul_(self.dh)
                self.dh = step(self.dh, d_before, *parts[k])
            elif d_before is not None:
                self.dh = self.dh + d_before
            if clip is not None:
                clipped = self.dh.clamp(-clip, clip)
                self.dh = clipped if self.mask is None else torch.where(self.mask[t, :, None], clipped, self.dh)
            if restarts:
                restart = self.restarts[t]
                if d_fresh is not None:
                    (d_fresh[t] if d_fresh.dim() == 3 else d_fresh).add_(self.dh.masked_fill(~restart, 0.0))
                self.dh = self.dh.masked_fill(restart, 0.0)
            if not together:
                self.pass_to(before)


def make_step(
    u: Tensor, drop: Tensor | None, variant: Variant, dtype: torch.dtype
) -> tuple[Callable[[Chunk], tuple[Tensor, ...]], Callable[..., Tensor]]:
    """Return how to take one step back.

    Returns:
        `select`, which takes from a `Chunk` the parts that are needed; `step`, which takes dh, the gradient of the
        previous step's output or None, and those parts. It multiplies the factors by dh, in place, and returns the
        gradient of the state that leaves the previous step. Of members as `forward.make_gates`.
    """
    ut_z, ut_r, ut_n = (part.mT for part in split_gates(u.to(dtype), variant))
    d_z, d_r, d_n = (m if m is None else m.to(dtype) for m in split_drop(drop, variant))
    ut_packed = torch.cat((ut_n, *((ut_r, ut_z) if variant.reset_gate_first else (ut_z, ut_r))), dim=-2)
    U, add = u.shape[-2], product_adder(u)
    ut_n, ut_zr = ut_packed[..., :U, :], ut_packed[..., U:, :]
    one_mask = drop is None or drop.shape[0] == 1

    def through_mixture(dh: Tensor, d_before: Tensor | None, z: Tensor) -> Tensor:
        return dh * z if d_before is None else torch.addcmul(d_before, dh, z)

    def after(dh: Tensor, d_before: Tensor | None, z: Tensor, blocks: Tensor, d_recurrent: Tensor) -> Tensor:
        blocks.mul_(dh.unsqueeze(-2))
        return add(through_mixture(dh, d_before, z), d_recurrent, ut_packed)

    def after_dropped(
        dh: Tensor, d_before: Tensor | None, z: Tensor, blocks: Tensor, d_recurrent: Tensor, da_z, da_r, dgh_n
    ) -> Tensor:
        blocks.mul_(dh.unsqueeze(-2))
        total = through_mixture(dh, d_before, z)
        if one_mask:
            return total.addcmul_(d_recurrent @ ut_packed, d_z)
        return total.addcmul_(da_z @ ut_z, d_z).addcmul_(da_r @ ut_r, d_r).addcmul_(dgh_n @ ut_n, d_n)

    def before(dh: Tensor, d_before: Tensor | None, z: Tensor, r: Tensor, da_n, da_z, da_r, da_zr) -> Tensor:
        da_n.mul_(dh)
        da_z.mul_(dh)
        ds = da_n @ ut_n
        da_r.mul_(ds)
        total = through_mixture(dh, d_before, z).addcmul_(ds, r)
        if drop is None:
            return add(total, da_zr, ut_zr)
        if one_mask:
            return total.addcmul_(da_zr @ ut_zr, d_z)
        return total.addcmul_(da_z @ ut_z, d_z).addcmul_(da_r @ ut_r, d_r)

    def select(chunk: Chunk) -> tuple[Tensor, ...]:
        d = view_gates(chunk.d, variant)
        if chunk.r is not None:
            return chunk.z, chunk.r, d.n, d.z, d.r, d.zr
        parts = chunk.z, chunk.d.unflatten(-1, (gate_width(variant), -1)), d.recurrent
        return parts if drop is None else (*parts, d.z, d.r, d.gh_n)  # type: ignore[return-value]

    return select, before if not variant.reset_after else after if drop is None else after_dropped


def fold_outputs(d_out: Tensor, mask: Tensor | None, variant: Variant) -> Tensor:
    """Return the gradient of the states leaving each step, (T,B,U): that of an output goes to the step it repeats."""
    if mask is None:
        return d_out
    if variant.zero_output_for_mask:
        return d_out.masked_fill(~mask[..., None], 0.0)
    source = last_valid(mask, variant)[..., None]
    given = d_out.masked_fill(source < 0, 0.0)
    return torch.zeros_like(given).scatter_add_(0, source.clamp(min=0).expand_as(given), given)
