"""The errors and warnings of a call, and the checks of plain arguments."""

from __future__ import annotations

import threading
import warnings

BACKENDS = ("triton", "aten", "numba", "eager", "reference")
LAYOUTS = ("keras", "torch")
LAYER_NORMS = ("separate", "joint")
PRECISIONS = ("auto", "ieee", "tf32", "tf32x3", "bf16x3")

_lock = threading.Lock()
_warned: set[str] = set()


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


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `choices`; the message names the argument and its value."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_backend(backend: object) -> None:
    """Raise ValueError unless `backend` is "auto" or the name of a backend."""
    check_choice("backend", backend, ("auto", *BACKENDS))


def check_norm_name(layer_norm: object, reset_after: bool = True) -> str | None:
    """Return the kind of layer normalisation of a layer; ValueError unless it is None or one there is."""
    if layer_norm is None:
        return None
    check_choice("layer_norm", layer_norm, LAYER_NORMS)
    if not reset_after:
        raise ValueError(
            f"`layer_norm`={layer_norm!r} needs reset_after=True: the candidate has no sum of its own else"
        )
    return layer_norm  # type: ignore[return-value]


def check_heads(heads: object, units: int, layer_norm: object = None) -> int:
    """Return the number of heads; TypeError unless an integer, ValueError unless it divides `units`, or with a norm."""
    if isinstance(heads, bool) or not hasattr(heads, "__index__"):
        raise TypeError(f"`heads` must be a positive integer, got {heads!r}")
    count = heads.__index__()  # type: ignore[attr-defined]
    if count < 1 or units % count:
        raise ValueError(f"`heads` must divide the number of units, {units}, got {heads!r}")
    if count > 1 and layer_norm is not None:
        raise ValueError(f"`layer_norm`={layer_norm!r} was given with heads={heads}: a norm would couple them")
    return count


def check_units(units: object) -> int:
    """Return `units` as a positive int; TypeError for another type, ValueError for a value below 1."""
    if isinstance(units, bool) or not hasattr(units, "__index__"):
        raise TypeError(f"`units` must be a positive integer, got {units!r} of type {type(units).__name__}")
    if (value := units.__index__()) < 1:  # type: ignore[attr-defined]
        raise ValueError(f"Received an invalid value for argument `units`, expected a positive integer, got {units}.")
    return value


def warn_once(message: str, category: type[Warning] = FallbackWarning) -> None:
    """Warn unless this message was given before in this process."""
    with _lock:
        if message in _warned:
            return
        _warned.add(message)
    warnings.warn(message, category, stacklevel=3)


def forget_warnings() -> None:
    """Warn again of what was warned of before."""
    with _lock:
        _warned.clear()
