"""The state a stateful layer keeps from one call to the next, in the manner of Keras."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from .arguments import for_autograd
from .base import RecurrentWeights


class KeptState(RecurrentWeights):
    """Weights together with a state that lasts from call to call, where `stateful`.

    Attributes:
        _state: (B,U) in the dtype of the weights, None before the batch size is known. A buffer outside of state_dict.
        _batch_size: B where it was given beforehand.
    """

    stateful: bool
    time_major: bool
    _state: Tensor | None
    _batch_size: int | None = None

    def _set_batch(self, input_shape) -> None:
        shape = tuple(input_shape)
        batch = shape[1 - self._time_axis] if len(shape) == 3 else None
        if not self.stateful or batch is None or self._state is not None:
            return
        self._batch_size = batch
        like = self.recurrent_kernel
        self._state = torch.zeros(batch, self.units, dtype=like.dtype, device=like.device)

    def _begin(self, x: Tensor, initial_state, dry: bool) -> Tensor | None:
        """Return the state the call begins with, (B,U) in the dtype of `x`, or None for zeros."""
        batch = x.shape[1 - self._time_axis]
        if initial_state is not None:
            initial_state = self._check_initial_state(initial_state, batch).to(x.dtype)
        if not self.stateful:
            return initial_state
        if self._state is None:
            if not dry:
                self._state = x.new_zeros(batch, self.units, dtype=self.variable_dtype)
            return initial_state
        if self._state.shape[0] != batch:
            steps = (None, self._state.shape[0]) if self.time_major else (self._state.shape[0], None)
            raise ValueError(
                f'Input 0 of layer "{self.name}" is incompatible with the layer: `stateful=True` and `inputs`: '
                f"expected shape={(*steps, x.shape[-1])}, found shape={tuple(x.shape)}"
            )
        recorded = for_autograd(self._state.to(x.dtype))
        if initial_state is None:
            return recorded
        if torch.compiler.is_compiling():
            return torch.where((self._state != 0).any(), recorded, initial_state)
        if not bool((self._state != 0).any()):
            return initial_state
        if not dry:
            warnings.warn(
                f"`initial_state` of the stateful layer {self.name} is ignored: its own state is not zero; "
                "call `reset_states()` first",
                UserWarning,
                stacklevel=5,
            )
        return recorded

    @property
    def states(self) -> list[Tensor | None]:
        """[the kept state (B,U)] of a stateful layer after its first call, else [None]."""
        return [self._state]

    def get_initial_state(self, inputs) -> list[Tensor]:
        """Return [zeros (B,U)] for `inputs` (B,T,I), (T,B,I) if `time_major`: what a call begins with by default."""
        batch = inputs.shape[1 - self._time_axis]
        return [torch.zeros(batch, self.units, dtype=self.compute_dtype, device=inputs.device)]

    @torch.no_grad()
    def reset_states(self, states=None) -> None:
        """Set the kept state to zeros, or to `states`: (B,U) or a list of it.

        Raises:
            AttributeError: the layer is not stateful.
            ValueError: the batch size is not known before the first call; a wrong count or shape of states.
        """
        if not self.stateful:
            raise AttributeError(f"Layer must be stateful: layer {self.name} has `stateful=False`.")
        if self._state is None:
            raise ValueError(
                f"If a RNN is stateful, it needs to know its batch size: call layer {self.name} once before "
                "`reset_states()`."
            )
        if states is None:
            self._state = torch.zeros_like(self._state)
            return
        states = list(states) if isinstance(states, (tuple, list)) else [states]
        if len(states) != 1:
            raise ValueError(
                f"Layer {self.name} expects 1 states, but it received {len(states)} state values. "
                f"States received: `states`={states}"
            )
        value = states[0] if isinstance(states[0], Tensor) else torch.as_tensor(np.asarray(states[0]))
        if value.shape != self._state.shape:
            raise ValueError(
                f"State 0 is incompatible with layer {self.name}: expected shape={tuple(self._state.shape)} "
                f"but found `states` of shape={tuple(value.shape)}"
            )
        self._state = value.detach().to(self._state).clone()

    def _check_initial_state(self, value, batch: int) -> Tensor:
        if isinstance(value, (tuple, list)):
            if len(value) != 1:
                raise ValueError(
                    f"Layer has 1 states but was passed {len(value)} initial states. Received: `initial_state`={value}"
                )
            value = value[0]
        value = self._to_input(value, "initial_state")
        if tuple(value.shape) != (batch, self.units):
            raise ValueError(
                f"An `initial_state` was passed that is not compatible with the layer: expected shape (B,U) = "
                f"{(batch, self.units)}, got {tuple(value.shape)}"
            )
        return value
