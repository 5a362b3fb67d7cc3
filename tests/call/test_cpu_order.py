"""What "auto" takes on a CPU: on the grid that was measured its choice is the fastest backend, or about as fast."""

import csv
from pathlib import Path

from tritongru.call.problem import Shape
from tritongru.cpu_order import order_on_cpu

TABLE = Path(__file__).parents[2] / "bench" / "results" / "dispatch" / "cpu.csv"
BACKENDS = ("aten", "numba", "eager")
CELL = ("device", "threads", "layout", "direction", "T", "B", "I", "U")
# The sizes were read off this processor's rows.
OF_THE_SIZES, ANOTHER = "AMD EPYC (AVX2)", "AMD EPYC (AVX512)"


def read_cells(device: str = OF_THE_SIZES) -> list[dict[str, str]]:
    """Return the newest row of each cell of a device."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = (row for row in csv.DictReader(file) if row["device"] == device)
        return list({tuple(row[name] for name in CELL): row for row in rows}.values())


def losses(cells, without=()) -> dict[tuple, float]:
    """Return how many times as long as the fastest backend the first choice takes, by cell."""
    found = {}
    for row in cells:
        T, B, I, U = (int(row[name]) for name in ("T", "B", "I", "U"))
        order = order_on_cpu(Shape(B, T, I, U), row["direction"] != "inference", row["layout"] == "torch")
        times = {name: float(row[f"{name}_us"]) for name in BACKENDS if name not in without}
        chosen = next(name for name in order if name in times)
        found[tuple(row[name] for name in CELL[1:])] = times[chosen] / min(times.values())
    return found


def report(found: dict[tuple, float], bound: float) -> str:
    return "\n".join(f"{' '.join(cell)}: {loss:.2f}" for cell, loss in found.items() if loss > bound)


def test_the_table_has_the_grid():
    cells = read_cells()
    for name, values in (("threads", "1"), ("layout", ("torch", "keras")), ("T", ("1", "2", "4", "8", "16", "128"))):
        assert set(values) <= {row[name] for row in cells}
    assert len(cells) > 300


def test_the_choice_is_never_slower_than_the_fastest_by_more_than_five_percent():
    found = losses(read_cells())
    assert max(found.values()) <= 1.05, report(found, 1.05)


def test_on_another_processor_the_choice_is_seldom_slower():
    found = losses(read_cells(ANOTHER))
    assert len(found) > 300
    assert sum(loss > 1.05 for loss in found.values()) <= 0.03 * len(found), report(found, 1.05)
    assert max(found.values()) <= 1.3, report(found, 1.3)


def test_other_orders_would_fail():
    """The bound of the test above can be missed: it is by every order that does not look at sizes."""
    for name in BACKENDS:
        slower = [float(row[f"{name}_us"]) / min(float(row[f"{n}_us"]) for n in BACKENDS) for row in read_cells()]
        assert max(slower) > 1.3


def test_without_numba_the_choice_is_seldom_slower():
    """aten and eager are close to each other where one takes over from the other."""
    found = losses(read_cells(), without=("numba",))
    assert sum(loss > 1.05 for loss in found.values()) <= 0.15 * len(found), report(found, 1.05)
