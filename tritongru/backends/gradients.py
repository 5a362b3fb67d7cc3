"""The gradients of the operator `tritongru::scan` where a derivative of a derivative is asked for: from the reference.

Its graph can be differentiated any number of times. First derivatives are the backends' own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..call.arguments import LayerNorm
from ..call.problem import Inputs, Variant
from ..reference import gru_reference

SAVE_NOTHING, SAVE_GATES, RECOMPUTE = "nothing", "gates", "recompute"


class Setting(NamedTuple):
    """How a scan runs: precision of float32 products, what is saved for its gradient, and where."""

    precision: str
    save: str
    backend: str


class Saved(NamedTuple):
    """What `scan` returned and kept: outputs, and states and gates as its backend saves them."""

    out: Tensor
    states: Tensor
    gates: Tensor


def differentiable_gradients(v: Variant, a: Inputs, wanted: Inputs, d_out, d_last) -> Inputs:
    """Return the gradients of a scan's inputs as a graph that autograd can differentiate again; None if not wanted."""
    # Aliases cut the inputs from each other: an input computed from another one must not be counted twice.
    alias = Inputs(*(t if t is None else t.view_as(t) for t in a))
    outputs, last = reference_scan(alias, v)
    pairs = [(o, d) for o, d in ((outputs, d_out), (last, d_last)) if d is not None]
    found = torch.autograd.grad(
        [o for o, _ in pairs],
        [t for t, want in zip(alias, wanted, strict=True) if want],
        [d for _, d in pairs],
        create_graph=True,
        allow_unused=True,
    )
    rest = iter(found)
    return Inputs(*(next(rest) if want else None for want in wanted))  # type: ignore[arg-type]


def reference_scan(a: Inputs, v: Variant) -> tuple[Tensor, Tensor]:
    """`scan` as the reference computes it: outputs (T,B,U) at the input's time index, last state (B,U)."""
    U = a.u.shape[0]
    zero = a.x.new_zeros(3 * U)
    pair = (zero if a.bias_x is None else a.bias_x, zero if a.bias_h is None else a.bias_h)
    w, u, drop = a.w, a.u, a.drop
    layout = "torch" if v.reset_gate_first else "keras"
    if v.reset_gate_first:
        if drop is not None and drop.shape[0] == 3:
            drop = torch.stack((drop[1], drop[0], drop[2]))
        w, u = None if w is None else w.t(), u.t()
    if w is None or v.reset_gate_first:
        bias = pair
    else:
        bias = torch.stack(pair) if v.reset_after else pair[0] + pair[1]
    norm = None if v.layer_norm is None else LayerNorm(v.layer_norm, a.scale, v.epsilon)
    outputs, last = gru_reference(
        a.x, w, u, bias, a.h0, activation=v.activation, recurrent_activation=v.recurrent_activation,
        reset_after=v.reset_after, mask=a.mask, resets=a.resets, reset_state=a.fresh,
        recurrent_dropout=None if drop is None else tuple(drop), zero_output_for_mask=v.zero_output_for_mask,
        go_backwards=v.reverse, time_major=True, layout=layout, zoneout=a.keep, gradient_clip=v.gradient_clip,
        layer_norm=norm,
    )  # fmt: skip
    return (outputs.flip(0) if v.reverse else outputs), last
