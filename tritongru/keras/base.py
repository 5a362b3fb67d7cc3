"""What a GRU layer and a GRU cell share: arguments, weights, regularizers, constraints, configuration."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import Parameter, UninitializedParameter, is_lazy
from torch.nn.utils.parametrize import is_parametrized

from .. import activations
from ..call.arguments import LayerNorm
from ..call.errors import check_heads, check_norm_name, check_units
from . import constraints, initializers, regularizers
from .arguments import (
    HALF_POLICIES,
    as_loss,
    as_weight,
    check_implementation,
    clamp_rate,
    parse_dtype,
    take_options,
    to_tensor,
)
from .dropout import DropoutMasks
from .listing import WeightedLayer


class RecurrentWeights(WeightedLayer, LazyModuleMixin, DropoutMasks, torch.nn.Module):
    """The weights of one GRU, built lazily, with everything Keras attaches to them.

    Attributes:
        kernel: (I,3U). recurrent_kernel: (U,3U). bias: (2,3U) if reset_after, else (3U,), or None. Gates z, r, h.
    """

    kernel: Parameter
    recurrent_kernel: Parameter
    bias: Parameter | None
    zoneout: float = 0.0
    gradient_clip: float | None = None
    layer_norm_scale: Parameter | None
    layer_norm_scale_initializer = initializers.Ones()
    layer_norm_scale_regularizer = layer_norm_scale_constraint = None

    def __init__(
        self, units, *, activation, recurrent_activation, use_bias, kernel_initializer, recurrent_initializer,
        bias_initializer, kernel_regularizer, recurrent_regularizer, bias_regularizer, kernel_constraint,
        recurrent_constraint, bias_constraint, dropout, recurrent_dropout, reset_after, implementation, input_size,
        device, dtype, options, layer_norm=None, heads=1,
    ):  # fmt: skip
        # torch warns of every lazy module that the feature is new; a user of this layer cannot act on it.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            super().__init__()  # pyright: ignore[reportAttributeAccessIssue]
        self.units = check_units(units)
        self.activation = activations.resolve(activation, "activation").function
        self.recurrent_activation = activations.resolve(recurrent_activation, "recurrent_activation").function
        self.use_bias, self.reset_after = bool(use_bias), bool(reset_after)
        self.heads = check_heads(heads, self.units, layer_norm)
        self.layer_norm = check_norm_name(layer_norm, self.reset_after)
        self.kernel_initializer = initializers.get(kernel_initializer, "kernel_initializer")
        self.recurrent_initializer = initializers.get(recurrent_initializer, "recurrent_initializer")
        self.bias_initializer = initializers.get(bias_initializer, "bias_initializer")
        self.kernel_regularizer = regularizers.get(kernel_regularizer, "kernel_regularizer")
        self.recurrent_regularizer = regularizers.get(recurrent_regularizer, "recurrent_regularizer")
        self.bias_regularizer = regularizers.get(bias_regularizer, "bias_regularizer")
        self.kernel_constraint = constraints.get(kernel_constraint, "kernel_constraint")
        self.recurrent_constraint = constraints.get(recurrent_constraint, "recurrent_constraint")
        self.bias_constraint = constraints.get(bias_constraint, "bias_constraint")
        self.dropout = clamp_rate("dropout", dropout)
        self.recurrent_dropout = clamp_rate("recurrent_dropout", recurrent_dropout)
        self.implementation = check_implementation(implementation, self.recurrent_dropout)
        variable_dtype, self._policy = parse_dtype(dtype)

        self.name, trainable, self._initial_weights, input_size = take_options(options, type(self).__name__, input_size)
        self._given_input_size = input_size
        present = {"kernel": True, "recurrent_kernel": True, "bias": self.use_bias, "layer_norm_scale": self.layer_norm}
        for name, is_there in present.items():
            empty = UninitializedParameter(requires_grad=trainable, device=device, dtype=variable_dtype)
            self.register_parameter(name, empty if is_there else None)
        if input_size is not None:
            self.build(input_size)
            for hook in ("_initialize_hook", "_load_hook"):
                getattr(self, hook).remove()
                delattr(self, hook)

    @property
    def _parts(self) -> tuple[RecurrentWeights, ...]:
        return (self,)

    @property
    def built(self) -> bool:
        """Whether the weights exist."""
        # A lazy module is built before it is traced, and the question itself cannot be.
        return torch.compiler.is_compiling() or not any(is_lazy(p) for p in self._parameters.values())

    @property
    def input_size(self) -> int | None:
        """The number of input features, None until built."""
        return self.kernel.shape[0] if self.built else None

    def weight_shapes(self, input_size: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of each weight, in Keras's order."""
        G = 3 * self.units
        shapes: dict[str, tuple[int, ...]] = {"kernel": (input_size, G), "recurrent_kernel": (self.units, G)}
        if self.heads > 1:
            shapes["recurrent_kernel"] = (self.heads, self.units // self.heads, G // self.heads)
        if self.use_bias:
            shapes["bias"] = (2, G) if self.reset_after else (G,)
        if self.layer_norm:
            shapes["layer_norm_scale"] = (2, G) if self.layer_norm == "separate" else (G,)
        return shapes

    def build(self, input_shape) -> None:
        """Create the weights for an input size, or for an input shape whose last entry it is; once only."""
        is_shape = isinstance(input_shape, Sequence) and not isinstance(input_shape, str) and len(input_shape) > 0
        input_size: Any = input_shape[-1] if is_shape else input_shape
        if not hasattr(input_size, "__index__") or input_size.__index__() < 1:
            of_shape = f" in {input_shape!r}" if is_shape else ""
            raise ValueError(f"`input_size` must be a positive integer, got {input_size!r}{of_shape}")
        input_size = input_size.__index__()
        shapes = self.weight_shapes(input_size)
        if not self.built:
            with torch.no_grad():
                for name, shape in shapes.items():
                    if is_lazy(parameter := getattr(self, name)):
                        parameter.materialize(shape)
            self.reset_parameters()
            if self._initial_weights is not None:
                self.set_weights(self._initial_weights)
                self._initial_weights = None
        for name, shape in shapes.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise ValueError(f"`{name}` of layer {self.name} must have shape {shape}, got {found}")

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights again from their initializers; nothing before they are built."""
        for name, parameter in self._named_weights():
            init = getattr(self, name.replace("_kernel", "") + "_initializer")
            # Orthogonal matrices need a QR factorisation, which has no half precision form.
            dtype = torch.float32 if parameter.dtype in (torch.float16, torch.bfloat16) else parameter.dtype
            # Heads are drawn one by one: each is a GRU of its own.
            heads, shape = parameter.shape[:-2] if parameter.dim() == 3 else (), tuple(parameter.shape[-2:])
            values = [initializers.draw(init, shape, dtype, parameter.device) for _ in range(*heads or (1,))]
            self._write(name, torch.stack(values) if heads else values[0])

    def _write(self, name: str, value: Tensor) -> None:
        """Make `value` the weight `name`, through the inverse of its parametrization where it has one."""
        if not is_parametrized(self, name):
            getattr(self, name).copy_(value)
            return
        try:
            setattr(self, name, value.to(getattr(self, name)))
        except (RuntimeError, AttributeError) as error:
            raise ValueError(f"`{name}` of {self.name} cannot be set through its parametrization: {error}") from error

    def _named_weights(self) -> list[tuple[str, Parameter]]:
        if not self.built:
            return []
        return [(name, getattr(self, name)) for name in self.weight_shapes(self.kernel.shape[0])]

    @property
    def state_size(self) -> int:
        """U."""
        return self.units

    @property
    def output_size(self) -> int:
        """U."""
        return self.units

    @property
    def variable_dtype(self) -> torch.dtype:
        """The dtype of the weights and of a kept state."""
        return self.recurrent_kernel.dtype

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of the computation and of the outputs: half under a mixed policy, else that of the weights."""
        return HALF_POLICIES.get(self._policy, self.variable_dtype)

    def _compute_weights(self) -> dict[str, Tensor | None]:
        dtype = self.compute_dtype
        return {
            "kernel": self.kernel.to(dtype),
            "recurrent_kernel": self.recurrent_kernel.to(dtype),
            "bias": None if self.bias is None else self.bias.to(dtype),
        }

    def _plain_weights(self) -> dict[str, Tensor | None] | None:
        """Return what `_compute_weights` does where the weights are taken as they are, and the cell is the plain GRU.

        None for any other: in half precision, behind a parametrization, with zoneout, norms or heads.
        """
        weights = self._parameters
        if self.zoneout or self.layer_norm is not None or self.heads > 1 or self._policy in HALF_POLICIES:
            return None
        if "kernel" not in weights or "recurrent_kernel" not in weights or "bias" not in weights:
            return None
        return {name: weights[name] for name in ("kernel", "recurrent_kernel", "bias")}

    def _norm(self) -> LayerNorm | str | None:
        """Return the argument `layer_norm` of `tritongru.gru`; before the scales exist their kind alone."""
        if self.layer_norm is None or not self.built:
            return self.layer_norm
        assert self.layer_norm_scale is not None
        return LayerNorm(self.layer_norm, self.layer_norm_scale.to(self.compute_dtype))

    def _to_input(self, value, name: str = "inputs") -> Tensor:
        """Return `value` as a tensor of the compute dtype; TypeError unless it is floating point."""
        value = to_tensor(name, value, self.recurrent_kernel.device)
        if not value.is_floating_point():
            raise TypeError(f"`{name}` must be floating point, got {value.dtype}")
        return value.to(self.compute_dtype)

    def _is_trained(self, name: str) -> bool:
        """Return whether a weight asks for a gradient, by itself or by what a parametrization makes it of."""
        if name in self._parameters:
            return self._parameters[name].requires_grad  # type: ignore[union-attr]
        makers = getattr(self, "parametrizations", {})
        made_of = makers[name] if name in makers else self
        return any(parameter.requires_grad for parameter in made_of.parameters())

    @property
    def losses(self) -> list[Tensor]:
        """The regularization terms: of the kernel, the recurrent kernel and the bias, those that have one."""
        terms = []
        for name, parameter in self._named_weights():
            regularizer = getattr(self, name.replace("_kernel", "") + "_regularizer")
            if regularizer is not None:
                found = [as_loss(regularizer(head), f"regularizer of `{name}`") for head in _heads_of(parameter)]
                terms.append(torch.as_tensor(sum(found), dtype=parameter.dtype, device=parameter.device))
        return terms

    @torch.no_grad()
    def apply_constraints(self) -> None:
        """Project each weight that is trained onto its constraint; to be called after `optimizer.step()`."""
        for name, parameter in self._named_weights():
            constraint = getattr(self, name.replace("_kernel", "") + "_constraint")
            if constraint is not None and self._is_trained(name):
                values = [as_weight(constraint(head), head, name) for head in _heads_of(parameter)]
                self._write(name, torch.stack(values) if parameter.dim() == 3 else values[0])

    def get_config(self) -> dict:
        """Return the constructor's arguments in Keras's names and forms.

        A custom callable stands in it as itself, so that `from_config` gives an equal layer.
        """
        policy = self._policy
        dtype = str(self.variable_dtype).removeprefix("torch.")
        config = {
            "name": self.name,
            "trainable": self.trainable,
            "dtype": dtype if policy is None else {"class_name": "Policy", "config": {"name": policy}},
            "units": self.units,
            "activation": activations.describe(self.activation),
            "recurrent_activation": activations.describe(self.recurrent_activation),
            "use_bias": self.use_bias,
        }
        for module, kind in ((initializers, "initializer"), (regularizers, "regularizer"), (constraints, "constraint")):
            for weight in ("kernel", "recurrent", "bias"):
                key = f"{weight}_{kind}"
                config[key] = module.registry.describe(getattr(self, key))
        config |= {
            "dropout": self.dropout,
            "recurrent_dropout": self.recurrent_dropout,
            "implementation": self.implementation,
            "reset_after": self.reset_after,
        }
        if self._given_input_size is not None:
            config["batch_input_shape"] = (None, None, self._given_input_size)
        if self.layer_norm:
            config["layer_norm"] = self.layer_norm
        if self.heads > 1:
            config["heads"] = self.heads
        return config

    @classmethod
    def from_config(cls, config: dict):
        """Return a layer of this configuration, with fresh weights; the inverse of `get_config`."""
        # As Keras does, in the caller's dict: mode 0 of old configurations stands for 1.
        if config.get("implementation") == 0:
            config["implementation"] = 1
        return cls(**config)

    def __getstate__(self) -> dict:
        # A kept activity loss belongs to one call and may hold a graph, which cannot be copied.
        state = self.__dict__.copy()
        state.pop("_activity_losses", None)
        if not self.built:
            state["_unbuilt"] = (self.kernel.device, self.kernel.dtype)
        return state

    def __setstate__(self, state: dict) -> None:
        state = dict(state)
        # torch pickles an uninitialized parameter without its device and dtype.
        device, dtype = state.pop("_unbuilt", (None, None))
        super().__setstate__(state)
        for name, parameter in self._parameters.items():
            if dtype is not None and is_lazy(parameter) and parameter.dtype != dtype:
                self._parameters[name] = UninitializedParameter(parameter.requires_grad, device, dtype)

    def _replicate_for_data_parallel(self):
        # The lazy mixin refuses this for good; once built, this is a module like any other.
        if not self.built:
            return LazyModuleMixin._replicate_for_data_parallel(self)  # type: ignore[arg-type]
        return torch.nn.Module._replicate_for_data_parallel(self)

    def extra_repr(self) -> str:
        """The sizes, for `repr`."""
        return f"{self.input_size}, {self.units}, reset_after={self.reset_after}"


def _heads_of(weight: Tensor) -> tuple[Tensor, ...]:
    """Return each head of a weight with an axis of them, else the weight alone."""
    return weight.unbind(0) if weight.dim() == 3 else (weight,)
