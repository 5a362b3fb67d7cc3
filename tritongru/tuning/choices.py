"""Where a launch configuration comes from.

    choice  =  the user's table (exact)  ->  the table shipped for the device (exact, then nearest)  ->  the formula

The shipped tables are in data/tuning; the user's are in the folder of TRITONGRU_CACHE, or the system's place for
caches. A damaged table is named in a warning once and ignored. An entry that the device cannot run is passed over and
named in the choice's reason; one of the user's in a warning too.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

from .. import environment
from . import configs
from .configs import Device, LaunchConfig
from .table_files import read
from .tables import ITEM_SIZES, Entry, Key, Race, Table, bucket

SHIPPED = Path(__file__).parents[1] / "data" / "tuning"


@dataclass(frozen=True)
class Choice:
    """A configuration, where it comes from ("user", "shipped" or "formula"), and why."""

    config: LaunchConfig
    source: str
    reason: str


@functools.lru_cache(maxsize=4096)
def choose(key: Key, batch: int, device: Device, has_norm: bool = False) -> Choice:
    """Return the configuration for a problem on a device, and the reason for it.

    Args:
        has_norm: whether a program must hold all units of a row. Of that there is one configuration, by the formula.

    Raises:
        ValueError: with `has_norm`, units of which there is none.
    """
    size, passed_over = ITEM_SIZES[key.dtype], ""
    if has_norm:
        if (single := configs.choose_with_norm(key.units, size, device)) is None:
            raise ValueError(f"no program holds all of units={key.units}, as layer normalisation needs")
        return Choice(single, "formula", configs.describe(single, key.units, batch, size, device))
    for source, path, table in tables_for(device):
        entry = find(table, key, batch, nearest=source == "shipped")
        if entry is None:
            continue
        reasons = reasons_against(entry, key, batch, device)
        if not reasons:
            why = configs.describe(entry.config, key.units, batch, size, device)
            return Choice(entry.config, source, f"{why}; {_origin(table, entry)}{passed_over}")
        against = f"the entry for {entry} is passed over on this device: {'; '.join(reasons)}"
        passed_over += f"; {path.name}: {against}"
        if source == "user":
            _warn_once(f"{path}: {against}")
    config = configs.choose(key.units, batch, size, device, "dropout" in key.flags)
    return Choice(config, "formula", configs.describe(config, key.units, batch, size, device) + passed_over)


@functools.lru_cache(maxsize=4096)
def reason_from_race(key: Key, batch: int, training: bool, device: Device) -> str | None:
    """Return why torch's own GRU is faster, as it was measured; "" if it is not, None where nothing was measured.

    Args:
        key: of the forward kernel. batch: B. training: whether there will be a backward pass.
    """
    for source, _, table in tables_for(device):
        race = find_race(table, key, batch, training, nearest=source == "shipped")
        if race is not None:
            if race.triton <= race.aten:
                return ""
            date = table.provenances[race.provenance].get("date", "an unknown day")
            return f"aten took {race.aten:.2f} us per step and triton {race.triton:.2f}, measured on {date}"
    return None


@functools.lru_cache(maxsize=4096)
def reason_from_schedule(key: Key, batch: int, device: Device) -> str:
    """Return why torch's own GRU is to be preferred to a plain kernel where nothing was measured; "" if it is not."""
    choice = choose(key, batch, device)
    waves = configs.count_waves(choice.config, key.units, batch, device) if choice.config.waits else 1
    if waves > configs.MOST_WAVES:
        return reason_from_waves(key.kernel, waves)
    if choice.config.streams:
        return (
            f"the {key.kernel} kernel would read the recurrent weights from memory at every step "
            f"(schedule {choice.config.schedule!r}), as aten does"
        )
    return ""


def reason_from_waves(kernel: str, waves: int) -> str:
    """Return why many rows are not for programs that wait for each other."""
    return (
        f"the {kernel} kernel would take this many rows in {waves} launches, one after another; products of many rows "
        "are what aten's one launch per step is good at"
    )


def tables_for(device: Device) -> list[tuple[str, Path, Table]]:
    """Return the tables that serve a device, in the order in which they are asked: source, path, table."""
    found = []
    for source, path in (("user", user_path(device.name)), ("shipped", shipped_path(device))):
        table = None if path is None else load(path)
        if path is not None and table is not None:
            found.append((source, path, table))
    return found


def find_race(table: Table, key: Key, batch: int, training: bool, nearest: bool = False) -> Race | None:
    """Return what the table knows of triton and aten for a problem, or None; `nearest` as in `find`."""
    for race in sorted(table.races, key=lambda race: race.key[2]):
        dtype, precision, units, with_backward = race.key
        is_alike = (dtype, precision, with_backward) == (key.dtype, key.precision, training)
        if is_alike and _serves(race, units, key.units, batch, nearest):
            return race
    return None


def find(table: Table, key: Key, batch: int, nearest: bool = False) -> Entry | None:
    """Return the table's entry for a problem, or None.

    Args:
        nearest: where these units have none, take that of the next larger units, at most twice as many, if both or
            neither are a multiple of 16. With fewer units a program holds fewer weights, and loads them the same way.
            Where float16 has none, take bfloat16's: the same sizes, and the same instructions on another type.
    """
    if nearest and key.dtype == "float16" and key.group not in table.groups:
        key = replace(key, dtype="bfloat16")
    for entry in table.groups.get(key.group, ()):
        if _serves(entry, entry.key.units, key.units, batch, nearest):
            return entry
    return None


def _serves(line: Entry | Race, units: int, wanted: int, batch: int, nearest: bool) -> bool:
    """Return whether a line for `units` serves `wanted` units and `batch` rows."""
    low, high = line.batches
    is_near = wanted <= units <= 2 * wanted and (units % 16 == 0) == (wanted % 16 == 0)
    return low <= bucket(batch) <= high and (units == wanted or (nearest and is_near))


def reasons_against(entry: Entry, key: Key, batch: int, device: Device) -> list[str]:
    """Return why the device cannot run the entry's configuration on this problem."""
    reasons = configs.reasons_against(entry.config, key.units, batch, ITEM_SIZES[key.dtype], device)
    if entry.shared > device.shared_memory:
        reasons.append(f"it was compiled to {entry.shared} bytes of shared memory, {device.shared_memory} are there")
    return reasons


def user_folder() -> Path:
    """Return the folder of the user's tables: TRITONGRU_CACHE, or the system's place for caches."""
    if given := os.environ.get("TRITONGRU_CACHE"):
        return Path(given)
    if importlib.util.find_spec("platformdirs") is not None:
        import platformdirs

        return Path(platformdirs.user_cache_dir("tritongru"))
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tritongru"


def user_path(device_name: str) -> Path | None:
    """Return where the user's table for a device is or would be; None for a device without a name."""
    name = re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")
    return user_folder() / f"{name}.json" if name else None


def shipped_path(device: Device) -> Path | None:
    """Return the shipped table for the device: the same target, and the nearest number of multiprocessors."""
    if not re.fullmatch(r"[a-z0-9_]+", device.target):
        return None
    paths = sorted(SHIPPED.glob(f"{device.target}-*.json"))
    counts = {path: int(count[1]) for path in paths if (count := re.search(r"-(\d+)\.json$", path.name))}
    return min(counts, key=lambda path: abs(counts[path] - device.processors), default=None)


def load(path: str | Path) -> Table | None:
    """Return the table of a file; None where there is none, or a damaged one, which a warning names once."""
    return _load(str(path))


@functools.lru_cache(maxsize=64)
def _load(path: str) -> Table | None:
    try:
        table = read(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _warn_once(f"{error}; this tuning table is ignored")
        return None
    if table.problems:
        more = f", and {len(table.problems) - 1} more" if len(table.problems) > 1 else ""
        _warn_once(f"{path}: entries passed over: {table.problems[0]}{more}")
    return table


def forget() -> None:
    """Read the tables anew at the next choice."""
    environment.note_change()
    for cached in (_load, choose, reason_from_race, reason_from_schedule):
        cached.cache_clear()


def _origin(table: Table, entry: Entry) -> str:
    kind, date = (table.provenances[entry.provenance].get(name, "undated") for name in ("kind", "date"))
    rows = f"{entry.batches[1]} row{'s' if entry.batches[1] > 1 else ''}"
    return f"{entry.microseconds:.2f} us per step of {rows} {kind} on {date}, for {entry}, in {Path(table.path).name}"


@functools.lru_cache(maxsize=256)
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)
