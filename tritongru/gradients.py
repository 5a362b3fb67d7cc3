"""The gradients of the operator `tritongru::scan`: from the kernels, from the eager scan, or as a graph.

    d gx, d gh_n   the reverse scan
    dx = d gx W'   dW = x' d gx    dR_g = (h * m_g)' d gh_g    db = the sums of d gx and d gh

Everything after the reverse scan is one product or sum for each input. A derivative of a derivative comes from the
reference, whose graph can be differentiated any number of times.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import eager
from .inputs import Inputs
from .precision import product_precision
from .reference import gru_reference
from .spec import Variant

SAVE_NOTHING, SAVE_GATES, RECOMPUTE = "nothing", "gates", "recompute"


@dataclass(frozen=True)
class Setting:
    """The other arguments of `scan`: what is computed, in which precision, what was saved, and where it runs."""

    variant: Variant
    precision: str
    save: str
    backend: str


class Results(NamedTuple):
    """What `scan` returned and kept: outputs, and states and gates as its backend saves them."""

    out: Tensor
    states: Tensor
    gates: Tensor


def wants_gradients(values: Iterable[Any]) -> bool:
    """Return whether autograd will ask for the gradient of one of `values`, of which only tensors can have one."""
    return torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in values)


def eager_gradients(s: Setting, a: Inputs, needs: Inputs, found: Results, d_out, d_last) -> Inputs:
    """The gradients of `scan` on "eager"."""
    v = s.variant
    wanted = [bool(need) for need in (*needs[:6], needs.fresh, needs.drop)]
    d_x, d_w, d_bias_x, d_u, d_bias_h, d_h0, d_fresh, d_drop = (
        gradient if want else None
        for gradient, want in zip(
            torch.ops.tritongru.eager_backward(
                *a, found.out if a.mask is None else found.states, found.gates, d_out, d_last,
                v.activation, v.recurrent_activation, v.reset_after, v.zero_output_for_mask, v.reverse,
                v.reset_gate_first, s.precision, wanted,
            ),
            wanted,
            strict=True,
        )
    )  # fmt: skip
    return Inputs(d_x, d_w, d_bias_x, d_u, d_bias_h, d_h0, None, None, d_fresh, d_drop)


def kernel_gradients(s: Setting, a: Inputs, needs: Inputs, found: Results, d_out, d_last) -> Inputs:
    """The gradients of `scan`: the reverse scan, then one product or sum for each input."""
    v, (out, states, gates) = s.variant, found
    U = a.u.shape[0]
    # Saved, or the outputs moved by one step.
    entering = states if states.dim() == 3 else eager.entering_states(out, 0, out.shape[0], a.h0, None, None, v)
    if s.save == RECOMPUTE:
        gates = torch.ops.tritongru.rebuild_gates(
            a.x, a.w, a.bias_x, a.u, a.bias_h, entering, a.drop,
            v.activation, v.recurrent_activation, v.reset_after, v.reset_gate_first, s.precision,
        )  # fmt: skip
    fresh_gradient = a.fresh is not None and needs.fresh
    d_gx, d_gh_n, d_h0, d_fresh = torch.ops.tritongru.scan_backward(
        d_out, d_last, gates, entering, a.u, a.mask, a.resets, a.drop,
        v.activation, v.recurrent_activation, v.reset_after, v.zero_output_for_mask, v.reverse, v.reset_gate_first,
        s.precision, fresh_gradient, s.backend,
    )  # fmt: skip

    d_x = d_w = d_bias_x = d_u = d_bias_h = d_drop = None
    with product_precision(a.x, s.precision):
        if needs.x:
            d_x = d_gx if a.w is None else d_gx @ a.w.t()
        if a.w is not None and needs.w:
            d_w = _product_like(a.x.flatten(0, 1), d_gx.flatten(0, 1), a.w)
        if a.bias_x is not None and needs.bias_x:
            d_bias_x = d_gx.sum((0, 1))
        if needs.u or (a.drop is not None and needs.drop):
            d_u, d_drop = _recurrent_gradients(a, needs, entering, gates, d_gx, d_gh_n, v)
        if a.bias_h is not None and needs.bias_h:
            d_n = d_gh_n if v.reset_after else d_gx[..., 2 * U :]
            d_bias_h = torch.cat((d_gx[..., : 2 * U].sum((0, 1)), d_n.sum((0, 1))))
    if fresh_gradient and a.fresh.dim() == 2:
        d_fresh = d_fresh.sum(0)
    return Inputs(
        d_x, d_w, d_bias_x, d_u, d_bias_h, d_h0 if needs.h0 else None, None, None,
        d_fresh if fresh_gradient else None, d_drop,
    )  # fmt: skip


def _recurrent_gradients(a: Inputs, needs: Inputs, entering, gates, d_gx, d_gh_n, v: Variant):
    """dR_g = (h * m_g)' dgh_g per gate, and the gradient of the dropout masks m_g, (G,B,U)."""
    U = a.u.shape[0]
    at_n = d_gh_n if v.reset_after else d_gx[..., 2 * U :]
    h_n = entering if v.reset_after else entering * gates[1]
    if a.drop is None:
        flat = entering.flatten(0, 1)
        zr = _product_like(flat, d_gx[..., : 2 * U].flatten(0, 1), a.u)
        return torch.cat((zr, _product_like(h_n.flatten(0, 1), at_n.flatten(0, 1), a.u)), dim=1), None
    masks = a.drop.expand(3, *a.drop.shape[1:])
    columns, d_masks = [], []
    sides = (entering, entering, h_n)
    for gate, (h, m) in enumerate(zip(sides, masks, strict=True)):
        d_gate = at_n if gate == 2 else d_gx[..., gate * U : (gate + 1) * U]
        columns.append(_product_like((h * m).flatten(0, 1), d_gate.flatten(0, 1), a.u))
        if needs.drop:
            d_masks.append((h * (d_gate @ a.u[:, gate * U : (gate + 1) * U].t())).sum(0))
    d_u = torch.cat(columns, dim=1) if needs.u else None
    if not needs.drop:
        return d_u, None
    d_drop = torch.stack(d_masks)
    return d_u, (d_drop if a.drop.shape[0] == 3 else d_drop.sum(0, keepdim=True))


def _product_like(left: Tensor, right: Tensor, weight: Tensor) -> Tensor:
    """left' right (K,N), laid out as `weight` is, so that autograd need not copy it to a parameter's layout."""
    if weight.stride(0) == 1 and weight.stride(1) != 1:
        return (right.t() @ left).t()
    return left.t() @ right


def differentiable_gradients(v: Variant, a: Inputs, needs: Inputs, d_out, d_last) -> list:
    """The same gradients from the reference, as a graph that autograd can differentiate again."""
    # Aliases cut the inputs from each other: an input computed from another one must not be counted twice.
    alias = Inputs(*(t if t is None else t.view_as(t) for t in a))
    outputs, last = reference_scan(alias, v)
    wanted = [i for i, need in enumerate(needs) if need]
    pairs = [(o, d) for o, d in ((outputs, d_out), (last, d_last)) if d is not None]
    gradients = torch.autograd.grad(
        [o for o, _ in pairs], [alias[i] for i in wanted], [d for _, d in pairs], create_graph=True, allow_unused=True
    )
    result: list = [None] * len(a)
    for i, gradient in zip(wanted, gradients, strict=True):
        result[i] = gradient
    return result


def reference_scan(a: Inputs, v: Variant) -> tuple[Tensor, Tensor]:
    """`scan` as the reference computes it: outputs (T,B,U) at the input's time index, last state (B,U)."""
    U = a.u.shape[0]
    w = torch.eye(3 * U, dtype=a.x.dtype, device=a.x.device) if a.w is None else a.w
    zero = a.x.new_zeros(3 * U)
    pair = (zero if a.bias_x is None else a.bias_x, zero if a.bias_h is None else a.bias_h)
    drop = a.drop
    if v.reset_gate_first:
        if drop is not None and drop.shape[0] == 3:
            drop = torch.stack((drop[1], drop[0], drop[2]))
        w, u, bias, layout = w.t(), a.u.t(), pair, "torch"
    else:
        w, u, layout = w, a.u, "keras"
        bias = torch.stack(pair) if v.reset_after else pair[0] + pair[1]
    outputs, last = gru_reference(
        a.x, w, u, bias, a.h0, activation=v.activation, recurrent_activation=v.recurrent_activation,
        reset_after=v.reset_after, mask=a.mask, resets=a.resets, reset_state=a.fresh,
        recurrent_dropout=None if drop is None else tuple(drop), zero_output_for_mask=v.zero_output_for_mask,
        go_backwards=v.reverse, time_major=True, layout=layout,
    )  # fmt: skip
    return (outputs.flip(0) if v.reverse else outputs), last
