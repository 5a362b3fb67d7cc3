"""The scan: five torch operations per step where nothing but the plain GRU is asked for.

Shapes: `x (T,B,I)`, or `(T,B,3U)` already projected where `w` is None; `u (U,3U)`; see `call.problem`. Inside, the
rows of all steps stand one step below the other, N of them: T*B, or fewer where rows of different length are packed.
Half precision is computed in float32, as the kernels do, and rounded where it is stored.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...call.problem import Inputs, Variant
from .layout import (
    Gates,
    Steps,
    compute_dtype,
    drop_rows,
    gate_width,
    in_place,
    product_adder,
    resize,
    split_drop,
    split_gates,
    steps_with,
    view_gates,
)
from .normalized import Normalization
from .packing import pack_inputs, plan_packing
from .short import is_short, run_short


def run_forward(
    a: Inputs, variant: Variant, save_gates: bool, may_pack: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Project the input and run the recurrence over all steps.

    Args:
        a: its `fresh` is the state after a reset, None for zeros. may_pack: whether states and gates may be those of
            packed rows, in the first N of T*B, as `run_backward` takes them.

    Returns:
        out (T,B,U) at the input's time index; last state (B,U); states leaving each step (T,B,U), empty without a mask,
        where they are `out`; packed gates (T,B,4U or 3U), see `layout`, empty unless `save_gates`.
    """
    if not save_gates and may_pack and is_short(a, variant):
        return *run_short(a, variant), a.x.new_empty(0), a.x.new_empty(0)
    T, B = a.x.shape[:2]
    U = a.u.shape[0]
    after, last = a.x.new_empty(T, B, U), a.h0.new_empty(B, U)
    gates = a.x.new_empty((T, B, gate_width(variant) * U) if save_gates else (0,))
    state_rows, gate_rows = after.flatten(0, 1), gates.flatten(0, 1) if save_gates else None
    packing = plan_packing(a, variant) if may_pack else None
    if packing is None:
        scan(a, Steps([B] * T), variant, state_rows, last, gate_rows)
        out = after if a.mask is None else read_outputs(after, a.mask, a.resets is not None, variant)
        return out, last, after if a.mask is not None else a.x.new_empty(0), gates
    steps = Steps(packing.sizes)
    for rows in (state_rows, gate_rows):
        if rows is not None:
            rows[steps.starts[-1] :] = 0  # an operator leaves nothing undefined
    scan(pack_inputs(a, packing), steps, variant, state_rows, last, gate_rows)
    out = state_rows.index_select(0, packing.shown).view(T, B, U)
    return out, torch.empty_like(last).index_copy_(0, packing.order, last), after, gates


def scan(a: Inputs, all_steps: Steps, variant: Variant, after: Tensor, last: Tensor, gates: Tensor | None) -> None:
    """Fill `after`, the states leaving each step (N,U), `last` (B,U), and `gates` (N,4U or 3U) if they are kept.

    Args:
        a: x is (N,..), or (T,B,..) where no row ends early; a mask and resets are for steps of B rows alone.
        all_steps: where the rows of each step are.
    """
    x, u, mask, fresh = a.x, a.u, a.mask, a.fresh
    T, U, width, dtype = len(all_steps.sizes), u.shape[0], gate_width(variant), compute_dtype(x.dtype)
    project, select, compute_gates = make_functions(a, variant, dtype)
    exact = x.dtype == dtype  # else the results are rounded on their way out
    some_valid, some_masked = steps_with(mask, T), steps_with(None if mask is None else ~mask, T)
    some_reset, restarts = steps_with(a.resets, T), () if a.resets is None else a.resets[..., None].unbind(0)
    scratch = None
    first = h = a.h0.to(dtype)
    for begin, end in all_steps.chunks(width * U, variant.reverse):
        rows = all_steps.rows(begin, end)
        count = all_steps.count(begin, end)
        if gates is not None and exact:
            packed = gates[rows]
        else:
            if scratch is None or scratch.shape[0] < count:
                scratch = x.new_empty(count, width * U, dtype=dtype)
            packed = scratch[:count]
        leaving = after[rows] if exact else x.new_empty(count, U, dtype=dtype)
        project(all_steps.read(x, begin, end), packed)
        steps = all_steps.split_all(select(view_gates(packed, variant)), begin, end)
        states = all_steps.split(leaving, begin, end)
        keeps = None if a.keep is None else all_steps.split(all_steps.read(a.keep, begin, end).to(dtype), begin, end)
        for k in reversed(range(end - begin)) if variant.reverse else range(end - begin):
            t, parts = begin + k, steps[k]
            if (size := all_steps.sizes[t]) != h.shape[0]:
                h = resize(h, size, first, last)
            if not size:
                continue
            if some_reset[t]:
                if fresh is None:
                    h = h.masked_fill(restarts[t], 0.0)
                else:
                    h = torch.where(restarts[t], (fresh[t] if fresh.dim() == 3 else fresh).to(dtype), h)
            if mask is not None and not some_valid[t]:
                h = states[k].copy_(h)
                continue
            compute_gates(h, *parts)
            n, z = parts[:2]
            if keeps is not None:
                z = zone_out(z, keeps[k])
            # n + z (h - n) = z h + (1 - z) n
            new = torch.lerp(n, h, z, out=states[k])
            h = torch.where(mask[t, :, None], new, h, out=new) if mask is not None and some_masked[t] else new
        if not exact:
            after[rows] = leaving
            if gates is not None:
                gates[rows] = packed
    last[: h.shape[0]] = h


def zone_out(z: Tensor, keep: Tensor) -> Tensor:
    """Return how much of the old state stays: 1 - keep (1 - z)."""
    return (z - 1).mul_(keep).add_(1)


def make_functions(a: Inputs, variant: Variant, dtype: torch.dtype) -> tuple[Callable, Callable, Callable]:
    """Return `make_projection` and both of `make_gates`, for layer normalisation too."""
    if variant.layer_norm is None:
        return make_projection(a.w, a.bias_x, a.bias_h, variant, dtype), *make_gates(a.u, a.drop, variant, dtype)
    assert a.scale is not None
    norm = Normalization(a.u, a.drop, a.scale, variant, dtype)
    # A joint norm takes the sums without their biases, which are added after it.
    early, late = ((None, None), (a.bias_x, a.bias_h)) if norm.joint else ((a.bias_x, a.bias_h), (None, None))
    return make_projection(a.w, *early, variant, dtype), *norm.make_gates(*split_bias(*late, variant, dtype))


def make_projection(w, bias_x, bias_h, variant: Variant, dtype: torch.dtype) -> Callable[[Tensor, Tensor], None]:
    """Return the function that fills the packed gates (N,..) of some rows (N,I) with x W + b and c_h."""
    w = None if w is None else w.to(dtype)
    bias, bias_n = split_bias(bias_x, bias_h, variant, dtype)

    def project(x: Tensor, packed: Tensor) -> None:
        gates = view_gates(packed, variant)
        if w is None:
            gates.projected.copy_(x)
            if bias is not None:
                gates.projected.add_(bias)
        elif bias is None:
            torch.mm(x.to(dtype), w, out=gates.projected)
        else:
            torch.addmm(bias, x.to(dtype), w, out=gates.projected)
        if gates.gh_n is not None:
            gates.gh_n.copy_(bias_n) if bias_n is not None else gates.gh_n.zero_()

    return project


def split_bias(bias_x, bias_h, variant: Variant, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """Return every bias that can be added before the scan (3U,), and the candidate's recurrent one (U,) or None."""
    bias, bias_n = None if bias_x is None else bias_x.to(dtype), None
    if bias_h is not None:
        early = bias_h.to(dtype)
        if variant.reset_after:
            U = bias_h.shape[0] // 3
            bias_n = early[2 * U :]
            early = torch.cat((early[: 2 * U], torch.zeros_like(bias_n)))
        bias = early if bias is None else bias + early
    return bias, bias_n


def make_gates(
    u: Tensor, drop: Tensor | None, variant: Variant, dtype: torch.dtype
) -> tuple[Callable[[Gates], tuple[Tensor, ...]], Callable[..., None]]:
    """Return how to turn the projections of some rows into their gates, in place, given their states.

    Rows are those of one step, or of many steps at once where the states are known. With weights of members (M,U,3U),
    masks (1 or 3,M,B,U) and states (M,B,U) it is a step of all of them.

    Returns:
        `select`, which takes from `Gates` the parts that are needed, n and z first; `compute`, which takes the states
        entering and those parts.
    """
    f, g = in_place(variant.activation), in_place(variant.recurrent_activation)
    u_z, u_r, u_n = split_gates(u.to(dtype), variant)
    d_z, d_r, d_n = (m if m is None else m.to(dtype) for m in split_drop(drop, variant))
    one_mask = drop is None or drop.shape[0] == 1
    # Row-major weights: products with few rows run up to twice as fast as with torch's transposed ones.
    u_packed = torch.cat((u_n, *((u_r, u_z) if variant.reset_gate_first else (u_z, u_r))), dim=-1)
    U, add = u.shape[-2], product_adder(u)
    u_n, u_zr = u_packed[..., :U], u_packed[..., U:]

    def after(h: Tensor, n: Tensor, z: Tensor, r: Tensor, zr: Tensor, gh_n: Tensor, recurrent: Tensor) -> None:
        add(recurrent, h, u_packed)
        g(zr)
        f(n.addcmul_(r, gh_n))

    def after_dropped(h: Tensor, n: Tensor, z: Tensor, r: Tensor, zr: Tensor, gh_n: Tensor, recurrent: Tensor) -> None:
        if one_mask:
            add(recurrent, drop_rows(h, d_z), u_packed)
        else:
            add(z, drop_rows(h, d_z), u_z)
            add(r, drop_rows(h, d_r), u_r)
            add(gh_n, drop_rows(h, d_n), u_n)
        g(zr)
        f(n.addcmul_(r, gh_n))

    def before(h: Tensor, n: Tensor, z: Tensor, r: Tensor, zr: Tensor) -> None:
        h_n = drop_rows(h, d_n)
        if one_mask:
            add(zr, h_n, u_zr)
        else:
            add(z, drop_rows(h, d_z), u_z)
            add(r, drop_rows(h, d_r), u_r)
        g(zr)
        f(add(n, r * h_n, u_n))

    if not variant.reset_after:
        return lambda gates: (gates.n, gates.z, gates.r, gates.zr), before
    compute = after if drop is None else after_dropped
    return lambda gates: (gates.n, gates.z, gates.r, gates.zr, gates.gh_n, gates.recurrent), compute  # type: ignore[return-value]


def rebuild(a: Inputs, x: Tensor, entering: Tensor, variant: Variant) -> Tensor:
    """Return the packed gates (N,4U or 3U) of rows x (N,I) with known entering states (N,U), in the dtype of sums."""
    dtype = compute_dtype(x.dtype)
    packed = x.new_empty(x.shape[0], gate_width(variant) * a.u.shape[0], dtype=dtype)
    project, select, compute_gates = make_functions(a, variant, dtype)
    project(x, packed)
    compute_gates(entering.to(dtype), *select(view_gates(packed, variant)))
    return packed


def last_valid(mask: Tensor, variant: Variant) -> Tensor:
    """Return (T,B), the last valid step up to each step in the order of processing; -1 where there is none."""
    T = mask.shape[0]
    steps = torch.arange(T, device=mask.device)[:, None].expand_as(mask)
    if not variant.reverse:
        return steps.masked_fill(~mask, -1).cummax(0).values
    found = steps.masked_fill(~mask, T).flip(0).cummin(0).values.flip(0)
    return found.masked_fill(found == T, -1)


def read_outputs(after: Tensor, mask: Tensor, has_resets: bool, variant: Variant) -> Tensor:
    """Return the outputs (T,B,U): the state at valid steps; elsewhere the last valid output, or zero if none."""
    if variant.zero_output_for_mask:
        return after.masked_fill(~mask[..., None], 0.0)
    source = last_valid(mask, variant)[..., None]
    if not has_resets:  # the state then stays what the last valid output was
        return after.masked_fill(source < 0, 0.0)
    repeated = after.gather(0, source.clamp(min=0).expand_as(after))
    return repeated.masked_fill_(source < 0, 0.0)
