"""`tritongru.Bidirectional`: a GRU in each direction, with the behaviour of `tf.keras.layers.Bidirectional` (v2.9)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.modules import module as modules

from .. import functional
from . import jagged
from .arguments import as_steps, split_inputs, take_options
from .layer import GRU
from .listing import WeightedLayer
from .state import unchanged_by_failure

MERGE_MODES = ("sum", "mul", "ave", "concat", None)


class Bidirectional(WeightedLayer, torch.nn.Module):
    """Runs a GRU forwards and another backwards over a sequence and merges their outputs.

    Args:
        layer: a `tritongru.GRU` or a subclass; both layers are made anew from its configuration, with weights of their
            own.
        merge_mode: "concat", "sum", "mul", "ave", or None for both outputs.
        backward_layer: a `tritongru.GRU` to use as it is for the other direction.
        weights: initial weights as of `set_weights`.
        options: Keras's `name`, `trainable`, and `input_shape` or `batch_input_shape`, by which the weights are made.

    Attributes:
        forward_layer, backward_layer: the two layers. Their `zero_output_for_mask` is set to `return_sequences`.

    Raises:
        ValueError: no GRU layer, an unknown merge mode, or two layers that do not fit.

    Source: tf.keras.layers.Bidirectional v2.9.

    >>> layer = Bidirectional(GRU(4, return_sequences=True))
    >>> layer(torch.randn(2, 5, 3)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(self, layer: GRU, merge_mode: str | None = "concat", backward_layer: GRU | None = None, weights=None,
                 **options):  # fmt: skip
        super().__init__()
        for argument, value in (("layer", layer), ("backward_layer", backward_layer)):
            if not isinstance(value, GRU) and (argument == "layer" or value is not None):
                raise ValueError(f"`{argument}` must be a tritongru.GRU layer, got {value!r}")
        if merge_mode not in MERGE_MODES:
            raise ValueError(f"Invalid merge mode. Received: `merge_mode`={merge_mode!r}; known: {MERGE_MODES}")
        self.merge_mode = merge_mode
        self.name, trainable, weights, input_size = take_options(
            options | {"weights": weights}, type(self).__name__, None
        )
        self.forward_layer = _recreate(layer, layer.go_backwards, "forward_")
        if backward_layer is None:
            self.backward_layer = _recreate(layer, not layer.go_backwards, "backward_")
        else:
            self.backward_layer = backward_layer
        self._has_own_backward_layer = backward_layer is not None
        self._verify()
        for each in self._parts:
            each.zero_output_for_mask = each.return_sequences
        if not trainable:
            self.trainable = False
        if input_size is not None:
            self.build(input_size)
        if weights is not None:
            self._start_with(weights)

    def _start_with(self, weights) -> None:
        """Set the weights, now or when they are made."""
        if all(layer.built for layer in self._parts):
            self.set_weights(weights)
            return
        for layer, half in zip(self._parts, (weights[: len(weights) // 2], weights[len(weights) // 2 :]), strict=True):
            if layer.built:
                layer.set_weights(half)
            else:
                layer._initial_weights = half

    @property
    def _parts(self) -> tuple[GRU, GRU]:
        return self.forward_layer, self.backward_layer

    def _verify(self) -> None:
        forward, backward = self._parts
        if forward.go_backwards == backward.go_backwards:
            raise ValueError(
                "Forward layer and backward layer should have different `go_backwards` value. "
                f"Received: go_backwards={forward.go_backwards} for both"
            )
        for name in ("stateful", "return_sequences", "return_state", "time_major"):
            values = getattr(forward, name), getattr(backward, name)
            if values[0] != values[1]:
                raise ValueError(
                    f"Forward layer and backward layer are expected to have the same value for `{name}`, "
                    f"got {values[0]} and {values[1]}"
                )
        if self.merge_mode in ("sum", "mul", "ave") and forward.units != backward.units:
            raise ValueError(
                f"`merge_mode`={self.merge_mode!r} merges outputs of equal size: the forward layer has "
                f"units={forward.units}, the backward layer units={backward.units}"
            )

    def forward(self, inputs, mask=None, training=None, initial_state=None, resets=None):
        """Run both layers.

        Args:
            inputs: as of the layer, or the list [inputs, h_forward, h_backward].
            mask, training: as of the layer.
            initial_state: [h_forward, h_backward], (B,U) each.
            resets: as of the forward layer; shifted by one step for the other, so that both see the same segments.

        Returns:
            the merged output, or the two outputs for `merge_mode=None`; with `return_state` followed by both states.
        """
        x, states = self._split(inputs, initial_state)
        if not self.stateful or torch.compiler.is_compiling():
            return self._run(x, mask, training, states, resets)
        # One layer may have gone on when the other fails.
        with unchanged_by_failure(*self._parts):
            return self._run(x, mask, training, states, resets)

    def _split(self, inputs, initial_state):
        """Return the input, and the states of both layers."""
        x, initial_state = split_inputs(inputs, initial_state)
        if initial_state is None:
            return x, (None, None)
        states = initial_state if isinstance(initial_state, (tuple, list)) else [initial_state]
        if len(states) % 2:
            raise ValueError(
                "When passing `initial_state` to a Bidirectional RNN, the state should be a list containing the "
                f"states of the underlying RNNs. Received: {initial_state}"
            )
        half = len(states) // 2
        return x, (list(states[:half]), list(states[half:]))

    def _run(self, x, mask, training, states, resets):
        forward, backward = self._parts
        shifted = None if resets is None else self._shift(as_steps("resets", resets, forward.recurrent_kernel))
        if self._can_run_at_once() and not _is_step(x, forward.time_major):
            y, y_rev = self._run_at_once(x, mask, training, states, (resets, shifted))
        else:
            y = forward(x, mask=mask, training=training, initial_state=states[0], resets=resets)
            y_rev = backward(x, mask=mask, training=training, initial_state=states[1], resets=shifted)
        final: tuple[Tensor, ...] = ()
        if forward.return_state:
            (y, h), (y_rev, h_rev) = y, y_rev
            final = (h, h_rev)
        if forward.return_sequences:
            axis = 0 if forward.time_major else 1
            y_rev = jagged.reverse_rows(y_rev) if jagged.is_jagged(y_rev) else y_rev.flip(axis)
        if self.merge_mode is None:
            return (y, y_rev, *final)
        merged = merge(y, y_rev, self.merge_mode)
        return (merged, *final) if final else merged

    def _can_run_at_once(self) -> bool:
        return all(map(_can_join, self._parts)) and self.forward_layer.backend == self.backward_layer.backend

    def _run_at_once(self, x, mask, training, states, resets) -> list[Any]:
        """Run both layers as one call; returns what each of them returns."""
        each = [
            layer._arguments(x, mask, training, state, starts)
            for layer, state, starts in zip(self._parts, states, resets, strict=True)
        ]
        results = functional.run_all([arguments for arguments, _ in each], self.forward_layer.backend)
        rest = zip(self._parts, each, results, strict=True)
        return [layer._finish(*given, *result) for layer, given, result in rest]

    def _shift(self, resets: Tensor) -> Tensor:
        # Before step t of one direction lies after step t of the other, hence before its neighbour.
        if resets.dim() < 2:
            raise ValueError(f"`resets` must have the shape of the steps, (B,T), got {tuple(resets.shape)}")
        axis = 0 if self.forward_layer.time_major else 1
        steps = resets.shape[axis]
        edge = torch.zeros_like(resets.narrow(axis, 0, min(1, steps)))
        if self.forward_layer.go_backwards:
            return torch.cat([edge, resets.narrow(axis, 0, max(steps - 1, 0))], axis)
        return torch.cat([resets.narrow(axis, min(1, steps), max(steps - 1, 0)), edge], axis)

    def build(self, input_shape) -> None:
        """Create the weights of both layers for an input size or shape."""
        for layer in self._parts:
            layer.build(input_shape)

    @property
    def return_sequences(self) -> bool:
        """As of the layers."""
        return self.forward_layer.return_sequences

    @property
    def return_state(self) -> bool:
        """As of the layers."""
        return self.forward_layer.return_state

    @property
    def stateful(self) -> bool:
        """As of the layers."""
        return self.forward_layer.stateful

    @property
    def supports_masking(self) -> bool:
        """True."""
        return True

    @property
    def states(self) -> list[Tensor | None]:
        """[forward, backward] kept states."""
        return [state for layer in self._parts for state in layer.states]

    def reset_states(self, states=None) -> None:
        """Set the kept states of both layers to zeros, or to `states`: [forward, backward], (B,U) each.

        Raises:
            AttributeError, ValueError: as of the layer; not two states. Then both states are as they were.
        """
        pair = [None, None] if states is None else states
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            count = len(pair) if isinstance(pair, (tuple, list)) else 1
            raise ValueError(
                f"Layer {self.name} expects 2 states, [forward, backward], but it received {count} state values. "
                f"States received: `states`={states}"
            )
        values = [layer._check_states(state) for layer, state in zip(self._parts, pair, strict=True)]
        for layer, value in zip(self._parts, values, strict=True):
            layer._carried.value = value

    @property
    def last_decision(self):
        """The forward layer's last decision."""
        return self.forward_layer.last_decision

    def explain(self, inputs, mask=None, training=None, initial_state=None, resets=None):
        """Return which backend would run the forward layer, whether both run at once, and why not on the others."""
        x, (state, *others) = self._split(inputs, initial_state)
        if not self._can_run_at_once():
            return self.forward_layer.explain(x, mask, training, state, resets)
        shifted = (
            None if resets is None else self._shift(as_steps("resets", resets, self.forward_layer.recurrent_kernel))
        )
        given = zip(self._parts, (state, *others), (resets, shifted), strict=True)
        calls = [layer._arguments(x, mask, training, h, starts, dry=True)[0] for layer, h, starts in given]
        return functional.explain_all(calls, self.forward_layer.backend)

    def compute_mask(self, inputs, mask=None):
        """Return the mask of each output, None for the states."""
        mask = mask[0] if isinstance(mask, (tuple, list)) else mask
        mask = mask if self.return_sequences else None
        masks = [mask, mask] if self.merge_mode is None else [mask]
        if self.return_state:
            masks += [None, None]
        return masks if len(masks) > 1 else masks[0]

    def compute_output_shape(self, input_shape):
        """Return the shape of each output for an input shape: one tuple, or a list."""
        shapes = [layer.compute_output_shape(input_shape) for layer in self._parts]
        (output, *state), (other, *last) = (shape if self.return_state else [shape] for shape in shapes)
        if self.merge_mode == "concat":
            output = (*output[:-1], output[-1] + other[-1])
        outputs = ([output, other] if self.merge_mode is None else [output]) + state + last
        return outputs if len(outputs) > 1 else outputs[0]

    def get_config(self) -> dict:
        """Return the constructor's arguments in Keras's forms."""
        config = {"name": self.name, "trainable": self.trainable, "merge_mode": self.merge_mode}
        forward, backward = self._parts
        config["layer"] = {"class_name": type(forward).__name__, "config": _original_config(forward, "forward_")}
        if self._has_own_backward_layer:
            config["backward_layer"] = {"class_name": type(backward).__name__, "config": backward.get_config()}
        return config

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict[str, type[GRU]] | None = None) -> Bidirectional:
        """Return a wrapper of this configuration, with fresh weights; the inverse of `get_config`.

        Args:
            custom_objects: subclasses of `tritongru.GRU` by their names.

        Raises:
            ValueError: a layer of another class.
        """
        config = {key: value for key, value in config.items() if key != "dtype"}
        classes = {"GRU": GRU, "CuDNNGRU": GRU} | (custom_objects or {})
        for key in ("layer", "backward_layer"):
            if config.get(key) is not None:
                name = config[key].get("class_name", "GRU")
                if name not in classes:
                    raise ValueError(f"Unknown layer: `{key}` is a {name!r}; name its class in `custom_objects`")
                config[key] = classes[name].from_config(dict(config[key]["config"]))
        return cls(**config)


def _can_join(layer: GRU) -> bool:
    """Return whether nothing looks at the call of a layer, or takes its place: it can be half of another call."""
    names = ("forward_pre_hooks", "forward_hooks", "backward_pre_hooks", "backward_hooks")
    watched = any(getattr(layer, f"_{name}") or getattr(modules, f"_global_{name}") for name in names)
    watched = watched or layer._compiled_call_impl is not None
    return layer.built and not watched and type(layer).forward is GRU.forward and "forward" not in layer.__dict__


def _is_step(x, time_major: bool) -> bool:
    # A step like the last one is not checked again, see step.py.
    return isinstance(x, Tensor) and x.dim() == 3 and x.shape[0 if time_major else 1] == 1


def merge(y: Tensor, y_rev: Tensor, merge_mode: str) -> Tensor:
    """Return the two outputs as one, both plain or both jagged with the same rows."""
    if jagged.is_jagged(y):
        return jagged.like(merge(y.values(), y_rev.values(), merge_mode), y)
    if merge_mode == "concat":
        return torch.cat([y, y_rev], dim=-1)
    if merge_mode == "mul":
        return y * y_rev
    return y + y_rev if merge_mode == "sum" else (y + y_rev) / 2


def _original_config(layer: GRU, prefix: str) -> dict:
    config = layer.get_config()
    return {**config, "name": config["name"].removeprefix(prefix)}


def _recreate(layer: GRU, go_backwards: bool, prefix: str) -> GRU:
    config = {**layer.get_config(), "go_backwards": go_backwards, "name": prefix + layer.name}
    with layer.recurrent_kernel.device:
        return type(layer).from_config(config)
