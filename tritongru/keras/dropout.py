"""Dropout masks in the manner of Keras: drawn once, kept until they are reset."""

from __future__ import annotations

import threading
import weakref

import torch
from torch import Tensor


class _Caches(threading.local):
    # A mask belongs to the call that drew it: one thread's must not reach another's, nor a copy of the layer.
    def __init__(self) -> None:
        self.of: weakref.WeakKeyDictionary[DropoutMasks, dict[str, list[Tensor] | Tensor]] = weakref.WeakKeyDictionary()


_caches = _Caches()


class DropoutMasks:
    """The two mask caches of a recurrent layer or cell (Keras's `DropoutRNNCellMixin`).

    A mask is scaled by 1/(1-rate), holds over all time steps and is drawn afresh after `reset_dropout_mask()`. Each
    thread has its own; a traced call neither takes nor leaves any.
    The class that mixes this in has `dropout`, `recurrent_dropout` and `_time_axis` (of a rank 3 input).
    """

    dropout: float
    recurrent_dropout: float
    _time_axis: int = 1

    def reset_dropout_mask(self) -> None:
        """Forget the input mask, so that the next call draws another."""
        self._forget("dropout")

    def reset_recurrent_dropout_mask(self) -> None:
        """Forget the mask of the state, so that the next call draws another."""
        self._forget("recurrent_dropout")

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
        return self._get_mask("dropout", self.dropout, inputs, training, count)

    def get_recurrent_dropout_mask_for_cell(self, inputs: Tensor, training: bool, count: int = 1):
        """Return the cached mask of the state (B,U); otherwise as `get_dropout_mask_for_cell`."""
        return self._get_mask("recurrent_dropout", self.recurrent_dropout, inputs, training, count)

    def _forget(self, name: str) -> None:
        if not torch.compiler.is_compiling():
            _caches.of.setdefault(self, {}).pop(name, None)

    def _get_mask(self, name: str, rate: float, inputs: Tensor, training: bool, count: int):
        if rate == 0:
            return None
        if torch.compiler.is_compiling():
            return draw_masks(inputs, rate, name, training, count, self._time_axis)
        kept = _caches.of.setdefault(self, {})
        if name not in kept:
            kept[name] = draw_masks(inputs, rate, name, training, count, self._time_axis)
        return kept[name]


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
