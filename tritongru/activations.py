"""Activations by name: the function, its derivative written in its own output, and the kernels' number for it.

The reverse scan keeps gates, not pre-activations, so a kernel can run an activation only if its derivative is a
function of its output. Those that are not (gelu, swish, mish, softmax, any callable) run on the reference backend.

Source: the names and formulas of `tf.keras.activations` (v2.9); `hard_sigmoid` is Keras 2's `clip(0.2 x + 0.5, 0, 1)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SELU_ALPHA = 1.6732632423543772  # Klambauer et al. 2017, equation 14
SELU_SCALE = 1.0507009873554805
LEAKY_SLOPE = 0.2  # tf.nn.leaky_relu's default


def linear(x: Tensor) -> Tensor:
    """x"""
    return x


def relu(x: Tensor) -> Tensor:
    """max(x, 0)"""
    return torch.relu(x)


def leaky_relu(x: Tensor) -> Tensor:
    """x if x > 0 else 0.2 x"""
    return F.leaky_relu(x, LEAKY_SLOPE)


def elu(x: Tensor) -> Tensor:
    """x if x > 0 else exp(x) - 1"""
    return F.elu(x)


def selu(x: Tensor) -> Tensor:
    """scale * (x if x > 0 else alpha (exp(x) - 1))"""
    return torch.selu(x)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x))"""
    # logaddexp is exact everywhere; F.softplus switches to the identity above 20.
    return torch.logaddexp(x, torch.zeros((), dtype=x.dtype, device=x.device))


def softsign(x: Tensor) -> Tensor:
    """x / (1 + |x|)"""
    return F.softsign(x)


def swish(x: Tensor) -> Tensor:
    """x sigmoid(x)"""
    return F.silu(x)


silu = swish


def gelu(x: Tensor) -> Tensor:
    """x Phi(x), the exact form"""
    return F.gelu(x)


def mish(x: Tensor) -> Tensor:
    """x tanh(softplus(x))"""
    return F.mish(x)


def exponential(x: Tensor) -> Tensor:
    """exp(x)"""
    return torch.exp(x)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))"""
    return torch.sigmoid(x)


def hard_sigmoid(x: Tensor) -> Tensor:
    """clip(0.2 x + 0.5, 0, 1), as Keras 2 defines it"""
    return torch.clamp(0.2 * x + 0.5, 0.0, 1.0)


def tanh(x: Tensor) -> Tensor:
    """(1 - exp(-2x)) / (1 + exp(-2x))"""
    return torch.tanh(x)


def softmax(x: Tensor) -> Tensor:
    """exp(x) / sum(exp(x)) over the last axis, the units"""
    return torch.softmax(x, dim=-1)


@dataclass(frozen=True)
class Activation:
    """One named activation.

    Attributes:
        function: x -> y, elementwise unless softmax.
        derivative: y -> dy/dx, or None where the output does not determine it.
        kernel_id: the constant the Triton kernels branch on, or None where they cannot run it.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor] | None = None
    kernel_id: int | None = None


def _one(y: Tensor) -> Tensor:
    return torch.ones_like(y)


# Not `where` with a number: on a GPU it copies the number there, and the host waits.
def _elu_derivative(y: Tensor) -> Tensor:
    return (y + 1).masked_fill(y > 0, 1.0)


def _selu_derivative(y: Tensor) -> Tensor:
    return (y + SELU_SCALE * SELU_ALPHA).masked_fill(y > 0, SELU_SCALE)


def _leaky_relu_derivative(y: Tensor) -> Tensor:
    return torch.full_like(y, LEAKY_SLOPE).masked_fill(y > 0, 1.0)


# kernel_id: the same numbers as in kernels/gates.py.
TABLE: dict[str, Activation] = {
    entry.name: entry
    for entry in (
        Activation("linear", linear, _one, 0),
        Activation("tanh", tanh, lambda y: 1 - y * y, 1),
        Activation("sigmoid", sigmoid, lambda y: y * (1 - y), 2),
        Activation("relu", relu, lambda y: (y > 0).to(y.dtype), 3),
        Activation("hard_sigmoid", hard_sigmoid, lambda y: 0.2 * ((y > 0) & (y < 1)).to(y.dtype), 4),
        Activation("elu", elu, _elu_derivative, 5),
        Activation("selu", selu, _selu_derivative, 6),
        Activation("softplus", softplus, lambda y: -torch.expm1(-y), 7),
        Activation("softsign", softsign, lambda y: (1 - y.abs()) ** 2, 8),
        Activation("exponential", exponential, lambda y: y, 9),
        Activation("leaky_relu", leaky_relu, _leaky_relu_derivative, 10),
        Activation("swish", swish),
        Activation("gelu", gelu),
        Activation("mish", mish),
        Activation("softmax", softmax),
    )
}
_ALIASES = {"silu": "swish"}

# Well-known callables that mean exactly a named activation.
_CALLABLES: dict[object, str] = {
    torch.tanh: "tanh",
    torch.sigmoid: "sigmoid",
    torch.relu: "relu",
    F.relu: "relu",
    torch.exp: "exponential",
    torch.selu: "selu",
    torch.special.expit: "sigmoid",
    F.tanh: "tanh",
    F.sigmoid: "sigmoid",
    F.elu: "elu",
    F.selu: "selu",
    F.softsign: "softsign",
    F.silu: "swish",
    F.gelu: "gelu",
    F.mish: "mish",
    **{entry.function: entry.name for entry in TABLE.values()},
}
_MODULES: dict[type, str] = {
    torch.nn.Tanh: "tanh",
    torch.nn.Sigmoid: "sigmoid",
    torch.nn.ReLU: "relu",
    torch.nn.Identity: "linear",
    torch.nn.SiLU: "swish",
    torch.nn.SELU: "selu",
    torch.nn.Softsign: "softsign",
    torch.nn.Mish: "mish",
}


def resolve(identifier: str | Callable | dict | None, argument: str = "activation") -> Activation:
    """Return the `Activation` that `identifier` names.

    Args:
        identifier: a name, None (linear), a callable, or a serialised form of `serialize`.
        argument: the argument's name, for the error messages.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a name, a callable, nor None.
    """
    if identifier is None:
        return TABLE["linear"]
    if isinstance(identifier, dict):
        # Keras 3 writes a function as {"class_name": "function", "config": its name}.
        config = identifier.get("config")
        identifier = config if isinstance(config, str) else identifier.get("class_name")
    if isinstance(identifier, str):
        name = _ALIASES.get(identifier, identifier)
        if name not in TABLE:
            raise ValueError(f"Unknown activation function: `{argument}`={identifier!r}; known: {', '.join(TABLE)}")
        return TABLE[name]
    if callable(identifier):
        # Asked of the type, and by None: of an object the compilers of torch up to 2.13 cannot ask one or the other.
        known = _CALLABLES.get(identifier) if type(identifier).__hash__ is not None else None
        known = known or _MODULES.get(type(identifier))
        return TABLE[known] if known else Activation(_name_of(identifier), identifier)
    raise TypeError(f"Could not interpret activation function identifier: `{argument}`={identifier!r}")


def _name_of(function: Callable) -> str:
    """Return a name for a callable of the caller's own: none of the table's, by which backends tell activations."""
    name = getattr(function, "__name__", type(function).__name__)
    return f"another {name}" if name in TABLE else name


def get(identifier: str | Callable | dict | None) -> Callable[[Tensor], Tensor]:
    """Return the function that `identifier` names (Keras's `activations.get`).

    >>> get("hard_sigmoid")(torch.tensor([0.0, 9.0]))
    tensor([0.5000, 1.0000])
    """
    return resolve(identifier).function


@dataclass(frozen=True, eq=False)
class Checked:
    """A callable of the caller's own, which says so where it gives something else than a tensor like its input.

    Attributes:
        argument: the name it was given as, for the error messages.

    Raises, when it is called:
        TypeError: it gave no tensor. ValueError: a tensor of another shape, dtype or device; but under autocast, which
            casts inside of functions, a floating dtype is cast back.
    """

    function: Callable[[Tensor], Tensor]
    argument: str

    def __call__(self, x: Tensor) -> Tensor:
        y = self.function(x)
        if isinstance(y, Tensor) and y.dtype != x.dtype and y.is_floating_point() and _is_autocast(x):
            y = y.to(x.dtype)
        if isinstance(y, Tensor) and y.shape == x.shape and y.dtype == x.dtype and y.device == x.device:
            return y
        name = getattr(self.function, "__name__", type(self.function).__name__)
        start = f"`{self.argument}`={name} must return a tensor like its input, {_likeness(x)}; it returned"
        if not isinstance(y, Tensor):
            raise TypeError(f"{start} {'None' if y is None else type(y).__name__}")
        raise ValueError(f"{start} {_likeness(y)}")


def _is_autocast(x: Tensor) -> bool:
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def _likeness(x: Tensor) -> str:
    return f"{tuple(x.shape)} of {x.dtype} on {x.device}"


def serialize(function: Callable | str | None) -> str:
    """Return the name of an activation; ValueError for a callable that has none in this module."""
    name = describe(function)
    if not isinstance(name, str):
        raise ValueError(f"Cannot serialize the activation {function!r}: it is not one of {', '.join(TABLE)}")
    return name


def describe(function: Callable | str | None) -> str | Callable:
    """Return the name of an activation of this module, else the callable itself: what a configuration holds."""
    entry = resolve(function)
    return entry.name if TABLE.get(entry.name) is entry else entry.function


def deserialize(name: str | dict, custom_objects: dict[str, Callable] | None = None) -> Callable[[Tensor], Tensor]:
    """Return the function a serialised `name` stands for; `custom_objects` is asked first."""
    if custom_objects and isinstance(name, str) and name in custom_objects:
        return custom_objects[name]
    return get(name)
