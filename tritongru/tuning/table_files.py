"""Files of tuning tables: how one is written, and what it must be to be believed.

One JSON file for a device. What is not a table is an error that names the file; a line that is not an entry is left out
and listed. Whether the device at hand can run an entry is asked later, in `choices`. docs/tuning.md describes the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from .configs import LaunchConfig
from .tables import FLAGS, ITEM_SIZES, KERNELS, KINDS, LARGEST_BATCH, PRODUCTS, Entry, Key, Race, Table, bucket

FORMAT = 1
LARGEST_FILE = 1 << 24


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
        if not isinstance(record, dict) or record.get("kind") not in KINDS:
            raise ValueError(f"provenance {name!r} has none of the kinds {', '.join(map(repr, KINDS))}")
    if not isinstance(races := content.get("races", []), list):
        raise ValueError("`races` must be a list")
    table = Table(device, provenances)
    _fill(table.entries, lines, parse_entry, "entry", table)
    _fill(table.races, races, parse_race, "race", table)
    return table


def _fill(place: list, lines: list, parse_line: Callable[[Any], Any], kind: str, table: Table) -> None:
    for number, line in enumerate(lines):
        try:
            found = parse_line(line)
            if found.provenance not in table.provenances:
                raise ValueError(f"unknown provenance {found.provenance!r}")
            place.append(found)
        except (ValueError, TypeError) as error:
            table.problems.append(f"{kind} {number}: {error}")


def parse_entry(line: Any) -> Entry:
    """Return the entry that decoded JSON describes; ValueError naming what is wrong."""
    if not isinstance(line, dict):
        raise ValueError(f"expected an object, got {type(line).__name__}")
    low, high = _pair(line.get("batches"))
    flags = line.get("flags")
    if not isinstance(flags, list) or flags != [flag for flag in FLAGS if flag in flags]:
        raise ValueError(f"`flags` must be some of {list(FLAGS)}, in this order, got {flags!r}")
    key = Key(
        _one_of("kernel", line.get("kernel"), KERNELS), _one_of("dtype", line.get("dtype"), ITEM_SIZES),
        _one_of("precision", line.get("precision"), PRODUCTS), _whole("units", line.get("units"), 1, 1 << 20),
        tuple(flags),
    )  # fmt: skip
    return Entry(
        key, (low, high), parse_config(line.get("config")), _time("microseconds", line), str(line.get("provenance")),
        _whole("shared", line.get("shared", 0), 0, 1 << 30), _whole("registers", line.get("registers", 0), 0, 1 << 16),
    )  # fmt: skip


def parse_race(line: Any) -> Race:
    """Return the race that decoded JSON describes; ValueError naming what is wrong."""
    if not isinstance(line, dict):
        raise ValueError(f"expected an object, got {type(line).__name__}")
    training = line.get("training")
    if not isinstance(training, bool):
        raise ValueError(f"`training` must be true or false, got {training!r}")
    key = (
        _one_of("dtype", line.get("dtype"), ITEM_SIZES), _one_of("precision", line.get("precision"), PRODUCTS),
        _whole("units", line.get("units"), 1, 1 << 20), training,
    )  # fmt: skip
    batches = _pair(line.get("batches"))
    return Race(key, batches, _time("triton", line), _time("aten", line), str(line.get("provenance")))


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
    used = {one.provenance for one in (*table.entries, *table.races)}
    head = {
        "format": FORMAT,
        "device": table.device,
        "provenances": {name: table.provenances[name] for name in sorted(used)},
    }
    ordered = sorted(table.entries, key=lambda entry: (*entry.key.group, entry.key.units, entry.batches))
    parts = [("entries", [_line(entry) for entry in ordered])]
    if table.races:
        parts.append(("races", [_race_line(race) for race in sorted(table.races, key=lambda r: (r.key, r.batches))]))
    text = json.dumps(head, indent=1)[:-2]
    for name, lines in parts:
        text += f',\n "{name}": [\n' + ",\n".join(map(json.dumps, lines)) + "\n]"
    return text + "\n}\n"


def _line(entry: Entry) -> dict[str, Any]:
    key = asdict(entry.key) | {"flags": list(entry.key.flags)}
    rest = {
        "batches": list(entry.batches), "config": asdict(entry.config), "microseconds": entry.microseconds,
        "shared": entry.shared, "registers": entry.registers, "provenance": entry.provenance,
    }  # fmt: skip
    return key | rest


def _race_line(race: Race) -> dict[str, Any]:
    key = dict(zip(("dtype", "precision", "units", "training"), race.key, strict=True))
    rest = {"batches": list(race.batches), "triton": race.triton, "aten": race.aten, "provenance": race.provenance}
    return key | rest


def _time(name: str, line: dict) -> float:
    value = line.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"`{name}` must be a positive number, got {value!r}")
    return float(value)


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
