"""Few steps without gradients: nothing is packed or copied first, since that would cost as much as the steps.

gx = x W + b for all steps, then for each:  gh = h R + c;  z, r = g(gx_zr + gh_zr);  n = f(gx_n + r * gh_n)
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...call.problem import Inputs, Variant
from .layout import compute_dtype, in_place

# With more, the weights are worth packing (`forward.make_gates`), which makes a step a third shorter.
MOST_STEPS = 8


def is_short(a: Inputs, variant: Variant) -> bool:
    """Return whether `run_short` runs a call: the plain GRU over few steps, in a dtype that states are kept in."""
    plain = (
        a.mask is None
        and a.resets is None
        and a.drop is None
        and a.keep is None
        and a.w is not None
        and variant.reset_after
    )
    plain = plain and variant.layer_norm is None
    return plain and a.x.shape[1] > 0 and 0 < a.x.shape[0] <= MOST_STEPS and a.x.dtype == compute_dtype(a.x.dtype)


def run_short(a: Inputs, variant: Variant) -> tuple[Tensor, Tensor]:
    """Return out (T,B,U) at the input's time index, and the last state (B,U)."""
    T, B, _ = a.x.shape
    U = a.u.shape[0]
    f, g = in_place(variant.activation), in_place(variant.recurrent_activation)
    gx = _affine(a.bias_x, a.x.flatten(0, 1), a.w)
    gx_zr, gx_n = gx.split((2 * U, U), dim=1)
    if T > 1:
        gx_zr, gx_n = gx_zr.split(B), gx_n.split(B)
    else:
        gx_zr, gx_n = (gx_zr,), (gx_n,)
    states: list = [None] * T
    h = a.h0
    for t in reversed(range(T)) if variant.reverse else range(T):
        gh_zr, gh_n = _affine(a.bias_h, h, a.u).split((2 * U, U), dim=1)
        first, second = g(gh_zr.add_(gx_zr[t])).chunk(2, dim=1)
        z, r = (second, first) if variant.reset_gate_first else (first, second)
        h = states[t] = torch.lerp(f(gh_n.mul_(r).add_(gx_n[t])), h, z)
    # The state is a tensor of its own, also where the output holds the same values.
    return torch.stack(states), h


def _affine(bias: Tensor | None, x: Tensor, weights: Tensor | None) -> Tensor:
    return torch.mm(x, weights) if bias is None else torch.addmm(bias, x, weights)
