"""Keras's and torch's arrays of one GRU layer, each as a function of the other.

    kernel           (I,3U), gates z r h   <->   weight_ih (3U,I), gates r z n
    recurrent_kernel (U,3U), gates z r h   <->   weight_hh (3U,U), gates r z n
    bias             (2,3U), gates z r h   <->   bias_ih, bias_hh (3U,), gates r z n

Both libraries then compute the same function, `h' = z h + (1 - z) n` with the reset gate applied after the recurrent
product. A layer with `reset_after=False` (bias (3U,)) has no torch counterpart.

Source: `torch.nn.GRU` and `tf.keras.layers.GRU` (v2.9).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class KerasWeights(NamedTuple):
    """kernel (I,3U), recurrent_kernel (U,3U), bias (2,3U) or None; gates z, r, h."""

    kernel: Tensor
    recurrent_kernel: Tensor
    bias: Tensor | None


class TorchWeights(NamedTuple):
    """weight_ih (3U,I), weight_hh (3U,U), b_ih and b_hh (3U,) or both None; gates r, z, n."""

    weight_ih: Tensor
    weight_hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None


def swap_gates(w: Tensor, axis: int) -> Tensor:
    """Return `w` with the first two of the three gate blocks along `axis` exchanged: z r h <-> r z n."""
    first, second, third = w.chunk(3, dim=axis)
    return torch.cat((second, first, third), dim=axis)


def keras_to_torch(kernel: Tensor, recurrent_kernel: Tensor, bias: Tensor | None = None) -> TorchWeights:
    """Return torch's four arrays of a Keras layer with `reset_after=True`.

    Args:
        kernel: (I,3U), any dtype.
        recurrent_kernel: (U,3U).
        bias: (2,3U), input row first, or None.

    Returns:
        `TorchWeights`, contiguous copies.

    Raises:
        ValueError: shapes that do not fit each other, or the one-row bias (3U,) of `reset_after=False`.

    >>> keras_to_torch(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[4.0, 5.0, 6.0]])).weight_hh.flatten()
    tensor([5., 4., 6.])
    """
    check_keras_shapes(kernel.shape, recurrent_kernel.shape, None if bias is None else bias.shape)
    if bias is not None and bias.ndim == 1:
        raise ValueError(f"`bias` has shape {tuple(bias.shape)}: a layer with reset_after=False has no torch layout")
    weight_ih = swap_gates(kernel, 1).T.contiguous()
    weight_hh = swap_gates(recurrent_kernel, 1).T.contiguous()
    if bias is None:
        return TorchWeights(weight_ih, weight_hh, None, None)
    b_ih, b_hh = swap_gates(bias, 1).unbind(0)
    return TorchWeights(weight_ih, weight_hh, b_ih.clone(), b_hh.clone())


def torch_to_keras(
    weight_ih: Tensor, weight_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> KerasWeights:
    """Return Keras's arrays (`reset_after=True`) of a torch layer.

    Args:
        weight_ih: (3U,I), any dtype.
        weight_hh: (3U,U).
        b_ih, b_hh: (3U,) each, or both None.

    Returns:
        `KerasWeights`, contiguous copies.

    Raises:
        ValueError: shapes that do not fit each other, or one bias without the other.
    """
    if (b_ih is None) != (b_hh is None):
        raise ValueError("`b_ih` and `b_hh` must both be given or both be None")
    for name, bias in (("b_ih", b_ih), ("b_hh", b_hh)):
        if bias is not None and tuple(bias.shape) != (weight_hh.shape[0],):
            raise ValueError(f"`{name}` has shape {tuple(bias.shape)}, expected ({weight_hh.shape[0]},)")
    check_keras_shapes(weight_ih.shape[::-1], weight_hh.shape[::-1], None)
    bias = None if b_ih is None or b_hh is None else swap_gates(torch.stack((b_ih, b_hh)), 1)
    return KerasWeights(swap_gates(weight_ih, 0).T.contiguous(), swap_gates(weight_hh, 0).T.contiguous(), bias)


def check_keras_shapes(kernel: Sequence[int], recurrent_kernel: Sequence[int], bias: Sequence[int] | None) -> None:
    """Raise ValueError unless the shapes are (I,3U), (U,3U) and (2,3U), (3U,) or None, with I and U at least 1."""
    kernel, recurrent_kernel = tuple(kernel), tuple(recurrent_kernel)
    if len(recurrent_kernel) != 2 or recurrent_kernel[0] < 1 or recurrent_kernel[1] != 3 * recurrent_kernel[0]:
        raise ValueError(f"`recurrent_kernel` has shape {recurrent_kernel}, expected (units, 3 * units)")
    gates = recurrent_kernel[1]
    if len(kernel) != 2 or kernel[0] < 1 or kernel[1] != gates:
        raise ValueError(f"`kernel` has shape {kernel}, expected (input_size, {gates})")
    if bias is not None and tuple(bias) not in ((2, gates), (gates,)):
        raise ValueError(f"`bias` has shape {tuple(bias)}, expected (2, {gates}) or ({gates},)")
