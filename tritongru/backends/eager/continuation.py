"""The scan and the reverse scan with the arguments and results of the kernels: the two meet where a kernel fails.

Shapes: `gx (T,B,3U)` input side with its bias; `u (U,3U)`; gates in the weights' order (`variant.reset_gate_first`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...call.problem import Inputs, Variant
from .backward import Reverse, fold_outputs
from .forward import run_forward
from .layout import Steps, compute_dtype, entering_states, gate_width, view_gates
from .normalized import Normalization, Norms, candidate_first, candidate_last


class Norm(NamedTuple):
    """Layer normalisation in a scan: what stands beside the sums, all in the weights' order of the gates.

    Attributes:
        scale: (3U,). bias: of "joint" on the way forward, what is added after the norm, all but `bias_n`; (3U,) or
            None. sums: normalised, (T,B,3U). rstd: one over each row's spread, (T,B), in the dtype of sums;
            both for the way back.
    """

    scale: Tensor
    bias: Tensor | None = None
    sums: Tensor | None = None
    rstd: Tensor | None = None


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
    norm: Norm | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the recurrence over all steps.

    Args:
        gx: (T,B,3U) input projections with every bias except `bias_n`; without any for a "joint" norm.
        bias_n: (U,) recurrent bias of the candidate, inside the reset product; None without.
        fresh: (B,U) or (T,B,U), the state after a reset; None for zeros. keep: zoneout, (T,B,U) or None.
        norm: of the sums, or None.

    Returns:
        out (T,B,U) at the input's time index; last state (B,U); states (T,B,U) entering each step, empty where they
        follow from `out` (no mask, no reset); gates (4,T,B,U) z, r, n, h R_h + c_h, three without reset_after, empty
        unless `save_gates`.
    """
    bias_h = None if bias_n is None else torch.cat((bias_n.new_zeros(2 * bias_n.shape[0]), bias_n))
    scale, bias = (None, None) if norm is None else (norm.scale, norm.bias)
    inputs = Inputs(gx, None, bias, u, bias_h, h0, mask, resets, fresh, drop, keep, scale)
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
    norm: Norm | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the reverse scan: from gradients of outputs to gradients of pre-activations.

    Args:
        d_out: (T,B,U) or None; d_last: (B,U) or None.
        gates: as saved by `scan_forward`; entering: (T,B,U) the state entering each step.
        fresh_gradient: whether the gradient of the state after a reset is wanted.

    Returns:
        d_gx (T,B,3U), with a norm (2,T,B,3U), the second of the sums before it; d_gh_n (T,B,U), the gradient of
        h R_h + c_h, empty without reset_after; d_h0 (B,U); d_fresh (T,B,U), zero where no reset happened, empty unless
        `fresh_gradient`.
    """
    T, B, U = entering.shape
    dtype = compute_dtype(entering.dtype)
    d_out = None if d_out is None else fold_outputs(d_out.to(dtype), mask, variant).flatten(0, 1)
    d_last = entering.new_zeros(B, U, dtype=dtype) if d_last is None else d_last.to(dtype)
    normalization = None if norm is None else Normalization(u, drop, norm.scale, variant, dtype)
    reverse = Reverse(u, mask, resets, drop, variant, d_out, d_last, Steps([B] * T), keep, norm=normalization)
    d_fresh = entering.new_zeros(T, B, U, dtype=dtype) if fresh_gradient else None
    d_packed = entering.new_empty(T * B, gate_width(variant) * U, dtype=dtype)
    saved = view_gates(pack_gates(gates.to(dtype), variant).flatten(0, 1), variant)
    chunk = reverse.fill_factors(d_packed, saved, entering.to(dtype).flatten(0, 1), 0, T)
    if norm is not None:
        chunk = chunk._replace(norms=_norms_of_rows(norm, dtype))
    reverse.walk(chunk, 0, T, d_fresh)
    d = view_gates(d_packed.unflatten(0, (T, B)), variant)
    d_gx = d.projected
    if chunk.norms is not None:
        d_gx = torch.stack((d_gx, candidate_last(chunk.norms.d_sums).unflatten(0, (T, B))))

    def result(value: Tensor | None) -> Tensor:
        return entering.new_empty(0) if value is None else value.to(entering.dtype, copy=True).contiguous()

    return result(d_gx), result(d.gh_n), result(reverse.finish()), result(d_fresh)


def _norms_of_rows(norm: Norm, dtype: torch.dtype) -> Norms:
    """Return the norms of all rows (T * B,..) as the reverse scan takes them."""
    assert norm.sums is not None and norm.rstd is not None
    sums = candidate_first(norm.sums.to(dtype).flatten(0, 1))
    return Norms(sums, norm.rstd.view(-1, 1), torch.zeros_like(sums))


def unpack_gates(packed: Tensor, variant: Variant) -> Tensor:
    """Return packed gates (T,B,4U or 3U) as the kernels save them: (4 or 3,T,B,U) z, r, n, h R_h + c_h."""
    g = view_gates(packed, variant)
    return torch.stack((g.z, g.r, g.n) if g.gh_n is None else (g.z, g.r, g.n, g.gh_n))


def pack_gates(gates: Tensor, variant: Variant) -> Tensor:
    """Return gates as the kernels save them, packed: the inverse of `unpack_gates`."""
    z, r, n, *gh_n = gates.unbind(0)
    return torch.cat((*gh_n, *((r, z) if variant.reset_gate_first else (z, r)), n), dim=-1)
