"""Dropout masks in the manner of Keras: drawn once, kept until they are reset."""

from __future__ import annotations

import torch
from torch import Tensor


class DropoutMasks:
    """The two mask caches of a recurrent layer or cell (Keras's `DropoutRNNCellMixin`).

    A mask is scaled by 1/(1-rate), holds over all time steps and is drawn afresh after `reset_dropout_mask()`.
    The class that mixes this in has `dropout`, `recurrent_dropout` and `_time_axis` (of a rank 3 input).
    """

    dropout: float
    recurrent_dropout: float
    _time_axis: int = 1
    _dropout_mask = None
    _recurrent_dropout_mask = None

    def reset_dropout_mask(self) -> None:
        """Forget the input mask, so that the next call draws another."""
        self._dropout_mask = None

    def reset_recurrent_dropout_mask(self) -> None:
        """Forget the mask of the state, so that the next call draws another."""
        self._recurrent_dropout_mask = None

    def get_dropout_mask_for_cell(self, inputs: Tensor, training: bool, count: int = 1):
        """Return the cached input mask, drawing it first if there is none.

        Args:
            inputs: (B,I), or a sequence of rank 3, for which the mask is the same at every time step.
            training: ones where False. count: how many masks, one per gate.

        Returns:
            None if `dropout` is 0, one mask of the shape of `inputs` if count is 1, else a list. A cached mask is
            returned whatever the arguments are.

        Raises:
            ValueError: `dropout` is 1 in training.
        """
        if self.dropout == 0:
            return None
        if self._dropout_mask is not None:
            return self._dropout_mask
        masks = draw_masks(inputs, self.dropout, "dropout", training, count, self._time_axis)
        # Under torch.compile nothing asks for the mask again, and keeping it would be a side effect.
        if not torch.compiler.is_compiling():
            self._dropout_mask = masks
        return masks

    def get_recurrent_dropout_mask_for_cell(self, inputs: Tensor, training: bool, count: int = 1):
        """Return the cached mask of the state (B,U); otherwise as `get_dropout_mask_for_cell`."""
        if self.recurrent_dropout == 0:
            return None
        if self._recurrent_dropout_mask is not None:
            return self._recurrent_dropout_mask
        masks = draw_masks(inputs, self.recurrent_dropout, "recurrent_dropout", training, count, self._time_axis)
        if not torch.compiler.is_compiling():
            self._recurrent_dropout_mask = masks
        return masks


def draw_masks(inputs: Tensor, rate: float, argument: str, training: bool, count: int, time_axis: int = 1):
    """Return one scaled mask of the shape of `inputs`, constant over time, or a list of `count`."""
    if training and not 0 <= rate < 1:
        raise ValueError(f"`{argument}` must lie in the range [0, 1) in training, got {rate}")
    shape = list(inputs.shape)
    if len(shape) == 3:
        shape[time_axis] = 1
    ones = inputs.new_ones(shape)
    draw = torch.nn.functional.dropout
    masks = [draw(ones, rate, training=bool(training)).expand(inputs.shape) for _ in range(count)]
    return masks[0] if count == 1 else masks
