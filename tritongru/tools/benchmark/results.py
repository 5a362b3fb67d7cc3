"""The benchmark's one table: a CSV file that only grows, each row with everything needed to read its numbers."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import functools
import io
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ...environment import version_of
from ..files import hold_lock, replace_file


@dataclass(frozen=True)
class Result:
    """One backend on one workload.

    Attributes:
        run: names the run; rows of one run and one cell were timed in turn. date: UTC.
        kind: "cpu" or "cuda". device, torch, triton, python, tritongru: names and versions.
        threads: of torch on the host.
        workload, features: as in `workloads`. T, B, I, U: sizes. dtype, direction, backend: names.
        p20_ms, p50_ms, p80_ms: percentiles of the time of a call; None where it did not run. samples: how many.
        us_per_step: p50_ms over T. floor_us: a bound from below for a step (`floor`), None where there is no formula.
        peak_bytes: device memory a call takes at its peak, beside its inputs and weights; None on a CPU.
        saved_bytes: what autograd keeps for the backward pass, None unless asked.
        ratio_to_nn_gru: time of torch.nn.GRU over this time, in the same run: above 1 is faster than torch.
        notes: conditions, or why it did not run.
    """

    run: str
    date: str
    kind: str
    device: str
    torch: str
    triton: str
    python: str
    tritongru: str
    threads: int
    workload: str
    features: str
    T: int
    B: int
    I: int
    U: int
    dtype: str
    direction: str
    backend: str
    p20_ms: float | None = None
    p50_ms: float | None = None
    p80_ms: float | None = None
    samples: int = 0
    us_per_step: float | None = None
    floor_us: float | None = None
    peak_bytes: int | None = None
    saved_bytes: int | None = None
    ratio_to_nn_gru: float | None = None
    notes: str = ""

    @property
    def cell(self) -> tuple:
        """What rows that may be compared have in common."""
        return (self.run, self.workload, self.features, self.T, self.B, self.I, self.U, self.dtype, self.direction)


FIELDS = tuple(field.name for field in dataclasses.fields(Result))
_KINDS = {field.name: str(field.type).partition(" ")[0] for field in dataclasses.fields(Result)}


Cell = dict[str, Result]  # by backend


def conditions(device: torch.device, run: str | None = None) -> dict:
    """Return the fields of `Result` that are the same for all rows of a run."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return dict(
        run=run or f"{now:%Y%m%dT%H%M%S}-{os.getpid()}", date=f"{now:%Y-%m-%d}",
        kind=device.type, device=device_name(device),
        torch=torch.__version__, triton=version_of("triton"), python=platform.python_version(),
        tritongru=version_of("tritongru"), threads=torch.get_num_threads(),
    )  # fmt: skip


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or of the processor with the vectors that torch uses there: "AMD EPYC (AVX2)"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()} ({torch.backends.cpu.get_cpu_capability()})"


def append_results(path: str | os.PathLike, rows: Sequence[Result]) -> None:
    """Add `rows` to the CSV file at `path`, which is made if need be; two processes may do so at once.

    Raises:
        ValueError: the file there is not such a table; it is left alone.
        OSError: the file could not be written; it is as it was.
    """
    with hold_lock(path):
        old = _read_text(path) if Path(path).exists() else ""
        if old:
            _check_header(path, old)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
        if not old:
            writer.writeheader()
        for row in rows:
            writer.writerow({name: _write(getattr(row, name)) for name in FIELDS})
        replace_file(path, old + ("" if old.endswith("\n") or not old else "\n") + text.getvalue())


def read_results(path: str | os.PathLike) -> list[Result]:
    """Return the rows of the CSV file at `path`.

    Raises:
        ValueError: it is not such a table; the message names the file and the line.
    """
    text = _read_text(path)
    _check_header(path, text)
    rows = []
    for number, cells in enumerate(csv.DictReader(io.StringIO(text)), start=2):
        try:
            if None in cells or None in cells.values():
                raise ValueError(f"not {len(FIELDS)} fields")
            values: dict = {name: _read(name, cells[name]) for name in FIELDS}
            rows.append(Result(**values))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    return rows


def _read_text(path: str | os.PathLike) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a table of the benchmark: {error}") from None


def latest_cells(rows: Iterable[Result]) -> list[Cell]:
    """Return one cell, a dict from backend to row, for each workload, dtype, direction and device: of the last run."""
    cells: dict[tuple, tuple[tuple, Cell]] = {}
    for row in rows:
        place = (row.kind, row.device, *row.cell[1:])
        if place not in cells or cells[place][0] != row.cell:
            cells[place] = (row.cell, {})
        cells[place][1][row.backend] = row
    return [cell for _, cell in cells.values()]


def of_latest_devices(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells of one device of each kind, the one measured last."""
    latest: dict[str, Result] = {}
    for cell in cells:
        row = next(iter(cell.values()))
        if row.kind not in latest or (row.date, row.run) > (latest[row.kind].date, latest[row.kind].run):
            latest[row.kind] = row
    return [cell for cell in cells if (row := next(iter(cell.values()))).device == latest[row.kind].device]


def _check_header(path, text: str) -> None:
    header = tuple(next(csv.reader(io.StringIO(text)), ()))
    if header != FIELDS:
        raise ValueError(f"{path} is not a table of this version of the benchmark: its first line is {header}")


def _write(value) -> str:
    return "" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)


def _read(name: str, text: str):
    kind = _KINDS[name]
    if kind == "str":
        return text
    if not text:
        return None
    return int(text) if kind == "int" else float(text)


@functools.cache
def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
