"""The scan and the reverse scan in torch operations, with hand-derived gradients.

The same two functions as `launch.py` offers, for any device and dtype: one matrix product per step, pointwise work in
place, and no autograd graph. Derivation: docs/math.md.

Shapes: `gx (T,B,3U)` input side with its bias; `u (U,3U)`; gates in the weights' order (`variant.reset_gate_first`).
Half precision is computed in float32, as the kernels do, and rounded where it is stored.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .activations import TABLE
from .spec import Variant


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype states and sums are kept in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def order(variant: Variant, T: int) -> range:
    """Return the steps in the order of processing."""
    return range(T - 1, -1, -1) if variant.reverse else range(T)


def split_gates(packed: Tensor, variant: Variant) -> tuple[Tensor, Tensor, Tensor]:
    """Return the z, r and h parts of the last axis (.., 3U), as views."""
    first, second, n = packed.chunk(3, dim=-1)
    return (second, first, n) if variant.reset_gate_first else (first, second, n)


def split_drop(drop: Tensor | None, variant: Variant) -> tuple:
    """Return the masks (B,U) of gates z, r, h; None where there is no dropout."""
    if drop is None:
        return None, None, None
    if drop.shape[0] == 1:
        return drop[0], drop[0], drop[0]
    return (drop[1], drop[0], drop[2]) if variant.reset_gate_first else (drop[0], drop[1], drop[2])


def scan_forward(
    gx: Tensor,
    u: Tensor,
    bias_n: Tensor | None,
    h0: Tensor,
    mask: Tensor | None,
    resets: Tensor | None,
    fresh: Tensor | None,
    drop: Tensor | None,
    variant: Variant,
    save_gates: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the recurrence over all steps.

    Args:
        gx: (T,B,3U) input projections with every bias except `bias_n`.
        bias_n: (U,) recurrent bias of the candidate, inside the reset product; None without.
        fresh: (B,U) or (T,B,U), the state after a reset; None for zeros.

    Returns:
        out (T,B,U) at the input's time index; last state (B,U); states (T,B,U) entering each step, empty where they
        follow from `out` (no mask, no reset); gates (4,T,B,U) z, r, n, h R_h + c_h, three without reset_after, empty
        unless `save_gates`.
    """
    T, B, _ = gx.shape
    U = u.shape[0]
    f, g = TABLE[variant.activation].function, TABLE[variant.recurrent_activation].function
    dtype = compute_dtype(gx.dtype)
    separate = mask is not None or resets is not None
    out = gx.new_empty(T, B, U)
    states = gx.new_empty((T, B, U) if separate else (0,))
    gates = gx.new_empty((4 if variant.reset_after else 3, T, B, U) if save_gates else (0,))
    u = u.to(dtype)
    u_z, u_r, u_n = split_gates(u, variant)
    d_z, d_r, d_n = split_drop(drop, variant)
    h = h0.to(dtype)
    y = torch.zeros_like(h)
    for t in order(variant, T):
        if resets is not None:
            new_start = torch.zeros_like(h) if fresh is None else (fresh[t] if fresh.dim() == 3 else fresh).to(dtype)
            h = torch.where(resets[t, :, None], new_start, h)
        if separate:
            states[t] = h
        gx_z, gx_r, gx_n = split_gates(gx[t].to(dtype), variant)
        if variant.reset_after:
            if drop is None:
                gh_z, gh_r, gh_n = split_gates(h @ u, variant)
            else:
                gh_z, gh_r, gh_n = (h * d_z) @ u_z, (h * d_r) @ u_r, (h * d_n) @ u_n
            if bias_n is not None:
                gh_n = gh_n + bias_n
            z, r = g(gx_z + gh_z), g(gx_r + gh_r)
            n = f(torch.addcmul(gx_n, r, gh_n))
        else:
            h_z, h_r, h_n = (h if d is None else h * d for d in (d_z, d_r, d_n))
            z, r = g(gx_z + h_z @ u_z), g(gx_r + h_r @ u_r)
            gh_n = None
            n = f(gx_n + (r * h_n) @ u_n)
        new = torch.addcmul(z * h, 1 - z, n)
        if save_gates:
            for slot, value in enumerate((z, r, n, gh_n) if variant.reset_after else (z, r, n)):
                gates[slot, t] = value
        if mask is None:
            h = y = new
        else:
            keep = mask[t, :, None]
            h = torch.where(keep, new, h)
            y = torch.where(keep, new, torch.zeros_like(y) if variant.zero_output_for_mask else y)
        out[t] = y
    return out, h.to(h0.dtype, copy=True), states, gates


def scan_backward(
    d_out: Tensor | None,
    d_last: Tensor | None,
    gates: Tensor,
    entering: Tensor,
    u: Tensor,
    mask: Tensor | None,
    resets: Tensor | None,
    drop: Tensor | None,
    variant: Variant,
    fresh_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the reverse scan: from gradients of outputs to gradients of pre-activations.

    Args:
        d_out: (T,B,U) or None; d_last: (B,U) or None.
        gates: as saved by `scan_forward`; entering: (T,B,U) the state entering each step.
        fresh_gradient: whether the gradient of the state after a reset is wanted.

    Returns:
        d_gx (T,B,3U); d_gh_n (T,B,U), the gradient of h R_h + c_h, empty without reset_after; d_h0 (B,U);
        d_fresh (T,B,U), zero where no reset happened, empty unless `fresh_gradient`.
    """
    T, B, U = entering.shape
    df, dg = TABLE[variant.activation].derivative, TABLE[variant.recurrent_activation].derivative
    assert df is not None and dg is not None
    dtype = compute_dtype(entering.dtype)
    d_gx = entering.new_empty(T, B, 3 * U)
    d_gh_n = entering.new_empty((T, B, U) if variant.reset_after else (0,))
    d_fresh = entering.new_zeros((T, B, U) if fresh_gradient else (0,))
    ut_z, ut_r, ut_n = (part.t() for part in split_gates(u.to(dtype), variant))
    d_z, d_r, d_n = split_drop(drop, variant)
    dh = torch.zeros(B, U, dtype=dtype, device=u.device) if d_last is None else d_last.to(dtype)
    dy = torch.zeros_like(dh)

    def product(gradient: Tensor, ut: Tensor, m: Tensor | None) -> Tensor:
        return gradient @ ut if m is None else (gradient @ ut) * m

    for t in reversed(order(variant, T)):
        keep = None if mask is None else mask[t, :, None]
        if d_out is not None:
            if keep is None:
                dh = dh + d_out[t]
            else:
                dy = d_out[t].to(dtype) if variant.zero_output_for_mask else dy + d_out[t]
                dh = torch.where(keep, dh + dy, dh)
                dy = torch.where(keep, 0.0, dy)
        h = entering[t].to(dtype)
        z, r, n = (gates[slot, t].to(dtype) for slot in range(3))
        da_n = dh * (1 - z) * df(n)
        da_z = dh * (h - n) * dg(z)
        dh_in = dh * z
        if variant.reset_after:
            dgh_n = da_n * r
            da_r = da_n * gates[3, t].to(dtype) * dg(r)
            through = product(da_z, ut_z, d_z) + product(da_r, ut_r, d_r) + product(dgh_n, ut_n, d_n)
        else:
            dgh_n = None
            h_n = h if d_n is None else h * d_n
            ds = da_n @ ut_n
            da_r = ds * h_n * dg(r)
            through = product(da_z, ut_z, d_z) + product(da_r, ut_r, d_r) + (ds * r if d_n is None else ds * r * d_n)
        slots = split_gates(d_gx[t], variant)
        for slot, value in zip(slots, (da_z, da_r, da_n), strict=True):
            slot.copy_(value if keep is None else torch.where(keep, value, 0.0))
        if dgh_n is not None:
            d_gh_n[t] = dgh_n if keep is None else torch.where(keep, dgh_n, 0.0)
        dh = dh_in + through if keep is None else torch.where(keep, dh_in + through, dh)
        if resets is not None:
            restart = resets[t, :, None]
            if fresh_gradient:
                d_fresh[t] = torch.where(restart, dh, 0.0)
            dh = torch.where(restart, 0.0, dh)
    return d_gx, d_gh_n, dh.to(entering.dtype, copy=True), d_fresh
