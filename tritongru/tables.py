"""Tables of launch configurations: what is in one, and what it must be to be believed.

One JSON file for a device. What is not a table is an error that names the file; a line that is not an entry is left out
and listed. Whether the device at hand can run an entry is asked later, in `choices`. docs/tuning.md describes the file.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from .configs import LaunchConfig

FORMAT = 1
KERNELS = ("forward", "backward")
ITEM_SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}
PRODUCTS = ("ieee", "tf32", "tf32x3", "bf16x3")
# What changes the registers of a kernel enough to want a configuration of its own.
FLAGS = ("dropout", "masked", "reset_before")
LARGEST_BATCH = 4096
LARGEST_FILE = 1 << 24


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

    @property
    def group(self) -> tuple:
        """All but the units: nearest entries are looked for inside a group."""
        return self.kernel, self.dtype, self.precision, self.flags


@dataclass(frozen=True)
class Entry:
    """One line of a table.

    Attributes:
        key: what for. batches: the first and the last batch bucket it serves.
        config: how to launch. microseconds: of a step, modelled or measured.
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


@dataclass
class Table:
    """The entries for one device, and where they come from.

    Attributes:
        device: name, target, processors, shared_memory, warp_size. provenances: id -> kind ("modelled" or "measured"),
            date, versions. problems: what was wrong with the file, entry by entry.
    """

    device: dict[str, Any]
    provenances: dict[str, dict[str, Any]] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    path: str = ""

    @functools.cached_property
    def groups(self) -> dict[tuple, list[Entry]]:
        """The entries of each group, by units."""
        found: dict[tuple, list[Entry]] = {}
        for entry in sorted(self.entries, key=lambda entry: (entry.key.units, entry.batches)):
            found.setdefault(entry.key.group, []).append(entry)
        return found


def bucket(batch: int) -> int:
    """Return the batch bucket: the next power of two, at most 4096.

    >>> bucket(1), bucket(17), bucket(100_000)
    (1, 32, 4096)
    """
    return min(1 << (max(batch, 1) - 1).bit_length(), LARGEST_BATCH)


def read(path: str | Path) -> Table:
    """Read and check a table.

    Raises:
        FileNotFoundError: there is none. OSError: it cannot be read.
        ValueError: it is not a table; names the file. Entries that are not right are left out and listed in `problems`.
    """
    path = Path(path)
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, more than the {LARGEST_FILE} allowed")
    try:
        table = parse(json.loads(path.read_text(encoding="utf-8")))
    except RecursionError as error:
        raise ValueError(f"{path}: not a tuning table: nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{path}: not a tuning table: {error}") from error
    table.path = str(path)
    return table


def parse(content: Any) -> Table:
    """Return the table that decoded JSON describes; ValueError if it is none."""
    if not isinstance(content, dict):
        raise ValueError(f"expected an object, got {type(content).__name__}")
    if content.get("format") != FORMAT:
        raise ValueError(f"format {content.get('format')!r} is not {FORMAT}")
    device, provenances, lines = content.get("device"), content.get("provenances"), content.get("entries")
    if not isinstance(device, dict) or not isinstance(provenances, dict) or not isinstance(lines, list):
        raise ValueError("`device` and `provenances` must be objects and `entries` a list")
    for name, record in provenances.items():
        if not isinstance(record, dict) or record.get("kind") not in ("modelled", "measured"):
            raise ValueError(f"provenance {name!r} has no kind 'modelled' or 'measured'")
    table = Table(device, provenances)
    for number, line in enumerate(lines):
        try:
            entry = parse_entry(line)
            if entry.provenance not in provenances:
                raise ValueError(f"unknown provenance {entry.provenance!r}")
            table.entries.append(entry)
        except (ValueError, TypeError) as error:
            table.problems.append(f"entry {number}: {error}")
    return table


def parse_entry(line: Any) -> Entry:
    """Return the entry that decoded JSON describes; ValueError naming what is wrong."""
    if not isinstance(line, dict):
        raise ValueError(f"expected an object, got {type(line).__name__}")
    low, high = _pair(line.get("batches"))
    flags = line.get("flags")
    if not isinstance(flags, list) or flags != [flag for flag in FLAGS if flag in flags]:
        raise ValueError(f"`flags` must be some of {list(FLAGS)}, in this order, got {flags!r}")
    microseconds = line.get("microseconds")
    if isinstance(microseconds, bool) or not isinstance(microseconds, (int, float)) or not 0 < microseconds < math.inf:
        raise ValueError(f"`microseconds` must be a positive number, got {microseconds!r}")
    key = Key(
        _one_of("kernel", line.get("kernel"), KERNELS), _one_of("dtype", line.get("dtype"), ITEM_SIZES),
        _one_of("precision", line.get("precision"), PRODUCTS), _whole("units", line.get("units"), 1, 1 << 20),
        tuple(flags),
    )  # fmt: skip
    return Entry(
        key, (low, high), parse_config(line.get("config")), float(microseconds), str(line.get("provenance")),
        _whole("shared", line.get("shared", 0), 0, 1 << 30), _whole("registers", line.get("registers", 0), 0, 1 << 16),
    )  # fmt: skip


def parse_config(values: Any) -> LaunchConfig:
    """Return the configuration that decoded JSON describes; ValueError naming what is wrong."""
    if not isinstance(values, dict):
        raise ValueError(f"`config` must be an object, got {type(values).__name__}")
    known = {item.name: item for item in fields(LaunchConfig)}
    if unknown := set(values) - set(known):
        raise ValueError(f"`config` has unknown {', '.join(sorted(map(repr, unknown)))}")
    for name, value in values.items():
        if known[name].type in ("int", int):
            _whole(name, value, 1, 4096)
        elif known[name].type in ("str", str) and not isinstance(value, str):
            raise ValueError(f"`{name}` must be a string, got {value!r}")
    try:
        return LaunchConfig(**values)
    except TypeError as error:
        raise ValueError(f"`config`: {error}") from error


def dump(table: Table) -> str:
    """Return the table as JSON, one entry per line, in a fixed order."""
    used = {entry.provenance for entry in table.entries}
    head = {
        "format": FORMAT,
        "device": table.device,
        "provenances": {name: table.provenances[name] for name in sorted(used)},
    }
    ordered = sorted(table.entries, key=lambda entry: (*entry.key.group, entry.key.units, entry.batches))
    lines = ",\n".join(json.dumps(_line(entry)) for entry in ordered)
    return json.dumps(head, indent=1)[:-2] + ',\n "entries": [\n' + lines + "\n]\n}\n"


def merge(old: Iterable[Entry], new: Iterable[Entry]) -> list[Entry]:
    """Return all entries; where a new one serves a batch bucket, the old ones for the same key no longer do."""
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


def _line(entry: Entry) -> dict[str, Any]:
    key = asdict(entry.key) | {"flags": list(entry.key.flags)}
    rest = {
        "batches": list(entry.batches), "config": asdict(entry.config), "microseconds": entry.microseconds,
        "shared": entry.shared, "registers": entry.registers, "provenance": entry.provenance,
    }  # fmt: skip
    return key | rest


def _one_of(name: str, value: Any, choices: Iterable[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"`{name}` must be a whole number from {low} to {high}, got {value!r}")
    return value


def _pair(value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"`batches` must be two numbers, got {value!r}")
    low, high = (_whole("batches", item, 1, LARGEST_BATCH) for item in value)
    if bucket(low) != low or bucket(high) != high or low > high:
        raise ValueError(f"`batches` must be two powers of two, the smaller first, got {value!r}")
    return low, high
