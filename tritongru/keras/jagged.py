"""Jagged nested tensors to padded sequences with lengths, and back.

A jagged tensor holds the rows of a batch one after another, `values (N,I)` with N the sum of their lengths, and
`offsets (B+1,)` where each begins.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Where the rows of one jagged batch lie.

    Attributes:
        offsets: (B+1,). lengths: (B,) int64. row, step: (N,) of each value, its row and its time index.
    """

    offsets: Tensor
    lengths: Tensor
    row: Tensor
    step: Tensor


def is_jagged(x: object) -> bool:
    """Return whether `x` is a nested tensor."""
    return isinstance(x, Tensor) and x.is_nested


def to_padded(x: Tensor, name: str = "inputs") -> tuple[Tensor, Rows]:
    """Return a jagged `x` as padded (B,T,I) with T the longest row, zeros behind each, and its rows.

    Raises:
        ValueError: `x` is nested in another layout than torch.jagged, or not of rank 3.
    """
    if x.layout != torch.jagged:
        raise ValueError(f"`{name}` must be nested in layout torch.jagged, got layout {x.layout}")
    if x.dim() != 3:
        raise ValueError(f"`{name}` must have 3 axes (B, jagged T, I), got {x.dim()}")
    x = x.contiguous()
    values, offsets = x.values(), x.offsets()  # type: ignore[attr-defined]
    lengths = offsets.diff()
    batch = lengths.shape[0]
    row = torch.repeat_interleave(torch.arange(batch, device=values.device), lengths, output_size=values.shape[0])
    step = torch.arange(values.shape[0], device=values.device) - offsets[:-1][row]
    longest = int(lengths.max()) if batch else 0
    padded = values.new_zeros(batch, longest, values.shape[1]).index_put((row, step), values)
    return padded, Rows(offsets, lengths, row, step)


def from_padded(padded: Tensor, rows: Rows) -> Tensor:
    """Return the valid part of `padded` (B,T,U) as a jagged tensor with the rows `rows`."""
    return torch.nested.nested_tensor_from_jagged(padded[rows.row, rows.step], rows.offsets)


def from_padded_reversed(padded: Tensor, rows: Rows) -> Tensor:
    """Return the valid part of `padded` (B,T,U) as a jagged tensor, each row from its last step to its first."""
    step = rows.lengths[rows.row] - 1 - rows.step
    return torch.nested.nested_tensor_from_jagged(padded[rows.row, step], rows.offsets)


def reverse_rows(x: Tensor) -> Tensor:
    """Return a jagged `x` with each row from its last step to its first."""
    padded, rows = to_padded(x)
    return from_padded_reversed(padded, rows)


def like(values: Tensor, x: Tensor) -> Tensor:
    """Return `values` (N,...) as a jagged tensor with the rows of `x`."""
    return torch.nested.nested_tensor_from_jagged(values, x.offsets())  # type: ignore[attr-defined]
