"""Tables of launch configurations for one device: what is in them. `table_files` reads and writes them."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

from .configs import LaunchConfig

KERNELS = ("forward", "backward")
ITEM_SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}
PRODUCTS = ("ieee", "tf32", "tf32x3", "bf16x3")
# What changes the registers of a kernel enough to want a configuration of its own.
FLAGS = ("dropout", "masked", "reset_before")
LARGEST_BATCH = 4096
# What a table's microseconds are: of a model, of a replay of the machine code, or of a GPU.
KINDS = MODELLED, REPLAYED, MEASURED = "modelled", "replayed", "measured"


@dataclass(frozen=True)
class Key:
    """What a configuration is chosen for; never T.

    Attributes:
        kernel: "forward" or "backward". dtype: "float32", "float16" or "bfloat16".
        precision: of float32 products; "ieee" for the other dtypes. units: U.
        flags: in this order, those that apply: "dropout" (recurrent masks), "masked" (a mask or resets),
            "reset_before" (reset_after=False).
    """

    kernel: str
    dtype: str
    precision: str
    units: int
    flags: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        kernel: str,
        dtype: torch.dtype,
        precision: str,
        units: int,
        dropout: bool,
        masked: bool,
        reset_before: bool,
    ) -> Key:
        """Return the key of a call."""
        flags = tuple(flag for flag, holds in zip(FLAGS, (dropout, masked, reset_before), strict=True) if holds)
        return cls(kernel, name_dtype(dtype), precision if dtype == torch.float32 else "ieee", units, flags)

    @property
    def group(self) -> tuple:
        """All but the units: nearest entries are looked for inside a group."""
        return self.kernel, self.dtype, self.precision, self.flags


@dataclass(frozen=True)
class Entry:
    """One line of a table.

    Attributes:
        key: what for. batches: the first and the last batch bucket it serves.
        config: how to launch. microseconds: of a step, of one of KINDS, for the last of its buckets.
        shared: bytes of shared memory the compiler asked for, 0 if unknown. registers: per thread, 0 if unknown.
        provenance: a key of the table's provenances.
    """

    key: Key
    batches: tuple[int, int]
    config: LaunchConfig
    microseconds: float
    provenance: str
    shared: int = 0
    registers: int = 0

    def __str__(self) -> str:
        key, (low, high) = self.key, self.batches
        return " ".join((key.kernel, key.dtype, key.precision, f"units={key.units} batch {low}..{high}", *key.flags))


@dataclass(frozen=True)
class Race:
    """Whole calls of triton and of aten, timed side by side on the same problem.

    Attributes:
        key: dtype, precision, units, and whether the call had a backward pass. batches: the first and the last batch
            bucket it serves. triton, aten: microseconds of a step. provenance: a key of the table's provenances.
    """

    key: tuple[str, str, int, bool]
    batches: tuple[int, int]
    triton: float
    aten: float
    provenance: str


# What a table is a list of.
Line = TypeVar("Line", Entry, Race)


@dataclass
class Table:
    """The entries for one device, and where they come from.

    Attributes:
        device: name, target, processors, shared_memory, warp_size. provenances: id -> kind (of KINDS), date,
            versions. races: in measured tables alone. problems: what was wrong with the file, line by line.
    """

    device: dict[str, Any]
    provenances: dict[str, dict[str, Any]] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    races: list[Race] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    path: str = ""

    @functools.cached_property
    def groups(self) -> dict[tuple, list[Entry]]:
        """The entries of each group, by units."""
        found: dict[tuple, list[Entry]] = {}
        for entry in sorted(self.entries, key=lambda entry: (entry.key.units, entry.batches)):
            found.setdefault(entry.key.group, []).append(entry)
        return found


def name_dtype(dtype: torch.dtype) -> str:
    """Return the name of a dtype as tables have it: "float32"."""
    return str(dtype).removeprefix("torch.")


def bucket(batch: int) -> int:
    """Return the batch bucket: the next power of two, at most 4096.

    >>> bucket(1), bucket(17), bucket(100_000)
    (1, 32, 4096)
    """
    return min(1 << (max(batch, 1) - 1).bit_length(), LARGEST_BATCH)


def merge(old: Iterable[Line], new: Iterable[Line]) -> list[Line]:
    """Return all entries, or races; where a new one serves a batch bucket, old ones for the same key no longer do."""
    entries = list(old)
    for entry in new:
        low, high = entry.batches
        kept = []
        for other in entries:
            first, last = other.batches
            if other.key != entry.key or last < low or high < first:
                kept.append(other)
                continue
            if first < low:
                kept.append(replace(other, batches=(first, low // 2)))
            if high < last:
                kept.append(replace(other, batches=(high * 2, last)))
        entries = [*kept, entry]
    return entries
