"""`tritongru.GRU`: the layer with the behaviour of `tf.keras.layers.GRU` (v2.9)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import functional, repeats
from ..call.arguments import Arguments
from ..call.errors import check_backend
from ..call.tensors import check_gradient_clip
from ..call.zoneout import check_zoneout_rate, draw_zoneout
from ..dispatch import Decision
from . import jagged, regularizers
from .arguments import as_loss, as_steps, split_inputs
from .state import KeptState
from .step import LastStep


class GRU(KeptState):
    """The Gated Recurrent Unit (Cho et al. 2014) as a layer over sequences.

    z, r = g(x W + b + h R + c); n = f(x W_h + b_h + r * (h R_h + c_h)); h_t = z * h + (1 - z) * n

    Args:
        units: U, the size of the state.
        activation, recurrent_activation: f and g: names, callables, or None for linear.
        use_bias: whether there are b and c.
        kernel_initializer, recurrent_initializer, bias_initializer: `tritongru.keras.initializers`.
        kernel_regularizer, recurrent_regularizer, bias_regularizer: terms of `losses`.
        activity_regularizer: of each output of the last call, divided by the output's first size.
        kernel_constraint, recurrent_constraint, bias_constraint: applied by `apply_constraints()`.
        dropout, recurrent_dropout: rates for the input and for the state; one mask holds over a call's time steps.
        return_sequences: give the output of every step in place of the last.
        return_state: also give the final state.
        go_backwards: process from the last step to the first; a sequence of outputs stays in that order.
        stateful: begin each call with the state the last one ended with; no gradient flows across. Exporters, tracers
            and torch.func are refused, for they would lose it.
        unroll: changes no number; asks for at least one time step and no jagged input.
        time_major: sequences, masks and resets have time first.
        reset_after: apply the reset gate after the recurrent product (True) or before it.
        implementation: 1 draws one input mask per gate, 2 one for the three; recurrent dropout forces 1.
        zero_output_for_mask: masked steps give zeros in place of the previous output.
        zoneout: probability, for each unit and step, of keeping the old state in training; otherwise its mean is used.
        gradient_clip: bound of the gradient that each step passes to the state entering it; see `tritongru.gru`.
        layer_norm: None, "separate" or "joint" (`tritongru.LayerNorm`); the scales are the weight `layer_norm_scale`.
        heads: N; the recurrent kernel is N blocks (N,U/N,3U/N), equal to N GRUs of U/N units side by side.
        input_size: I; None builds at the first call.
        backend: "auto", or the one backend to use.
        dtype: a torch.dtype or its name; "mixed_float16" and "mixed_bfloat16" keep the weights in float32.
        options: Keras's further keyword arguments: name, trainable, weights, input_shape.

    Raises:
        TypeError, ValueError: a wrong argument, with its name and value.

    Source: tf.keras.layers.GRU v2.9.

    >>> layer = GRU(4, return_sequences=True, return_state=True)
    >>> outputs, state = layer(torch.randn(2, 5, 3))
    >>> outputs.shape, state.shape
    (torch.Size([2, 5, 4]), torch.Size([2, 4]))
    """

    def __init__(
        self, units, activation="tanh", recurrent_activation="sigmoid", use_bias=True,
        kernel_initializer="glorot_uniform", recurrent_initializer="orthogonal", bias_initializer="zeros",
        kernel_regularizer=None, recurrent_regularizer=None, bias_regularizer=None, activity_regularizer=None,
        kernel_constraint=None, recurrent_constraint=None, bias_constraint=None, dropout=0.0, recurrent_dropout=0.0,
        return_sequences=False, return_state=False, go_backwards=False, stateful=False, unroll=False,
        time_major=False, reset_after=True, *, implementation=2, zero_output_for_mask=False, zoneout=0.0,
        gradient_clip=None, layer_norm=None, heads=1, input_size=None, backend="auto", device=None, dtype=None,
        **options,
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
            heads=heads,
        )
        check_backend(backend)
        self.activity_regularizer = regularizers.get(activity_regularizer, "activity_regularizer")
        self.return_sequences, self.return_state = bool(return_sequences), bool(return_state)
        self.go_backwards, self.stateful = bool(go_backwards), bool(stateful)
        self.unroll, self.time_major = bool(unroll), bool(time_major)
        self.zero_output_for_mask, self.backend = bool(zero_output_for_mask), backend
        self.zoneout, self.gradient_clip = check_zoneout_rate(zoneout), check_gradient_clip(gradient_clip)
        self.supports_masking = True
        self.last_decision: Decision | None = None
        self._activity_losses: list[Tensor] = []
        self._last_step = LastStep()
        if options.get("batch_input_shape") is not None:
            self._set_batch(options["batch_input_shape"])

    @property
    def _time_axis(self) -> int:
        return 0 if self.time_major else 1

    def build(self, input_shape) -> None:
        """Create the weights, and the state if `stateful` and the shape (B,T,I), (T,B,I) if `time_major`, has B."""
        super().build(input_shape)
        # The base builds, from an integer, before the layer knows whether it is stateful.
        if not hasattr(input_shape, "__index__"):
            self._set_batch(input_shape)

    def initialize_parameters(self, inputs, *args, **kwargs) -> None:
        """Create the weights for `inputs`; torch's lazy modules call this before the first forward."""
        x, _ = split_inputs(inputs, None)
        self._check_rank(x)
        self.build(x.shape[-1])

    def forward(self, inputs, mask=None, training=None, initial_state=None, resets=None):
        """Run the layer.

        Args:
            inputs: (B,T,I), (T,B,I) if `time_major`, jagged (B,T*,I), or the list [inputs, initial_state].
            mask: (B,T), nonzero where a step is valid; (T,B) if `time_major`.
            training: whether dropout is on; None follows `self.training`.
            initial_state: (B,U), or a list of it. A stateful layer takes it only while its own state is all zero.
            resets: (B,T), nonzero where the state becomes zero before the step; no gradient crosses.

        Returns:
            (B,T,U), or (T,B,U) if `time_major`, if `return_sequences`, else (B,U); with `return_state` the pair of it
            and the final state (B,U).

        Raises:
            ValueError, TypeError: an argument of a wrong shape or kind.
            UnsupportedError: the named backend cannot run the call.
            RuntimeError: a stateful layer under what cannot carry its state; the message says the way.
        """
        if mask is None and resets is None and not torch.compiler.is_compiling():
            if (again := self._step_again(inputs, training, initial_state)) is not None:
                output, state = again
                if (known := self._last_step.known) is not None and known[1] is not self.last_decision:
                    self.last_decision = known[1]
                output = output.unsqueeze(self._time_axis) if self.return_sequences else output
                return (output, state) if self.return_state else output
            plain = self._plain_arguments(inputs, training, initial_state)
            kind = None if plain is None else repeats.kind_of(plain, self.backend)
            if plain is not None and (known := repeats.again(plain, kind)) is not None:
                return self._finish(plain, None, *known)
        arguments, rows = self._arguments(inputs, mask, training, initial_state, resets)
        outputs, state, decision = functional.run(arguments, self.backend)
        return self._finish(arguments, rows, outputs, state, decision)

    def _finish(
        self, arguments: Arguments, rows: jagged.Rows | None, outputs: Tensor, state: Tensor, decision: Decision
    ):
        """Return what `forward` returns, and keep what the layer keeps of a call."""
        output = self._select(outputs, state, arguments, rows)
        if self.activity_regularizer is not None:
            values = (output, state) if self.return_state else (output,)
            terms = [self.activity_regularizer(y.values() if jagged.is_jagged(y) else y) for y in values]
            self._activity_losses = [
                as_loss(term, "`activity_regularizer`") / y.shape[0] for term, y in zip(terms, values, strict=True)
            ]
        # Last, when nothing of the call can fail any more.
        if self.stateful:
            self._carried.keep(state, self.recurrent_kernel)
        if not torch.compiler.is_compiling():
            self.last_decision = decision
            if outputs.shape[self._time_axis] == 1:
                self._remember_step(arguments, decision)
        return (output, state) if self.return_state else output

    def _step_again(self, inputs, training, initial_state) -> tuple[Tensor, Tensor] | None:
        """Return output and state (B,U) after a call of one step that is like the last one, None for any other."""
        plain = self._last_step.known is not None and isinstance(inputs, Tensor) and inputs.dim() == 3
        if not plain or self.stateful or self.activity_regularizer is not None or inputs.shape[self._time_axis] != 1:
            return None
        training = self.training if training is None else training
        if training and (self.dropout or self.recurrent_dropout):
            return None
        x = inputs.select(self._time_axis, 0)
        state = x.new_zeros(x.shape[0], self.units) if initial_state is None else initial_state
        return self._last_step.again(self, x, state, self.backend) if isinstance(state, Tensor) else None

    def _remember_step(self, a: Arguments, decision: Decision) -> None:
        plain = a.mask is None and a.lengths is None and a.resets is None and not self.stateful
        if plain and a.input_dropout is None and a.recurrent_dropout is None:
            x = a.x.select(self._time_axis, 0)
            state = x.new_zeros(x.shape[0], self.units) if a.initial_state is None else a.initial_state
            self._last_step.remember(self, x, state, self.backend, decision)

    def _plain_arguments(self, inputs, training, initial_state) -> Arguments | None:
        """Return the arguments of `functional.run` for a call without dropout, state of the layer's own and so on.

        None for any other. That such a call is right is known where one of its kind went the whole way (`repeats`).
        """
        if self.stateful or not isinstance(inputs, Tensor) or inputs.dim() != 3:
            return None
        if (self.dropout or self.recurrent_dropout) and (self.training if training is None else training):
            return None
        if not (initial_state is None or isinstance(initial_state, Tensor)):
            return None
        weights = self._plain_weights()
        if weights is None:
            return None
        return Arguments(
            inputs, **weights, initial_state=initial_state, activation=self.activation,
            recurrent_activation=self.recurrent_activation, reset_after=self.reset_after,
            zero_output_for_mask=self.zero_output_for_mask, go_backwards=self.go_backwards, time_major=self.time_major,
            gradient_clip=self.gradient_clip,
        )  # type: ignore[arg-type]  # fmt: skip

    def explain(self, inputs, mask=None, training=None, initial_state=None, resets=None) -> Decision:
        """Return which backend would run this call, and every reason against the others; runs and changes nothing."""
        arguments, _ = self._arguments(inputs, mask, training, initial_state, resets, dry=True)
        return functional.explain_call(arguments, self.backend)

    def _arguments(self, inputs, mask, training, initial_state, resets, dry: bool = False):
        """Return the arguments of `functional.run` and, for a jagged input, its rows; draws no masks if `dry`."""
        training = self.training if training is None else bool(training)
        x, initial_state = split_inputs(inputs, initial_state)
        self._check_rank(x)
        x, lengths, rows = self._to_input(x), None, None
        if jagged.is_jagged(x):
            self._check_jagged(mask)
            x, rows = jagged.to_padded(x)
            lengths = rows.lengths
        if self.unroll and x.shape[self._time_axis] == 0:
            raise ValueError("Unrolling requires a fixed number of timesteps: `unroll=True` and `inputs` has T=0")
        state = self._begin(x, initial_state, dry)
        input_masks, state_masks = self._draw(x, training, dry)
        if self.built:
            weights = self._compute_weights()
        else:
            weights = {name: x.new_empty(shape) for name, shape in self.weight_shapes(x.shape[-1]).items()}
        arguments = Arguments(
            x, **weights, initial_state=state, activation=self.activation,
            recurrent_activation=self.recurrent_activation, reset_after=self.reset_after,
            mask=as_steps("mask", mask, x), lengths=lengths, resets=as_steps("resets", resets, x),
            input_dropout=input_masks, recurrent_dropout=state_masks,
            zero_output_for_mask=self.zero_output_for_mask, go_backwards=self.go_backwards, time_major=self.time_major,
            zoneout=draw_zoneout(x, self.units, self.zoneout, training and not dry), gradient_clip=self.gradient_clip,
            layer_norm=self._norm(),
        )  # fmt: skip
        return arguments, rows

    def _select(self, outputs: Tensor, state: Tensor, arguments: Arguments, rows: jagged.Rows | None) -> Tensor:
        """Return the layer's output of `outputs`, which are at the time index of the input."""
        axis, steps = self._time_axis, outputs.shape[self._time_axis]
        if self.return_sequences:
            if rows is not None:
                return (jagged.from_padded_reversed if self.go_backwards else jagged.from_padded)(outputs, rows)
            return outputs.flip(axis) if self.go_backwards else outputs
        if steps == 0:
            return torch.zeros_like(state)
        if arguments.mask is None and arguments.lengths is None:
            # Whoever writes into one of the two must not change the other.
            return state.clone() if self.return_state else state
        return outputs.select(axis, 0 if self.go_backwards else steps - 1)

    def _draw(self, x: Tensor, training: bool, dry: bool):
        """Return the input masks and the masks of the state: None, one, or one per gate."""
        if not training or not (self.dropout or self.recurrent_dropout):
            return None, None
        count = 3 if self.implementation == 1 else 1
        if dry:
            ones = [x.new_ones(()) for _ in range(count)]
            return (ones if self.dropout else None), (ones if self.recurrent_dropout else None)
        if not torch.compiler.is_compiling():
            self.reset_dropout_mask()
            self.reset_recurrent_dropout_mask()
        # By the public methods, so that whoever replaces one of them decides what is dropped.
        masks = self.get_dropout_mask_for_cell(x, training, count=count)
        if masks is not None:
            masks = [masks] if isinstance(masks, Tensor) else masks
            masks = [mask.unsqueeze(self._time_axis) if mask.dim() == 2 else mask for mask in masks]
        ones = x.new_ones(x.shape[1 - self._time_axis], self.units)
        return masks, self.get_recurrent_dropout_mask_for_cell(ones, training, count=count)

    def _check_rank(self, x) -> None:
        problem = f'Input 0 of layer "{self.name}" is incompatible with the layer: `inputs`:'
        if len(x.shape) != 3:
            raise ValueError(
                f"{problem} expected ndim=3, found ndim={len(x.shape)}. Full shape received: {tuple(x.shape)}"
            )
        if self.built and x.shape[-1] != self.kernel.shape[0]:
            raise ValueError(
                f"{problem} expected shape={(None, None, self.kernel.shape[0])}, found shape={tuple(x.shape)}"
            )

    def _check_jagged(self, mask) -> None:
        if mask is not None:
            raise ValueError(f"The `mask` that was passed in was {mask}, which cannot be applied to jagged inputs.")
        for name in ("unroll", "time_major"):
            if getattr(self, name):
                raise ValueError(f"`{name}=True` of layer {self.name} cannot be used with jagged inputs.")

    @property
    def losses(self) -> list[Tensor]:
        """The terms of the activity of the last call, one per output, then those of the weights."""
        return [*self._activity_losses, *super().losses]

    def compute_mask(self, inputs, mask=None):
        """Return the mask of the output: `mask` if `return_sequences`, else None; in a list if `return_state`."""
        mask = mask[0] if isinstance(mask, (tuple, list)) else mask
        output_mask = mask if self.return_sequences else None
        return [output_mask, None] if self.return_state else output_mask

    def compute_output_shape(self, input_shape):
        """Return the shape of the output for an input shape; a list of two if `return_state`."""
        shape = tuple(input_shape)
        state = (shape[1 - self._time_axis], self.units)
        output = (*shape[:2], self.units) if self.return_sequences else state
        return [output, state] if self.return_state else output

    def get_config(self) -> dict:
        config = super().get_config()
        names = ("return_sequences", "return_state", "go_backwards", "stateful", "unroll", "time_major")
        config |= {name: getattr(self, name) for name in names}
        config["activity_regularizer"] = regularizers.registry.describe(self.activity_regularizer)
        if self._batch_size is not None and self._given_input_size is not None:
            steps = (None, self._batch_size) if self.time_major else (self._batch_size, None)
            config["batch_input_shape"] = (*steps, self._given_input_size)
        if self.zero_output_for_mask:
            config["zero_output_for_mask"] = True
        if self.zoneout:
            config["zoneout"] = self.zoneout
        if self.gradient_clip is not None:  # 0 is a bound too
            config["gradient_clip"] = self.gradient_clip
        if self.backend != "auto":
            config["backend"] = self.backend
        return config

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._activity_losses = []
