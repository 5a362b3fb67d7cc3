"""Keras 3's activations as this package's, which know their derivatives and so have a fast scan."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import keras

from ..activations import TABLE


class Known(NamedTuple):
    """An activation f(x) = g(factor * x), with g the activation of this package that has the `name`.

    Attributes:
        is_fast: whether g's derivative is a function of its output, which all backends but the reference need.
    """

    name: str
    is_fast: bool
    factor: float = 1.0


# Both packages mean the same by these names.
_SAME = (
    "linear", "tanh", "sigmoid", "relu", "leaky_relu", "elu", "selu", "softplus", "softsign", "exponential", "swish",
    "gelu", "mish", "softmax",
)  # fmt: skip
_KNOWN: dict[Callable, Known] = {
    keras.activations.get(name): Known(name, TABLE[name].derivative is not None) for name in _SAME
}
# Keras 3's is clip(x / 6 + 1/2, 0, 1), Keras 2's and this package's clip(x / 5 + 1/2, 0, 1).
_KNOWN[keras.activations.hard_sigmoid] = Known("hard_sigmoid", True, 5 / 6)


def find(function: Callable) -> Known | None:
    """Return what this package calls a Keras activation, or None for a function it does not know."""
    # Keras gives one function per name; an activation may also be a layer or another callable, which has no hash.
    return _KNOWN.get(function) if getattr(function, "__hash__", None) else None
