"""Plots of a sweep's CSV: the winners' time per step over U and over B, and the fraction of the floor they reach."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...tuning.tables import MEASURED, MODELLED, REPLAYED
from ..benchmark.plots import make_panels, save_figure

# Of each kind of result, its column.
COLUMNS = {MODELLED: "model_us", REPLAYED: "replay_us", MEASURED: "p50_us"}


@dataclass(frozen=True)
class Point:
    """A winner: what for, its configuration's schedule, its step and the floor of a step, us."""

    title: str
    units: int
    batch: int
    schedule: str
    step: float
    floor: float


def read_points(path: Path) -> list[Point]:
    """Return the winners of a sweep; ValueError for a file that is not a sweep's CSV or holds no winner."""
    points = []
    with open(path, encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            try:
                if row["wins"] != "1":
                    continue
                words = (row["device"], row["kernel"], row["dtype"], row["precision"], row["flags"], row["kind"])
                step = float(row[COLUMNS[row["kind"]]])
                points.append(
                    Point(
                        " ".join(word for word in words if word), int(row["units"]), int(row["batch"]),
                        row["schedule"], step, float(row["floor_us"]),
                    )
                )  # fmt: skip
            except (KeyError, ValueError, TypeError) as error:
                raise ValueError(f"{path}: line {number} is not of a tuning sweep: {error!r}") from error
    if not points:
        raise ValueError(f"{path}: no winner in it")
    return points


def draw_sweep(path: Path) -> list[Path]:
    """Draw the plots of a sweep beside its CSV, as SVG; returns their paths.

    Raises:
        ValueError: the CSV is not a sweep's. ModuleNotFoundError: matplotlib is not installed (the extra "plots").
    """
    points = read_points(path)
    return [
        _draw(
            points, path.with_name(f"{path.stem}-units.svg"), "units U", "us per step",
            lambda p: (f"B={p.batch}", p.units, p.step),
        ),
        _draw(
            points, path.with_name(f"{path.stem}-batch.svg"), "batch B", "us per step",
            lambda p: (f"U={p.units}", p.batch, p.step),
        ),
        _draw(
            points, path.with_name(f"{path.stem}-floor.svg"), "units U", "floor / step",
            lambda p: (f"B={p.batch}", p.units, p.floor / p.step),
        ),
    ]  # fmt: skip


def _draw(points: list[Point], path: Path, along: str, up: str, take: Callable[[Point], tuple]) -> Path:
    """One panel for each kernel, dtype and variant; one line for each of what `take` names; marks by schedule."""
    marks = {"single": "o", "persistent": "s", "streamed": "^", "steps": "x"}
    key = ", ".join(f"{name} {mark}" for name, mark in zip(marks, "●■▲×", strict=True))
    titles = list(dict.fromkeys(point.title for point in points))
    figure, axes = make_panels(len(titles), height=4, width=6)
    for axis, title in zip(axes, titles, strict=False):
        mine = [point for point in points if point.title == title]
        for name in dict.fromkeys(take(point)[0] for point in mine):
            line = sorted((point for point in mine if take(point)[0] == name), key=lambda point: take(point)[1])
            xs, ys = [take(point)[1] for point in line], [take(point)[2] for point in line]
            (drawn,) = axis.plot(xs, ys, label=name, linewidth=1)
            for x, y, point in zip(xs, ys, line, strict=True):
                axis.plot(x, y, marks[point.schedule], color=drawn.get_color(), markersize=4)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_title(title, fontsize=8)
        axis.set(xlabel=along, ylabel=up)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, ncols=3, title=key, title_fontsize=7)
    return save_figure(figure, f"{up} over {along}", path)[0]
