"""`tritongru.keras3.GRU`: Keras's own layer with another computation."""

from __future__ import annotations

from typing import Any, cast

import keras
import torch
from keras import ops
from torch import Tensor

from ..call.errors import check_backend
from ..call.recording import is_exporting, is_recorded
from ..functional import gru
from . import activations, own_path
from .naming import register

# Neither "auto" nor True, for which Keras's wrappers go past the layer to cuDNN.
_NOT_ASKED = 0


@register
class GRU(keras.layers.GRU):
    """`keras.layers.GRU`, computed by `tritongru.gru`.

    Weights, initializers, regularizers, constraints, masks, dropout seeds, states, dtype policies and files are those
    of Keras, and so are the numbers: this class replaces the loop over time and nothing else. A file names
    `keras.layers.GRU`, so that Keras reads it without this package; loaded again, the layer is Keras's, and
    `accelerate` switches it. An exported model holds Keras's loop, for the same reason.

    Args:
        units: U. args, kwargs: those of `keras.layers.GRU`.
        backend: of `tritongru.gru`, also an attribute. It is in the configuration only where it is not "auto", and
            Keras by itself does not read a file with it.

    Raises:
        ValueError: `use_cudnn=True`, an unknown backend; and what `keras.layers.GRU` raises.
        TypeError, ValueError, UnsupportedError: in a call, what `tritongru.gru` raises.

    Source: keras.layers.GRU 3.15.
    """

    backend = "auto"

    def __init__(self, units, *args, backend: str = "auto", **kwargs) -> None:
        super().__init__(units, *args, **kwargs)
        if not isinstance(backend, str):
            raise TypeError(f"`backend` must be a name, as in `tritongru.gru`, got {backend!r}")
        check_backend(backend)
        if backend != "auto":
            self.backend = backend

    @property
    def use_cudnn(self):
        """What was asked of Keras, "auto" or False; on a GPU 0, so that no wrapper goes past this layer to cuDNN."""
        return _NOT_ASKED if torch.cuda.is_available() and not is_for_others() else self.__dict__["use_cudnn"]

    @use_cudnn.setter
    def use_cudnn(self, value) -> None:
        if value is True:
            raise ValueError("`use_cudnn`=True asks for Keras's own computation; this layer takes 'auto' or False")
        if type(value) is not int:  # `Bidirectional` hands on what it read from another layer of ours.
            self.__dict__["use_cudnn"] = value

    def inner_loop(self, sequences, initial_state, mask, training=False):
        """Return the last output (B,U), outputs (B,T,U) and [state (B,U)] of inputs (B,T,I)."""
        reason = reason_against_cell(self.cell)
        if reason:
            raise TypeError(f"`cell`: {reason}")
        if is_for_others():
            return super().inner_loop(sequences, initial_state, mask=mask, training=training)
        cell, mask, state = self.cell, _as_mask(_first(mask), sequences.shape[0]), _first(initial_state)
        if self.stateful:
            # Keras writes the next state into this memory, and the backward pass reads it after that.
            state = state.clone()
        f, g = activations.find(cell.activation), activations.find(cell.recurrent_activation)
        input_dropout = _input_dropout(self, sequences, mask, training)
        recurrent_dropout = _recurrent_dropout(self, state, training)
        if mask is None and recurrent_dropout is None and cell.reset_after:
            result = own_path.run(self, sequences, state, input_dropout, bool(f and f.is_fast and g and g.is_fast))
            if result is not None:
                return result
        kernel, recurrent_kernel, bias = _weights(cell, f.factor if f else 1.0, g.factor if g else 1.0)
        outputs, state = gru(
            sequences.to(kernel.dtype),
            kernel,
            recurrent_kernel,
            bias,
            state.to(kernel.dtype),
            activation=f.name if f else cell.activation,
            recurrent_activation=g.name if g else cell.recurrent_activation,
            reset_after=cell.reset_after,
            mask=mask,
            input_dropout=input_dropout,
            recurrent_dropout=recurrent_dropout,
            zero_output_for_mask=self.zero_output_for_mask,
            go_backwards=self.go_backwards,
            backend=self.backend,
        )
        return _last_output(self, outputs, state, mask), outputs, [state]

    def get_config(self) -> dict:
        """Return Keras's configuration, with `backend` where it is not "auto"."""
        config = super().get_config()
        return config if self.backend == "auto" else {**config, "backend": self.backend}

    def __dir__(self):
        # Keras's tests compare the names with those of the copy that a file gives, which is Keras's own class.
        return [name for name in super().__dir__() if name != "backend"]

    def __reduce__(self):
        # Keras pickles a layer as a file, and a file names Keras's class.
        method, arguments = super().__reduce__()
        return load_as_ours, (method.__name__, *arguments)


def load_as_ours(method: str, *arguments: Any) -> keras.layers.Layer:
    """Return the layer that `method` of `keras.layers.GRU` reads from `arguments`, as our class; for pickled ones."""
    with keras.saving.custom_object_scope({"GRU": GRU}):
        return getattr(keras.layers.GRU, method)(*arguments)


def is_for_others() -> bool:
    """Return whether the call is recorded for other programs, which do not have our operators."""
    return is_recorded() or is_exporting()


def reason_against_cell(cell) -> str:
    """Return why this package cannot compute what `cell` does, or an empty string."""
    if type(cell) is keras.layers.GRUCell:
        return ""
    return f"the cell is a {type(cell).__name__}, not a keras.layers.GRUCell, and only that one's formula is known here"


def _tensor(value) -> Tensor:
    """Return a Keras variable, in the dtype of the call, or an array as a tensor."""
    return cast(Tensor, ops.convert_to_tensor(value))


def _first(value):
    return value[0] if isinstance(value, (list, tuple)) else value


def _as_mask(mask, batch: int) -> Tensor | None:
    """Return a mask (B,T) or (B,T,1) of any dtype, or one row for all, as (B,T) bool."""
    if mask is None:
        return None
    mask = _tensor(mask).bool()
    mask = mask.squeeze(-1) if mask.ndim == 3 and mask.shape[-1] == 1 else mask
    return mask.expand(batch, -1) if mask.ndim == 2 and mask.shape[0] == 1 else mask


def _weights(cell, factor: float, recurrent_factor: float) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return kernel (I,3U), recurrent kernel (U,3U) and bias in the dtype of the call.

    Args:
        factor, recurrent_factor: what the arguments of the activation and of the gates' activation are multiplied by.
    """
    kernel, recurrent_kernel = _tensor(cell.kernel), _tensor(cell.recurrent_kernel)
    bias = _tensor(cell.bias) if cell.use_bias else None
    if factor == 1 and recurrent_factor == 1:
        return kernel, recurrent_kernel, bias
    factors = kernel.new_full((3 * cell.units,), recurrent_factor)
    factors[2 * cell.units :] = factor
    return kernel * factors, recurrent_kernel * factors, None if bias is None else bias * factors


def _input_dropout(layer: GRU, sequences: Tensor, mask: Tensor | None, training: bool):
    """Return Keras's mask (B,1,I), or three of them; None where Keras applies none."""
    cell = layer.cell
    # Keras skips its loop in this case, and with it the exception for a rate of 1.
    drops_everything = (
        cell.dropout == 1
        and mask is None
        and cell.reset_after
        and not cell.recurrent_dropout
        and layer.__dict__["use_cudnn"] == "auto"
    )
    if not training or not (0 < cell.dropout < 1 or drops_everything):
        return None
    # `keras.layers.RNN.call` has drawn the masks; the cell keeps them until the call ends.
    masks = cell.get_dropout_mask(sequences[:, 0, :])
    return tuple(one[:, None] for one in masks) if isinstance(masks, list) else masks[:, None]


def _recurrent_dropout(layer: GRU, state: Tensor, training: bool):
    """Return Keras's three masks (B,U); None where Keras applies none."""
    cell = layer.cell
    if not training or not 0 < cell.recurrent_dropout < 1 or cell.implementation != 1:
        return None
    return tuple(cell.get_recurrent_dropout_mask(state))


def _last_output(layer: GRU, outputs: Tensor, state: Tensor, mask: Tensor | None) -> Tensor:
    if layer.return_sequences:
        return outputs[:, -1]
    if mask is None:
        return state
    # Taken from the state, so that the backward pass needs no gradient (B,T,U) that is zero but for its last step.
    is_output = mask[:, 0 if layer.go_backwards else -1] if layer.zero_output_for_mask else mask.any(1)
    return torch.where(is_output[:, None], state, torch.zeros_like(state))
