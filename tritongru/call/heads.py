"""Several heads: one call with block-diagonal recurrent weights, taken apart into one call for each block.

The gates' columns of everything else are in whole units: z of all heads, then r, then h; head i has units i U/N to
(i + 1) U/N of each. So a head is a GRU of U/N units, and shares nothing with the others but the input and the steps.
"""

from __future__ import annotations

from torch import Tensor

from .arguments import Arguments, changed
from .check import in_autocast_dtype
from .tensors import check_tensors


def has_heads(a: Arguments) -> bool:
    """Return whether the recurrent kernel is one of several heads, by its number of axes."""
    return isinstance(a.recurrent_kernel, Tensor) and a.recurrent_kernel.dim() == 3


def split_heads(a: Arguments) -> list[Arguments]:
    """Return the arguments of each head, views of those of the call.

    Args:
        a: as they came, the recurrent kernel (N,U/N,3U/N), or (N,3U/N,U/N) in layout="torch".

    Raises:
        TypeError, ValueError: as `check`, for the shapes of the whole.
    """
    heads, rows, columns = a.recurrent_kernel.shape
    width, gates = (columns, rows) if a.layout == "torch" else (rows, columns)
    if heads < 1 or width < 1 or gates != 3 * width:
        expected = "(N,3U/N,U/N)" if a.layout == "torch" else "(N,U/N,3U/N)"
        raise ValueError(
            f"`recurrent_kernel` of several heads must have shape {expected}, got {tuple(a.recurrent_kernel.shape)}"
        )
    if a.layer_norm is not None:
        raise ValueError(f"`layer_norm` was given with {heads} heads: a norm over all of them would couple them")
    a = in_autocast_dtype(a)
    # The shapes are checked for the whole, whose recurrent kernel has no memory of its own.
    units = heads * width
    whole = a.recurrent_kernel.new_empty(()).expand(
        *((3 * units, units) if a.layout == "torch" else (units, 3 * units))
    )
    recurrent = a.recurrent_kernel.unbind(0)
    a = check_tensors(changed(a, recurrent_kernel=whole))

    def gates_of(value, head: int, axis: int = -1):
        if isinstance(value, tuple):
            return tuple(gates_of(item, head, axis) for item in value)
        if value is None:
            return None
        if axis == 0:
            return value.unflatten(0, (3, heads, width))[:, head].flatten(0, 1)
        return value.unflatten(-1, (3, heads, width))[..., head, :].flatten(-2)

    def units_of(value, head: int):
        if isinstance(value, tuple):
            return tuple(units_of(item, head) for item in value)
        return value[..., head * width : (head + 1) * width] if isinstance(value, Tensor) else value

    return [
        changed(
            a,
            x=a.x if a.kernel is not None else gates_of(a.x, head),
            kernel=gates_of(a.kernel, head, 0 if a.layout == "torch" else -1),
            recurrent_kernel=recurrent[head],
            bias=gates_of(a.bias, head),
            **{name: units_of(getattr(a, name), head) for name in _BY_UNITS},
        )
        for head in range(heads)
    ]


_BY_UNITS = ("initial_state", "reset_state", "recurrent_dropout", "zoneout")
