"""Keep what a sweep found: merge it into a table file, and write every candidate to a CSV."""

from __future__ import annotations

import csv
import datetime
import hashlib
import io
import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ...environment import version_of
from ...tuning import table_files, tables
from ...tuning.configs import Device, LaunchConfig
from ...tuning.tables import Entry, Race, Table
from ..files import hold_lock, replace_file
from .model import Machine, step_floor
from .search import NOT_COMPILED, Found

COLUMNS = (
    "date", "kind", "device", "target", "tritongru", "triton", "torch", "kernels",
    "kernel", "dtype", "precision", "flags", "units", "batch",
    *(field.name for field in fields(LaunchConfig)),
    "rank", "wins", "verdict", "registers", "spills", "shared", "matrix", "cycles", "cache_bytes", "compile_s",
    "launch_us", "exchange_us", "load_us", "feed_us", "product_us", "gates_us", "model_us", "replay_us", "floor_us",
    "p20_us", "p50_us", "p80_us",
)  # fmt: skip


def describe_device(device: Device) -> dict[str, Any]:
    """Return what a table says of its device."""
    return {name: value for name, value in asdict(device).items() if name != "cooperative"}


def make_provenance(kind: str, device: Device) -> tuple[str, dict[str, Any]]:
    """Return an id and a record of where results come from: of which of `tables.KINDS`, when, with which versions."""
    record = {
        "kind": kind, "date": datetime.date.today().isoformat(), "device": device.name,
        **{name: version_of(name) for name in ("tritongru", "triton", "torch")}, "kernels": fingerprint_kernels(),
    }  # fmt: skip
    return f"{kind}-{record['date']}-{record['kernels']}", record


def fingerprint_kernels() -> str:
    """Return twelve hexadecimal digits that change with the kernels' source."""
    sources = sorted((Path(__file__).parents[2] / "backends" / "triton" / "kernels").glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]


def save_entries(
    path: Path,
    device: Device,
    provenances: Mapping[str, dict[str, Any]],
    entries: Sequence[Entry],
    races: Sequence[Race] = (),
) -> None:
    """Merge `entries` and `races` into the table of `path`; entries that another process wrote meanwhile stay.

    Of `provenances`, ids with their records, the table keeps those that are pointed to.
    A damaged file is moved to `path` with ".damaged" added, and a warning names both.

    Raises:
        OSError: the folder cannot be written, or the disk is full; the file is as it was.
        TimeoutError: another process holds the file.
    """
    try:
        with hold_lock(path):
            old = _read_or_set_aside(path)
            table = Table(describe_device(device), {})
            table.entries = tables.merge(old.entries if old else [], entries)
            table.races = tables.merge(old.races if old else [], races)
            used = {line.provenance for line in (*table.entries, *table.races)}
            known = {**(old.provenances if old else {}), **provenances}
            table.provenances = {name: record for name, record in known.items() if name in used}
            replace_file(path, table_files.dump(table))
    except OSError as error:
        if isinstance(error, TimeoutError):
            raise
        raise type(error)(error.errno, f"the tuning table cannot be written: {error.strerror}", str(path)) from error


def save_rows(path: Path, rows: Iterable[dict]) -> None:
    """Write a CSV of candidates in one step, and its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_file(path, text.getvalue())


def make_rows(
    found: Iterable[Found], device: Device, machine: Machine, record: dict[str, Any]
) -> Iterable[dict[str, Any]]:
    """Yield one row of the CSV for each candidate that was compiled or timed, or that a rule is against.

    Where candidates were left out for want of need or time, those that a rule is against are left out too.
    """
    common = {name: record[name] for name in ("date", "device", "tritongru", "triton", "torch", "kernels")}
    found = list(found)
    whole = not any(one.fault == NOT_COMPILED for problem in found for one in problem.tried)
    for problem in found:
        key, winner = problem.problem.key, problem.winner
        floor = step_floor(key, problem.problem.batch, device, machine)
        for rank, one in enumerate(problem.tried, 1):
            if one.fault == NOT_COMPILED or (one.candidate.against and not whole):
                continue
            step, compiled = one.candidate.step, one.compiled
            row = common | {"kind": one.kind, "target": device.target, "kernel": key.kernel, "dtype": key.dtype}
            row |= {"precision": key.precision, "flags": " ".join(key.flags), "units": key.units}
            row |= {"batch": problem.problem.batch, **asdict(one.candidate.config)}
            row |= {"rank": rank, "wins": int(one is winner), "verdict": one.fault or "ok"}
            row |= {f"{name}_us": f"{value:.4f}" for name, value in asdict(step).items()}
            row |= {"model_us": f"{step.total:.4f}", "floor_us": f"{floor:.4f}"}
            if compiled is not None:
                row |= {"registers": compiled.registers, "spills": compiled.spills, "shared": compiled.shared}
                row |= {"matrix": compiled.matrix, "compile_s": f"{compiled.seconds:.2f}"}
                if compiled.cycles:
                    row |= {"cycles": round(compiled.cycles), "cache_bytes": compiled.cache_bytes}
                    row |= {"replay_us": f"{one.candidate.microseconds(compiled.cycles):.4f}"}
            if one.timing is not None:
                row |= {f"{name}_us": f"{getattr(one.timing, name) * 1e3:.4f}" for name in ("p20", "p50", "p80")}
            yield row


def _read_or_set_aside(path: Path) -> Table | None:
    """Return the table; a file with anything wrong is kept under another name before it is replaced."""
    try:
        table = table_files.read(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        table, problem = None, str(error)
    else:
        problem = f"{path}: {table.problems[0]}" if table.problems else ""
    if problem:
        names = (Path(f"{path}.damaged{number or ''}") for number in itertools.count())
        aside = next(name for name in names if not name.exists())
        aside.write_bytes(path.read_bytes())
        warnings.warn(f"{problem}; the file was kept as {aside}", RuntimeWarning, stacklevel=3)
    return table
