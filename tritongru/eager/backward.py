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

from ..spec import Variant
from .forward import last_valid, rebuild
from .layout import (
    Gates,
    chunks,
    compute_dtype,
    each_step,
    entering_states,
    gate_width,
    pull_back,
    split_drop,
    split_gates,
    steps_with,
    view_gates,
)
from .sums import Sums, Wanted


class Chunk(NamedTuple):
    """A chunk of steps on its way back.

    Attributes:
        d: packed gate gradients (K,B,4U or 3U); first the factors of dh, then, step by step, the gradients.
        z: how much of dh goes through the mixture, (K,B,U). r: how much of ds goes to the state, without reset_after.
    """

    d: Tensor
    z: Tensor
    r: Tensor | None


def run_backward(
    x: Tensor,
    w: Tensor | None,
    bias_x: Tensor | None,
    u: Tensor,
    bias_h: Tensor | None,
    h0: Tensor,
    mask: Tensor | None,
    resets: Tensor | None,
    fresh: Tensor | None,
    drop: Tensor | None,
    after: Tensor,
    gates: Tensor,
    d_out: Tensor | None,
    d_last: Tensor | None,
    variant: Variant,
    wanted: Wanted,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of `forward.run_forward`'s tensor inputs.

    Args:
        after: (T,B,U) states leaving each step. gates: as saved, or empty: they are then rebuilt chunk by chunk.
        d_out: (T,B,U) or None; d_last: (B,U) or None. wanted: which gradients to compute.

    Returns:
        d_x, d_w, d_bias_x, d_u, d_bias_h, d_h0, d_fresh, d_drop, each laid out as its input; empty where not wanted.
    """
    T, B, U = after.shape
    dtype, width = compute_dtype(x.dtype), gate_width(variant)
    sums = Sums(x, w, bias_x, u, bias_h, drop, variant, wanted)
    reverse = Reverse(u, mask, resets, drop, variant, d_out, d_last, T, B, dtype)
    d_fresh = torch.zeros_like(fresh, dtype=dtype) if wanted.fresh and fresh is not None else None
    bounds = list(chunks(T, B, width * U, variant.reverse))
    buffer = x.new_empty(max((end - begin for begin, end in bounds), default=0), B, width * U, dtype=dtype)
    for begin, end in reversed(bounds):
        h = entering_states(after, begin, end, h0, resets, fresh, variant)
        if gates.dim() == 3:
            packed = gates[begin:end].to(dtype)
        else:
            packed = rebuild(x[begin:end], w, bias_x, u, bias_h, h, drop, variant)
        h, g = h.to(dtype), view_gates(packed, variant)
        chunk = reverse.fill_factors(buffer[: end - begin], g, h, begin, end)
        reverse.walk(chunk, begin, end, d_fresh)
        sums.add(chunk.d, h, g.r, begin, end)
    d_h0 = reverse.dh.to(h0.dtype, copy=True) if wanted.h0 else x.new_empty(0)
    d_fresh = x.new_empty(0) if d_fresh is None else d_fresh.to(x.dtype)
    d_x, d_w, d_bias_x, d_u, d_bias_h, d_drop = sums.finish()
    return d_x, d_w, d_bias_x, d_u, d_bias_h, d_h0, d_fresh, d_drop


class Reverse:
    """The state of the walk back over all steps: `dh`, the gradient of the state that leaves the next step."""

    def __init__(self, u, mask, resets, drop, variant: Variant, d_out, d_last, T: int, B: int, dtype: torch.dtype):
        self.variant, self.dtype, self.T = variant, dtype, T
        self.mask, self.resets = mask, resets
        self.drop_n = None if drop is None else split_drop(drop.to(dtype), variant)[2]
        self.f_back, self.g_back = pull_back(variant.activation), pull_back(variant.recurrent_activation)
        self.some_valid = steps_with(mask, T) if mask is not None else [True] * T
        self.some_reset = steps_with(resets, T)
        self.select, self.step = make_step(u, drop, variant, dtype)
        d_out = None if d_out is None else fold_outputs(d_out.to(dtype), mask, variant)
        self.d_after: Sequence[Tensor | None] = [None] * T if d_out is None else d_out.unbind(0)
        self.dh = u.new_zeros(B, u.shape[0], dtype=dtype) if d_last is None else d_last.to(dtype)
        if d_out is not None and T:
            self.dh = self.dh + self.d_after[0 if variant.reverse else T - 1]

    def fill_factors(self, d_packed: Tensor, g: Gates, h: Tensor, begin: int, end: int) -> Chunk:
        """Fill `d_packed` (K,B,..) with what dh is multiplied by in each gate's gradient."""
        d = view_gates(d_packed, self.variant)
        self.f_back(torch.sub(1, g.z, out=d.n), g.n)
        self.g_back(torch.sub(h, g.n, out=d.z), g.z)
        z, r = g.z, None
        if d.gh_n is not None:
            torch.mul(d.n, g.r, out=d.gh_n)
            self.g_back(torch.mul(d.n, g.gh_n, out=d.r), g.r)  # type: ignore[arg-type]
        else:
            # The factor of ds = da_n R_h', which is known only in the walk.
            h_n, r = (h, g.r) if self.drop_n is None else (h * self.drop_n, g.r * self.drop_n)
            self.g_back(d.r.copy_(h_n), g.r)
        if self.mask is not None:
            # A masked step is the identity: all of dh goes on, nothing to the gates, whatever the padding holds.
            masked = ~self.mask[begin:end, :, None]
            d_packed.masked_fill_(masked, 0.0)
            z, r = z.masked_fill(masked, 1.0), None if r is None else r.masked_fill(masked, 0.0)
        return Chunk(d_packed, z, r)

    def walk(self, chunk: Chunk, begin: int, end: int, d_fresh: Tensor | None) -> None:
        """Turn the factors of steps begin..end into gradients, from the last processed step to the first."""
        steps, step = each_step(self.select(chunk)), self.step
        before = 1 if self.variant.reverse else -1
        for k in range(end - begin) if self.variant.reverse else reversed(range(end - begin)):
            t = begin + k
            d_before = self.d_after[t + before] if 0 <= t + before < self.T else None
            restarts = self.some_reset[t]
            if self.some_valid[t]:
                self.dh = step(self.dh, None if restarts else d_before, *steps[k])
            elif d_before is not None and not restarts:
                self.dh = self.dh + d_before
            if restarts:
                restart = self.resets[t, :, None]
                if d_fresh is not None:
                    (d_fresh[t] if d_fresh.dim() == 3 else d_fresh).add_(self.dh.masked_fill(~restart, 0.0))
                self.dh = self.dh.masked_fill(restart, 0.0)
                self.dh = self.dh if d_before is None else self.dh + d_before


def make_step(
    u: Tensor, drop: Tensor | None, variant: Variant, dtype: torch.dtype
) -> tuple[Callable[[Chunk], tuple[Tensor, ...]], Callable[..., Tensor]]:
    """Return how to take one step back.

    Returns:
        `select`, which takes from a `Chunk` the parts that are needed; `step`, which takes dh, the gradient of the
        previous step's output or None, and those parts. It multiplies the factors by dh, in place, and returns the
        gradient of the state that leaves the previous step.
    """
    ut_z, ut_r, ut_n = (part.t() for part in split_gates(u.to(dtype), variant))
    d_z, d_r, d_n = (m if m is None else m.to(dtype) for m in split_drop(drop, variant))
    ut_packed = torch.cat((ut_n, *((ut_r, ut_z) if variant.reset_gate_first else (ut_z, ut_r))))
    U = u.shape[0]
    ut_n, ut_zr = ut_packed[:U], ut_packed[U:]
    one_mask = drop is None or drop.shape[0] == 1

    def through_mixture(dh: Tensor, d_before: Tensor | None, z: Tensor) -> Tensor:
        return dh * z if d_before is None else torch.addcmul(d_before, dh, z)

    def after(dh: Tensor, d_before: Tensor | None, z: Tensor, blocks: Tensor, d_recurrent: Tensor) -> Tensor:
        blocks.mul_(dh.unsqueeze(1))
        return through_mixture(dh, d_before, z).addmm_(d_recurrent, ut_packed)

    def after_dropped(
        dh: Tensor, d_before: Tensor | None, z: Tensor, blocks: Tensor, d_recurrent: Tensor, da_z, da_r, dgh_n
    ) -> Tensor:
        blocks.mul_(dh.unsqueeze(1))
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
            return total.addmm_(da_zr, ut_zr)
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
