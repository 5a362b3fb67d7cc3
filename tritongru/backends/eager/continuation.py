"""The scan and the reverse scan with the arguments and results of the kernels: the two meet where a kernel fails.

Shapes: `gx (T,B,3U)` input side with its bias; `u (U,3U)`; gates in the weights' order (`variant.reset_gate_first`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...call.problem import Inputs, Variant
from .backward import Reverse, fold_outputs
from .forward import run_forward
from .layout import Steps, compute_dtype, entering_states, gate_width, view_gates


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
    keep: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the recurrence over all steps.

    Args:
        gx: (T,B,3U) input projections with every bias except `bias_n`.
        bias_n: (U,) recurrent bias of the candidate, inside the reset product; None without.
        fresh: (B,U) or (T,B,U), the state after a reset; None for zeros. keep: zoneout, (T,B,U) or None.

    Returns:
        out (T,B,U) at the input's time index; last state (B,U); states (T,B,U) entering each step, empty where they
        follow from `out` (no mask, no reset); gates (4,T,B,U) z, r, n, h R_h + c_h, three without reset_after, empty
        unless `save_gates`.
    """
    bias_h = None if bias_n is None else torch.cat((bias_n.new_zeros(2 * bias_n.shape[0]), bias_n))
    inputs = Inputs(gx, None, None, u, bias_h, h0, mask, resets, fresh, drop, keep)
    out, last, states, gates = run_forward(inputs, variant, save_gates, may_pack=False)
    if mask is not None or resets is not None:
        after = out if mask is None else states
        states = entering_states(after, 0, after.shape[0], h0, resets, fresh, variant)
    return out, last, states, unpack_gates(gates, variant) if save_gates else gates


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
    keep: Tensor | None = None,
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
    dtype = compute_dtype(entering.dtype)
    d_out = None if d_out is None else fold_outputs(d_out.to(dtype), mask, variant).flatten(0, 1)
    d_last = entering.new_zeros(B, U, dtype=dtype) if d_last is None else d_last.to(dtype)
    reverse = Reverse(u, mask, resets, drop, variant, d_out, d_last, Steps([B] * T), keep)
    d_fresh = entering.new_zeros(T, B, U, dtype=dtype) if fresh_gradient else None
    d_packed = entering.new_empty(T * B, gate_width(variant) * U, dtype=dtype)
    saved = view_gates(pack_gates(gates.to(dtype), variant).flatten(0, 1), variant)
    chunk = reverse.fill_factors(d_packed, saved, entering.to(dtype).flatten(0, 1), 0, T)
    reverse.walk(chunk, 0, T, d_fresh)
    d = view_gates(d_packed.unflatten(0, (T, B)), variant)

    def result(value: Tensor | None) -> Tensor:
        return entering.new_empty(0) if value is None else value.to(entering.dtype, copy=True).contiguous()

    return result(d.projected), result(d.gh_n), result(reverse.finish()), result(d_fresh)


def unpack_gates(packed: Tensor, variant: Variant) -> Tensor:
    """Return packed gates (T,B,4U or 3U) as the kernels saves them: (4 or 3,T,B,U) z, r, n, h R_h + c_h."""
    g = view_gates(packed, variant)
    return torch.stack((g.z, g.r, g.n) if g.gh_n is None else (g.z, g.r, g.n, g.gh_n))


def pack_gates(gates: Tensor, variant: Variant) -> Tensor:
    """Return gates as the kernels saves them, packed: the inverse of `unpack_gates`."""
    z, r, n, *gh_n = gates.unbind(0)
    return torch.cat((*gh_n, *((r, z) if variant.reset_gate_first else (z, r)), n), dim=-1)
