"""What `torch.func.vmap` makes of the operators: members that share their weights are one batch, others a loop.

Members with the same weights are rows of one scan. Members with weights of their own are as many scans, one after
another. The reverse operator is always a loop, since each member's gradient of a shared weight is its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..call.problem import Inputs
from .gradients import SAVE_NOTHING

# Where the batch is among a tensor's axes.
_BATCH_AXES = {"x": 1, "h0": 0, "mask": 1, "resets": 1, "drop": 1, "keep": 1}


def map_scan(info, in_dims, *arguments) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """The rule of `tritongru::scan`: outputs, and the axis of each that counts the members."""
    a, dims = Inputs(*arguments[: len(Inputs._fields)]), Inputs(*in_dims[: len(Inputs._fields)])
    shares_weights = all(dim is None for dim in (dims.w, dims.bias_x, dims.u, dims.bias_h, dims.scale))
    # Rows of different length may be packed together, and a member's part of what is saved of them is not its own.
    if not shares_weights or (a.mask is not None and SAVE_NOTHING not in arguments):
        return loop(torch.ops.tritongru.scan.default, info.batch_size, in_dims, arguments)
    members = info.batch_size
    folded = Inputs(*(_fold(name, t, dim, members) for name, t, dim in zip(a._fields, a, dims, strict=True)))
    out, last, states, gates = torch.ops.tritongru.scan.default(*folded, *arguments[len(Inputs._fields) :])
    places = (out, 1), (last, 0), (states, 1), (gates, gates.dim() - 2 if gates.dim() == 4 else 1)
    results = [_unfold(value, axis, members) for value, axis in places]
    return tuple(value for value, _ in results), tuple(axis for _, axis in results)


def map_scan_backward(info, in_dims, *arguments) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """The rule of `tritongru::scan_backward`."""
    return loop(torch.ops.tritongru.scan_backward.default, info.batch_size, in_dims, arguments)


def loop(operator, members: int, in_dims: Sequence, arguments: Sequence) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Run `operator` for each member and stack what it returns."""

    def of_member(value: Any, dim: Any, member: int) -> Any:
        return value.select(dim, member) if isinstance(value, Tensor) and dim is not None else value

    pairs = list(zip(arguments, in_dims, strict=True))
    runs = [operator(*(of_member(value, dim, member) for value, dim in pairs)) for member in range(members)]
    stacked = tuple(torch.stack(values) for values in zip(*runs, strict=True))
    return stacked, (0,) * len(stacked)


def _fold(name: str, value: Tensor | None, dim: int | None, members: int) -> Tensor | None:
    """Return the rows of all members one below the other; what is the same for all rows as it is."""
    axis = value.dim() - 2 - (dim is not None) if name == "fresh" and value is not None else _BATCH_AXES.get(name)
    if value is None or axis is None:
        return value
    if dim is None:
        value = value.unsqueeze(axis).expand(*value.shape[:axis], members, *value.shape[axis:])
    else:
        value = value.movedim(dim, axis)
    return value.flatten(axis, axis + 1)


def _unfold(value: Tensor, axis: int, members: int) -> tuple[Tensor, int | None]:
    """Return `value` with its members on an axis of their own, and that axis; what is empty as it is."""
    if value.dim() == 1:
        return value, None
    return value.view(*value.shape[:axis], members, value.shape[axis] // members, *value.shape[axis + 1 :]), axis
