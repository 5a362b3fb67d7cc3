"""`tritongru.GRUCell`: one step, with the behaviour of `tf.keras.layers.GRUCell` (v2.9)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..call.errors import check_backend
from .arguments import parse_dtype
from .base import RecurrentWeights
from .step import LastStep, run_step


class GRUCell(RecurrentWeights):
    """One step of the Gated Recurrent Unit; arguments: those of `tritongru.GRU` that concern one step.

    There are no `zoneout`, `gradient_clip`, `heads` and `activity_regularizer`, and nothing about sequences.

    Note:
        Dropout masks are kept from one call to the next, so that the steps of a sequence share them, until
        `reset_dropout_mask()` and `reset_recurrent_dropout_mask()`.

    Source: tf.keras.layers.GRUCell v2.9.

    >>> cell = GRUCell(4)
    >>> output, state = cell(torch.randn(2, 3), torch.zeros(2, 4))
    >>> output.shape, torch.equal(output, state)
    (torch.Size([2, 4]), True)
    """

    def __init__(
        self, units, activation="tanh", recurrent_activation="sigmoid", use_bias=True,
        kernel_initializer="glorot_uniform", recurrent_initializer="orthogonal", bias_initializer="zeros",
        kernel_regularizer=None, recurrent_regularizer=None, bias_regularizer=None, kernel_constraint=None,
        recurrent_constraint=None, bias_constraint=None, dropout=0.0, recurrent_dropout=0.0, reset_after=True, *,
        implementation=2, layer_norm=None, input_size=None, backend="auto", device=None, dtype=None, **options,
    ):  # fmt: skip
        super().__init__(
            units,
            activation=activation,
            recurrent_activation=recurrent_activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            recurrent_initializer=recurrent_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            recurrent_regularizer=recurrent_regularizer,
            bias_regularizer=bias_regularizer,
            kernel_constraint=kernel_constraint,
            recurrent_constraint=recurrent_constraint,
            bias_constraint=bias_constraint,
            dropout=dropout,
            recurrent_dropout=recurrent_dropout,
            reset_after=reset_after,
            implementation=implementation,
            input_size=input_size,
            device=device,
            dtype=dtype,
            options=options,
            layer_norm=layer_norm,
        )
        check_backend(backend)
        self.backend = backend
        self._last_step = LastStep()

    def get_initial_state(self, inputs: Tensor | None = None, batch_size: int | None = None, dtype=None) -> Tensor:
        """Return zeros (B,U), with B and the device of `inputs` if given."""
        if inputs is None and batch_size is None:
            raise ValueError("`inputs` or `batch_size` must be given, got None for both")
        batch = inputs.shape[0] if inputs is not None else batch_size
        device = inputs.device if inputs is not None else self.recurrent_kernel.device
        kind = self.compute_dtype if dtype is None else parse_dtype(dtype)[0]
        return torch.zeros(batch, self.units, dtype=kind, device=device)

    def initialize_parameters(self, inputs, *args, **kwargs) -> None:
        """Create the weights for `inputs`; torch's lazy modules call this before the first forward."""
        self._check_inputs(inputs)
        self.build(inputs.shape[-1])

    def forward(self, inputs, states, training=None):
        """Run one step.

        Args:
            inputs: (B,I). states: (B,U), or a list of it. training: as in `tritongru.GRU`.

        Returns:
            output (B,U); the new state (B,U), in a list if `states` was one.
        """
        training = self.training if training is None else bool(training)
        drops = training and (self.dropout or self.recurrent_dropout)
        if not drops and isinstance(states, Tensor):
            again = self._last_step.again(self, inputs, states, self.backend)
            if again is not None:
                return again
        self._check_inputs(inputs)
        x = self._to_input(inputs)
        nested = isinstance(states, (tuple, list))
        if nested and len(states) != 1:
            raise ValueError(f"`states` must be one state (B,U) or a list of it, got a list of {len(states)}")
        state = self._to_input(states[0] if nested else states, "states")
        if tuple(state.shape) != (x.shape[0], self.units):
            raise ValueError(f"`states` must have shape (B,U) = {(x.shape[0], self.units)}, got {tuple(state.shape)}")
        count = 3 if self.implementation == 1 else 1
        input_masks = self.get_dropout_mask_for_cell(x, training, count=count) if training else None
        state_masks = self.get_recurrent_dropout_mask_for_cell(state, training, count=count) if training else None
        new, decision = run_step(self, x, state, self._compute_weights(), input_masks, state_masks, self.backend)
        if not drops:
            self._last_step.remember(self, x, state, self.backend, decision)
        # Whoever writes into the output must not change the state.
        return new.clone(), ([new] if nested else new)

    def _check_inputs(self, inputs) -> None:
        if not hasattr(inputs, "shape"):
            raise TypeError(f"`inputs` must be a tensor (B,I), got {type(inputs).__name__}")
        if len(inputs.shape) != 2:
            raise ValueError(f"`inputs` must have shape (B,I), got {tuple(inputs.shape)}")
        if self.built and inputs.shape[1] != self.kernel.shape[0]:
            raise ValueError(f"`inputs` must have shape (B,{self.kernel.shape[0]}), got {tuple(inputs.shape)}")

    def get_config(self) -> dict:
        config = super().get_config()
        if self.backend != "auto":
            config["backend"] = self.backend
        return config
