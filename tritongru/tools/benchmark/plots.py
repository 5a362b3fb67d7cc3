"""Plots of the benchmark's table: time per step over units and batch, ratios to torch.nn.GRU, fraction of the floor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from .results import Result, latest_cells, of_latest_devices

RATIO_LIMITS = 0.1, 40.0


def draw(rows: Sequence[Result], folder: str | Path) -> list[Path]:
    """Draw every plot that `rows` have data for, of the devices measured last, into `folder`; returns the paths (SVG).

    Raises:
        ModuleNotFoundError: matplotlib is not installed; it is in the extra "plots".
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    cells = of_latest_devices(latest_cells(rows))
    timed = [row for cell in cells for row in cell.values() if row.p50_ms is not None and row.workload != "small"]
    paths = []
    for device in dict.fromkeys(row.device for row in timed):
        for dtype, direction in dict.fromkeys((r.dtype, r.direction) for r in timed if r.device == device):
            chosen = [r for r in timed if (r.device, r.dtype, r.direction) == (device, dtype, direction)]
            title = f"{device}, {dtype}, {direction}"
            stem = f"{chosen[0].kind}-{dtype}-{direction.replace('+', '-')}"
            paths += _over(chosen, "U", "B", f"{title}: time of a step over units", folder / f"units-{stem}.svg")
            paths += _over(chosen, "B", "U", f"{title}: time of a step over batch", folder / f"batch-{stem}.svg")
            paths += _ratios(chosen, title, folder / f"ratio-{stem}.svg")
            paths += _floor(chosen, title, folder / f"floor-{stem}.svg")
    return paths


def _over(rows: list[Result], along: str, fixed: str, title: str, path: Path) -> list[Path]:
    """One panel for each T and value of `fixed`, one line for each backend; lines of one point are left out."""
    plain = [row for row in rows if not row.features]
    panels = {}
    for T, value in sorted({(row.T, getattr(row, fixed)) for row in plain}):
        here = [row for row in plain if (row.T, getattr(row, fixed)) == (T, value)]
        lines = {name: points for name, points in _lines(here, along).items() if len(points) > 1}
        if lines:
            panels[T, value] = lines
    if not panels:
        return []
    figure, axes = make_panels(len(panels))
    for axis, ((T, value), lines) in zip(axes, panels.items(), strict=False):
        for name, points in lines.items():
            axis.plot(*zip(*points, strict=True), marker="o", label=name)
        axis.set(xscale="log", yscale="log", xlabel=along, ylabel="us a step", title=f"{fixed} = {value}, T = {T}")
        axis.set_xticks([x for x, _ in next(iter(lines.values()))], [str(x) for x, _ in next(iter(lines.values()))])
        axis.minorticks_off()
        axis.legend(fontsize=7)
    return save_figure(figure, title, path)


def _lines(rows: Iterable[Result], along: str) -> dict[str, list[tuple[int, float]]]:
    """Return (size, us a step) by backend; the least where several workloads share a size."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if row.us_per_step is not None:
            points, place = found.setdefault(row.backend, {}), getattr(row, along)
            points[place] = min(row.us_per_step, points.get(place, row.us_per_step))
    return {name: sorted(points.items()) for name, points in found.items()}


def _ratios(rows: list[Result], title: str, path: Path) -> list[Path]:
    """A bar for each backend and workload that torch.nn.GRU runs too: right of the line is faster than torch."""
    found = [row for row in rows if row.ratio_to_nn_gru is not None and row.backend != "nn.GRU"]
    if not found:
        return []
    labels = list(dict.fromkeys(_label(row) for row in found))
    backends = list(dict.fromkeys(row.backend for row in found))
    figure, axes = make_panels(1, height=1.5 + 0.12 * len(labels) * len(backends), width=8)
    thickness = 0.8 / len(backends)
    for number, backend in enumerate(backends):
        mine = [row for row in found if row.backend == backend]
        places = [labels.index(_label(row)) + (number - len(backends) / 2) * thickness for row in mine]
        axes[0].barh(places, [row.ratio_to_nn_gru for row in mine], height=thickness, label=backend)
    axes[0].axvline(1.0, color="black", linewidth=1)
    axes[0].set(xscale="log", xlim=RATIO_LIMITS, xlabel="time of torch.nn.GRU / time")
    axes[0].set_yticks(range(len(labels)), labels, fontsize=7)
    axes[0].invert_yaxis()
    axes[0].legend(fontsize=7)
    return save_figure(figure, f"{title}: against torch.nn.GRU", path)


def _floor(rows: list[Result], title: str, path: Path) -> list[Path]:
    """The fraction of the step's floor (tritongru.tools.benchmark.floor) over units: 1 cannot be reached."""
    found = [row for row in rows if row.floor_us and row.us_per_step and not row.features]
    if not found:
        return []
    figure, axes = make_panels(1, width=7)
    for backend in dict.fromkeys(row.backend for row in found):
        mine = [row for row in found if row.backend == backend]
        fractions = [row.floor_us / row.us_per_step for row in mine if row.floor_us and row.us_per_step]
        axes[0].scatter([row.U for row in mine], fractions, label=backend, s=12)
    axes[0].set(xscale="log", yscale="log", xlabel="U", ylabel="floor / measured")
    axes[0].legend(fontsize=7)
    return save_figure(figure, f"{title}: fraction of the step's floor", path)


def _label(row: Result) -> str:
    return f"{row.workload} {row.T},{row.B},{row.I},{row.U}"


def make_panels(count: int, height: float = 3.2, width: float = 4.2):
    """Return a figure and its `count` panels, or a few more, three in a line."""
    from matplotlib.figure import Figure

    columns = min(count, 3)
    lines = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * lines), layout="constrained")
    return figure, list(figure.subplots(lines, columns, squeeze=False).flat)


def save_figure(figure, title: str, path: Path) -> list[Path]:
    """Write the figure as SVG, panels without data left blank."""
    import matplotlib

    for axis in figure.axes:
        if not axis.has_data():
            axis.set_axis_off()
    figure.suptitle(title, fontsize=9)
    # The same numbers give the same file.
    with matplotlib.rc_context({"svg.hashsalt": path.name}):
        figure.savefig(path, metadata={"Date": None})
    return [path]
