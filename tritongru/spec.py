"""The vocabulary of a GRU call: its sizes, its variant, its errors, and the checks of plain arguments.

Floor 0: imports nothing of this package, so every other module may use it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

BACKENDS = ("triton", "aten", "eager", "reference")
LAYOUTS = ("keras", "torch")
PRECISIONS = ("auto", "ieee", "tf32", "tf32x3", "bf16x3")


class UnsupportedError(RuntimeError):
    """A backend was named that cannot run this call.

    Attributes:
        rejected: dict from backend name to the tuple of its reasons, each naming the argument and its value.
    """

    def __init__(self, message: str, rejected: dict[str, tuple[str, ...]] | None = None):
        super().__init__(message)
        self.rejected = dict(rejected or {})


class ExchangeError(RuntimeError):
    """Programs of a persistent kernel waited longer than the bound for each other: the result is not valid."""


class FallbackWarning(RuntimeWarning):
    """`backend="auto"` wanted the Triton kernels and could not have them; the message names the cause.

    `warnings.simplefilter("error", tritongru.FallbackWarning)` makes it an error.
    """


@dataclass(frozen=True)
class Shape:
    """Sizes of one call: batch B, time T, input I, units U."""

    batch: int
    time: int
    input: int
    units: int


@dataclass(frozen=True)
class Variant:
    """What distinguishes one GRU from another, beyond its sizes: everything a kernel is specialised on."""

    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"
    reset_after: bool = True
    zero_output_for_mask: bool = False
    reverse: bool = False
    reset_gate_first: bool = False  # gate order r, z, h (torch) in place of z, r, h (Keras)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `choices`; the message names the argument and its value."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_units(units: object) -> int:
    """Return `units` as a positive int; TypeError for another type, ValueError for a value below 1."""
    if isinstance(units, bool) or not hasattr(units, "__index__"):
        raise TypeError(f"`units` must be a positive integer, got {units!r} of type {type(units).__name__}")
    if (value := units.__index__()) < 1:  # type: ignore[attr-defined]
        raise ValueError(f"Received an invalid value for argument `units`, expected a positive integer, got {units}.")
    return value


def is_interpreted() -> bool:
    """Return whether Triton kernels run in its interpreter (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")
