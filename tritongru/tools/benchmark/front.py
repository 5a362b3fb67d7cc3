"""The front page's picture: who runs what, and how fast beside torch.nn.GRU, of the newest run on one device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .contenders import INFERENCE, TRAINING
from .plots import save_figure
from .results import Cell, Result, latest_cells

OURS = "auto"
# Who is shown where torch.nn.GRU runs too, and who where it cannot.
RUNTIMES = ("onnxruntime", "openvino", "jax")
LOOPS = ("reference", "loop", "nn.GRU-packed", "keras")
NAMES = {
    OURS: "tritongru",
    "openvino": "OpenVINO",
    "jax": "JAX",
    "reference": "loop of torch operations",
    "loop": "loop of nn.GRUCell",
    "nn.GRU-packed": "nn.GRU, packed",
    "keras": "Keras 3 on torch",
}


def draw_front(rows: Sequence[Result], path: Path) -> list[Path]:
    """Draw the picture of the newest run among `rows`; returns its path, nothing where no run has both kinds of rows.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; it is in the extra "plots".
    """
    timed = [row for row in rows if row.p50_ms is not None]
    if not timed:
        return []
    newest = max(timed, key=lambda row: row.run)
    cells = [
        {name: row for name, row in cell.items() if row.p50_ms is not None}
        for cell in latest_cells(timed)
        if next(iter(cell.values())).device == newest.device
    ]
    panels = [
        (title, names, base, found)
        for title, names, base, direction in (
            ("inference", RUNTIMES, "nn.GRU", INFERENCE),
            ("training", RUNTIMES, "nn.GRU", TRAINING),
            ("training, what nn.GRU lacks", LOOPS, OURS, TRAINING),
        )
        if (found := _cells_of(cells, names, base, direction))
    ]
    if not panels:
        return []
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = _make_panels([len(found) for *_, found in panels])
    for axis, (title, names, base, found) in zip(axes, panels, strict=True):
        _draw_panel(axis, title, names, base, found)
    return save_figure(figure, f"{newest.device}, {newest.threads} threads, float32, torch {newest.torch}", path)


def _cells_of(cells: Sequence[Cell], names: Sequence[str], base: str, direction: str) -> list[Cell]:
    found = []
    for cell in cells:
        row = cell.get(OURS)
        asked = row is not None and (row.direction, row.dtype) == (direction, "float32")
        # Where torch's layer runs too nothing else is asked of the layer; where it cannot, a feature is.
        if asked and base in cell and bool(row.features) == (base == OURS) and any(name in cell for name in names):
            found.append(cell)
    return sorted(found, key=lambda cell: (cell[OURS].B, cell[OURS].U, cell[OURS].T))


def _make_panels(counts: Sequence[int]):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(counts), 1.6 + 0.24 * max(counts)), layout="constrained")
    return figure, list(figure.subplots(1, len(counts), squeeze=False).flat)


def _draw_panel(axis, title: str, names: Sequence[str], base: str, cells: Sequence[Cell]) -> None:
    """A line for each workload, a mark for each who runs it; at 1 stands `base`.

    Beside torch.nn.GRU, to the right is faster than it; beside ours, to the right is slower.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator

    faster = base != OURS
    for name in (OURS, *names):
        ratios = [(_ms(cell[base]) / _ms(cell[name]), place) for place, cell in enumerate(cells) if name in cell]
        points = [(ratio if faster else 1 / ratio, place) for ratio, place in ratios]
        if points and name != base:
            style = {"marker": "o", "s": 46, "zorder": 3} if name == OURS else {"marker": "|", "s": 90, "linewidth": 2}
            axis.scatter(*zip(*points, strict=True), label=NAMES.get(name, name), **style)
    axis.axvline(1.0, color="black", linewidth=1, label=NAMES.get(base, base))
    labels = [
        f"{cell[OURS].workload}  {cell[OURS].T}, {cell[OURS].B}, {cell[OURS].I}, {cell[OURS].U}" for cell in cells
    ]
    axis.set_yticks(range(len(cells)), labels, fontsize=7)
    axis.invert_yaxis()
    axis.grid(axis="y", linewidth=0.3)
    said = f"times as fast as {NAMES.get(base, base)}" if faster else f"times as long as {NAMES[OURS]}"
    axis.set(xscale="log", title=title, xlabel=said)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.minorticks_off()
    axis.legend(fontsize=7)


def _ms(row: Result) -> float:
    assert row.p50_ms is not None, "a row without a time was to be left out"
    return row.p50_ms
