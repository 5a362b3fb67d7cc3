"""Few steps without gradients: nothing is packed or copied first, since that would cost as much as the steps.

gx = x W + b for all steps, then for each:  gh = h R + c;  z, r = g(gx_zr + gh_zr);  n = f(gx_n + r * gh_n)
"""

from __future__ import annotations

from collections.abc import Callable

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
    f, g = in_place(variant.activation), in_place(variant.recurrent_activation)
    gx = _affine(a.bias_x, a.x.flatten(0, 1), a.w).split(B)
    states: list = [None] * T
    h = a.h0
    for t in reversed(range(T)) if variant.reverse else range(T):
        h = states[t] = _advance(gx[t], h, a.u, a.bias_h, f, g, variant.reset_gate_first)
    # The state is a tensor of its own, also where the output holds the same values.
    return torch.stack(states), h


def make_step(variant: Variant) -> Callable[..., Tensor]:
    """Return the function that takes a step, with the bits of `run_short`.

    From x (B,I), w (I,3U), bias_x (3U,) or None, h (B,U), u (U,3U) and bias_h to the next state (B,U).
    """
    f, g = in_place(variant.activation), in_place(variant.recurrent_activation)

    def step(x: Tensor, w: Tensor, bias_x: Tensor | None, h: Tensor, u: Tensor, bias_h: Tensor | None) -> Tensor:
        return _advance(_affine(bias_x, x, w), h, u, bias_h, f, g, variant.reset_gate_first)

    return step


def _advance(gx: Tensor, h: Tensor, u: Tensor, bias_h: Tensor | None, f, g, reset_gate_first: bool) -> Tensor:
    sizes = (2 * h.shape[1], h.shape[1])
    gx_zr, gx_n = torch.split_with_sizes(gx, sizes, 1)
    gh_zr, gh_n = torch.split_with_sizes(_affine(bias_h, h, u), sizes, 1)
    first, second = g(gh_zr.add_(gx_zr)).chunk(2, 1)
    z, r = (second, first) if reset_gate_first else (first, second)
    return torch.lerp(f(torch.addcmul(gx_n, r, gh_n)), h, z)


def _affine(bias: Tensor | None, x: Tensor, weights: Tensor | None) -> Tensor:
    return torch.mm(x, weights) if bias is None else torch.addmm(bias, x, weights)
