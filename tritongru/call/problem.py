"""The one canonical form of a call that every fast backend takes.

The canonical form is time-major: `x (T,B,I)`, `mask (T,B)`, one state per row, weights as `(I,3U)` and `(U,3U)` views.
Torch's weights are transposed views with their gates in the order r, z, n, so neither layout is copied.
Nothing is reversed here: `variant.reverse` tells the scan to walk from the last step to the first.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import Arguments
from .padding import valid_steps
from .recording import is_exporting_to_onnx


class Shape(NamedTuple):
    """Sizes of one call: batch B, time T, input I, units U."""

    batch: int
    time: int
    input: int
    units: int


class Variant(NamedTuple):
    """What distinguishes one GRU from another, beyond its sizes and which of its tensors are there."""

    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"
    reset_after: bool = True
    zero_output_for_mask: bool = False
    reverse: bool = False
    reset_gate_first: bool = False  # gate order r, z, h (torch) in place of z, r, h (Keras)
    gradient_clip: float | None = None  # bound of the gradient that a step passes to the state entering it
    layer_norm: str | None = None  # "separate" or "joint"; of "separate" the input's part is done before the scan
    epsilon: float = 1e-5


class Inputs(NamedTuple):
    """The tensor inputs of a scan, which its gradient returns one for one.

    Attributes:
        x: (T,B,I), or (T,B,3U) already projected where `w` is None.
        w, bias_x: input kernel (I,3U) and bias (3U,), or None.
        u, bias_h: recurrent kernel (U,3U) and recurrent bias (3U,), or None.
        h0: (B,U). mask, resets: (T,B) bool or None. fresh: state after a reset, (B,U), (T,B,U) or None for zeros.
        drop: recurrent dropout, scaled, (1,B,U) for all gates or (3,B,U) in the order of the weights' gates, or None.
        keep: zoneout, (T,B,U), 1 where a unit takes its new state and 0 where it keeps the old, or None.
        scale: of the normalised sums, (3U,), where there is layer normalisation.
    """

    x: Tensor
    w: Tensor | None
    bias_x: Tensor | None
    u: Tensor
    bias_h: Tensor | None
    h0: Tensor
    mask: Tensor | None = None
    resets: Tensor | None = None
    fresh: Tensor | None = None
    drop: Tensor | None = None
    keep: Tensor | None = None
    scale: Tensor | None = None


class Problem(NamedTuple):
    """One call in canonical form: its tensors, and which GRU they go through."""

    inputs: Inputs
    variant: Variant


def canonicalize(a: Arguments, variant: Variant, steps: tuple[Tensor, Tensor | None] | None = None) -> Problem:
    """Return the canonical form of arguments in plain form (`check.check`).

    Args:
        steps: `clear_padding(a)`, where it is known.
    """
    x, mask = clear_padding(a) if steps is None else steps
    w, u = a.kernel, a.recurrent_kernel
    bias_x, bias_h = a.bias, None
    if a.layout == "torch":
        w, u = None if w is None else w.t(), u.t()
    if w is None:
        bias_x, bias_h = None, a.bias
    elif a.layout == "torch":
        bias_x, bias_h = (None, None) if a.bias is None else a.bias
    elif a.bias is not None and a.reset_after:
        bias_x, bias_h = a.bias.unbind(0)  # type: ignore[union-attr]

    if a.input_dropout:
        x, w = _drop_input(x, w, [a.by_time(m.expand(a.x.shape)) for m in a.input_dropout], variant)
    scale = None
    if a.layer_norm is not None:
        scale = _scale_of(a.layer_norm, x, u, a.kernel is not None)
        if scale.dim() == 2:
            x, w = F.layer_norm(x if w is None else x @ w, scale[0].shape, scale[0], None, variant.epsilon), None
            scale = scale[1]
    drop = torch.stack(_in_order_of_weights(a.recurrent_dropout, variant)) if a.recurrent_dropout else None

    h0 = x.new_zeros(x.shape[1], u.shape[0]) if a.initial_state is None else a.initial_state
    resets, fresh = a.resets, a.reset_state
    if resets is not None:
        resets = a.by_time(resets)
        if isinstance(fresh, str):
            fresh = h0
        elif fresh is not None and fresh.dim() == 3:
            fresh = a.by_time(fresh)
    keep = None if a.zoneout is None else a.by_time(a.zoneout)
    return Problem(Inputs(x, w, bias_x, u, bias_h, h0, mask, resets, fresh, drop, keep, scale), variant)  # type: ignore[arg-type]


def clear_padding(a: Arguments) -> tuple[Tensor, Tensor | None]:
    """Return x (T,B,I) without what stands in the padding, and the mask (T,B) or None."""
    x = a.by_time(a.x)
    mask = None if a.mask is None else a.by_time(a.mask)
    if a.lengths is not None:
        within = valid_steps(a.lengths, x.shape[0])
        mask = within if mask is None else mask & within
    if mask is not None and not is_exporting_to_onnx():
        # What stands in the padding must not matter, not even a NaN: in the weights' gradient it meets a zero. An ONNX
        # file has no gradients. (A zero on the device: a host waits while its own is copied.)
        x = torch.where(mask[:, :, None], x, x.new_zeros(()))
    return x, mask


def _drop_input(x: Tensor, w: Tensor, masks, variant: Variant) -> tuple[Tensor, Tensor | None]:
    """Return x times its one mask and w; or, with a mask for each gate, x already projected and None."""
    if len(masks) == 1:
        return x * masks[0], w
    parts = zip(_in_order_of_weights(masks, variant), w.chunk(3, 1), strict=True)
    return torch.cat([(x * mask) @ w_gate for mask, w_gate in parts], dim=-1), None


def _scale_of(norm, x: Tensor, u: Tensor, has_kernel: bool) -> Tensor:
    """Return the scales of the norms, (2,3U) where the input has one of its own, else (3U,)."""
    if norm.scale is not None:
        return norm.scale
    return x.new_ones((2, u.shape[1]) if norm.kind == "separate" and has_kernel else (u.shape[1],))


def _in_order_of_weights(masks, variant: Variant):
    """Return masks z, r, h in the order of the weights' gates; a single mask as it is."""
    return (masks[1], masks[0], masks[2]) if len(masks) == 3 and variant.reset_gate_first else tuple(masks)
