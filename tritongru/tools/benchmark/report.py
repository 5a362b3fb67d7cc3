"""docs/performance.md, written from the committed tables: the same tables give the same text, losses included."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path

from .goals import GOALS, RUNTIMES, geometric_mean, judge, times_as_fast
from .memory import kept_bytes, kept_bytes_of_torch
from .results import FIELDS, Cell, Result, latest_cells, of_latest_devices, read_results
from .workloads import NAMED

RESULTS, NOTES, PAGE = Path("bench/results"), Path("docs/performance_notes.md"), Path("docs/performance.md")
PLOTS, REPLAYED = Path("docs/plots"), Path("tritongru/data/replayed.csv")
FRONT = Path("docs/figures/front.svg")
HEADER = """# Performance

<!-- Written by `python -m tritongru bench --report` from bench/results/*.csv and docs/performance_notes.md. -->
"""
MOST_LINES = 60


def write_report(root: Path = Path(".")) -> Path:
    """Draw the plots, where matplotlib is installed, write docs/performance.md below `root` and return its path.

    Raises:
        FileNotFoundError: the notes are not there: not the root of the repository.
        ValueError: a damaged table; the message names file and line.
    """
    from ..files import replace_file

    rows, _ = read_tables(root / RESULTS)
    if rows and importlib.util.find_spec("matplotlib") is not None:
        from .front import draw_front
        from .plots import draw

        draw(rows, root / PLOTS)
        draw_front(rows, root / FRONT)
    page = root / PAGE
    replace_file(page, render(root))
    return page


def render(root: Path = Path(".")) -> str:
    """Return the page for the tables below `root`."""
    notes = (root / NOTES).read_text(encoding="utf-8").strip()
    rows, others = read_tables(root / RESULTS)
    cells = latest_cells(rows)
    latest = of_latest_devices(cells)
    parts = [HEADER, notes, "", *_goals(cells)]
    for kind, title in (("cuda", "GPU"), ("cpu", "CPU")):
        parts += _device_section(title, [cell for cell in cells if next(iter(cell.values())).kind == kind])
    parts += _memory_section(latest) + _replayed_section(root / REPLAYED)
    for path in others:
        parts += _plain_table(path)
    drawn = sorted(path.name for path in (root / PLOTS).glob("*.svg"))
    parts += ["## Plots", "", *(f"![{name}]({PLOTS.name}/{name})" for name in drawn)] if drawn else []
    return "\n".join(parts).rstrip() + "\n"


def read_tables(folder: Path) -> tuple[list[Result], list[Path]]:
    """Return all rows of the benchmark's tables in `folder`, and the paths of the other tables there."""
    rows: list[Result] = []
    others = []
    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            header = tuple(next(csv.reader(file), ()))
        if header == FIELDS:
            rows += read_results(path)
        else:
            others.append(path)
    return rows, others


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table and an empty one; nothing for no rows."""
    lines = ["| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in row) + " |" for row in rows]
    if not lines:
        return []
    return ["| " + " | ".join(headers) + " |", "|" + "---|" * len(headers), *lines, ""]


def _goals(cells: list[Cell]) -> list[str]:
    lines = ["## Goals and what was measured", ""]
    for kind in ("cpu", "cuda"):
        devices: dict[str, list[Cell]] = {}
        for cell in cells:
            row = next(iter(cell.values()))
            if row.kind == kind:
                devices.setdefault(row.device, []).append(cell)
        of_kind = [goal for goal in GOALS if goal.kind == kind]
        rows = [(goal.text, *(judge(goal, found) for found in devices.values() or [[]])) for goal in of_kind]
        lines += table(("goal", *(devices or ["measured"])), rows)
    return lines


def _replayed_section(path: Path) -> list[str]:
    """Return a table of estimates, named as such; nothing where there is none."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["dtype"] == "bf16" and not row["feature"]]
    units = sorted({int(row["units"]) for row in rows})
    found = {(row["kernel"], int(row["units"])): row for row in rows}

    def cells(n: int) -> list[str]:
        both = [found[kernel, n] for kernel in ("forward", "backward")]
        return [str(n), *(text for row in both for text in (row["microseconds"], row["cycles"], row["tiling"]))]

    headers = ["units", *(f"{k} {what}" for k in ("forward", "backward") for what in ("us", "cycles", "tiling"))]
    return [
        "## Replayed, not measured", "",
        "Estimates: the machine code that the compiler makes of the kernels for an H100, bfloat16 and at most 16 rows, "
        "followed instruction by instruction for one step, with latencies from the literature and 1.755 GHz "
        "([tuning.md](tuning.md), \"The replay\"). They compare kernels, and are no results.", "",
        *table(headers, map(cells, units)),
    ]  # fmt: skip


def _device_section(title: str, cells: list[Cell]) -> list[str]:
    lines = [f"## {title}", ""]
    if not cells:
        return [*lines, f"Nothing has been measured on a {title} so far.", ""]
    places: dict[tuple, list[Cell]] = {}
    for cell in cells:
        row = next(iter(cell.values()))
        places.setdefault((row.device, row.torch, row.triton, row.python, row.threads, row.date), []).append(cell)
    for (device, torch, triton, python, threads, date), found in places.items():
        conditions = f"torch {torch}, triton {triton}, Python {python}, {threads} threads, {date}"
        lines += [f"### {device}", "", conditions + ".", ""]
        lines += _against_torch(found) + _small_calls(found) + _against_loops(found) + _against_packed(found)
    return lines


def _against_torch(cells: list[Cell]) -> list[str]:
    rows, ratios = [], {}
    for cell in cells:
        ours, torch = cell.get("auto"), cell.get("nn.GRU")
        if not (ours and torch and ours.p50_ms and torch.p50_ms and ours.ratio_to_nn_gru) or ours.features:
            continue
        ratios.setdefault((ours.dtype, ours.direction), []).append(ours.ratio_to_nn_gru)
        rows.append(
            (*_place(ours), _ms(torch), _ms(ours), ours.notes.removeprefix("is ").removesuffix(" here"),
             _times(ours.ratio_to_nn_gru), _times(times_as_fast(*RUNTIMES)(cell)), _short(ours.us_per_step),
             _fraction(ours), _rest(cell))
        )  # fmt: skip
    if not rows:
        return []
    headers = ("workload", "T, B, I, U", "dtype", "direction", "nn.GRU ms", "auto ms", "auto is", "nn.GRU / auto",
               "fastest runtime / auto", "us a step", "of the floor", "others, ms")  # fmt: skip
    sums = [
        f"- {dtype}, {direction}: nn.GRU / auto is {geometric_mean(found):.2f} in the geometric mean, from "
        f"{min(found):.2f} to {max(found):.2f}; slower than torch (below 1) in {sum(r < 1 for r in found)} of "
        f"{len(found)}."
        for (dtype, direction), found in ratios.items()
    ]
    return ["Against torch.nn.GRU:", "", *table(headers, rows), *sums, ""]


def _small_calls(cells: list[Cell]) -> list[str]:
    pairs = (
        ("nn.GRU", None), ("compat.GRU", "nn.GRU"), ("tritongru.GRU", "nn.GRU"), ("nn.GRUCell", None),
        ("Stream.step", "nn.GRUCell"), ("Stream.step-eager", "nn.GRUCell"),
    )  # fmt: skip
    rows, threads = [], 0
    for cell in cells:
        layer = cell.get("compat.GRU")
        if layer is None or layer.p50_ms is None:
            continue
        found = []
        for name, base in pairs:
            row = cell.get(name)
            if row is None or row.p50_ms is None:
                found.append("")
            else:
                quotient = times_as_fast(name, ours=base)(cell) if base else None
                found.append(f"{row.p50_ms * 1e3:.1f}" + (f" ({quotient:.2f})" if quotient else ""))
        threads = layer.threads
        rows.append((f"{layer.T}, {layer.B}, {layer.I}, {layer.U}", layer.notes.split()[1], *found))
    lines = table(("T, B, I, U", "compat.GRU is", *(name for name, _ in pairs)), rows)
    about = (
        f"Small calls in inference, {threads} thread{'s' * (threads > 1)}: us a call, and in brackets over the time of"
    )
    return [about, "torch.nn.GRU, of torch.nn.GRUCell for a step (below 1 is faster):", "", *lines] if lines else []


def _against_loops(cells: list[Cell]) -> list[str]:
    rows = []
    for cell in cells:
        ours = cell.get("auto")
        if not ours or not ours.p50_ms or not ours.features:
            continue
        found = [cell.get(name) for name in ("reference", "loop", "keras")]
        quotients = [_times(row.p50_ms / ours.p50_ms) if row and row.p50_ms else "" for row in found]
        rows.append((*_place(ours), _ms(ours), *quotients))
    headers = ("workload", "T, B, I, U", "dtype", "direction", "auto ms", "reference / auto", "loop / auto",
               "Keras 3 / auto")  # fmt: skip
    lines = table(headers, rows)
    return ["What torch.nn.GRU lacks, against loops of torch operations:", "", *lines] if lines else []


def _against_packed(cells: list[Cell]) -> list[str]:
    rows = []
    for cell in cells:
        ours, packed, padded = (cell.get(name) for name in ("auto", "nn.GRU-packed", "nn.GRU"))
        if ours and packed and ours.p50_ms and packed.p50_ms:
            quotient = padded.p50_ms / ours.p50_ms if padded and padded.p50_ms else None
            rows.append((*_place(ours), _ms(packed), _ms(ours), _times(packed.p50_ms / ours.p50_ms), _times(quotient)))
    headers = ("workload", "T, B, I, U", "dtype", "direction", "packed ms", "auto ms", "packed / auto",
               "padded, lengths ignored / auto")  # fmt: skip
    lines = table(headers, rows)
    return ["Rows of different length, against torch.nn.GRU with packed sequences:", "", *lines] if lines else []


def _memory_section(cells: list[Cell]) -> list[str]:
    lines = [
        "## Memory of a training step", "",
        "What is kept between forward and backward, computed by the formulas of `tritongru.tools.benchmark.memory`.",
        "Tests hold them to the bytes that autograd really keeps. What cuDNN keeps for torch.nn.GRU on a GPU can",
        "only be measured.", "",
    ]  # fmt: skip
    rows = [
        (w.name, f"{w.time}, {w.batch}, {w.input_size}, {w.units}", dtype, *(
            _mebibytes(sum(kept_bytes(w, dtype, recompute).values())) for recompute in (False, True)),
            _mebibytes(kept_bytes_of_torch(w, dtype)) if not w.features else "")
        for w in NAMED for dtype in ("float32", "bfloat16")
    ]  # fmt: skip
    lines += table(("workload", "T, B, I, U", "dtype", "triton and eager, MiB", "recompute=True, MiB",
                    "torch.nn.GRU on a CPU, MiB"), rows)  # fmt: skip
    measured = []
    for cell in cells:
        for row in cell.values():
            if row.saved_bytes or row.peak_bytes:
                saved = "" if row.saved_bytes is None else _mebibytes(row.saved_bytes)
                peak = "" if row.peak_bytes is None else _mebibytes(row.peak_bytes)
                measured.append((*_place(row), row.backend, saved, peak))
    if measured:
        lines += ["Measured: what autograd keeps, and on a GPU the peak beside inputs and weights. Torch's cuDNN call",
                  "keeps a buffer that autograd does not see; only the peak shows it.", ""]  # fmt: skip
        headers = ("workload", "T, B, I, U", "dtype", "direction", "backend", "kept, MiB", "peak, MiB")
        lines += table(headers, measured)
    return lines


def _plain_table(path: Path) -> list[str]:
    """A table of another tool, as it is, or where it lies if it is long; what all rows share stands above it."""
    with path.open(encoding="utf-8", newline="") as file:
        names, *rows = list(csv.reader(file)) or [[]]
    if not rows:
        return []
    columns = list(zip(names, zip(*rows, strict=True), strict=True))
    shared = {name: values[0] for name, values in columns if len(rows) > 1 and len(set(values)) == 1}
    above = [", ".join(f"{name} {value}" for name, value in shared.items() if value) + ".", ""] if shared else []
    shown = [number for number, name in enumerate(names) if name not in shared]
    lines = table([names[number] for number in shown], [[row[number] for number in shown] for row in rows])
    if len(rows) > MOST_LINES:
        lines = [f"[{len(rows)} rows](../{RESULTS}/{path.name}).", ""]
    return [f"## bench/results/{path.name}", "", *above, *lines]


def _place(row: Result) -> tuple[str, ...]:
    return row.workload, f"{row.T}, {row.B}, {row.I}, {row.U}", row.dtype, row.direction


def _rest(cell: Cell) -> str:
    """The backends that have no column, without the loops."""
    found = [row for name, row in cell.items() if name not in ("auto", "nn.GRU", "loop", "reference")]
    return ", ".join(f"{row.backend} {_ms(row)}" for row in found if row.p50_ms)


def _ms(row: Result) -> str:
    return "" if row.p50_ms is None else _short(row.p50_ms)


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _fraction(row: Result) -> str:
    return f"{row.floor_us / row.us_per_step:.0%}" if row.floor_us and row.us_per_step else ""


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.3g}"
