"""Two directions and several heads in numba, at once and one after another, side by side.

    python bench/members.py --threads 2

Takes about two minutes on two quiet cores. Adds rows to bench/results/members.csv: the least of five medians, in
milliseconds, of calls taken in turn.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tritongru import compat, dispatch, gru  # noqa: E402
from tritongru.tools.benchmark.results import conditions  # noqa: E402

TABLE = ROOT / "bench" / "results" / "members.csv"
DIRECTIONS = [(1, 100, 64), (1, 100, 128), (1, 100, 256), (1, 200, 512), (4, 100, 256), (16, 100, 256), (64, 50, 128)]
HEADS = [(1, 100, 256, 4), (4, 100, 256, 4), (16, 100, 256, 8), (32, 50, 512, 8)]
FIELDS = (
    "run", "date", "device", "torch", "python", "tritongru", "threads", "members", "mode", "B", "T", "U",
    "at_once_ms", "apart_ms", "ratio", "chosen", "repeats",
)  # fmt: skip


def directions(batch: int, time_steps: int, units: int, training: bool) -> Callable[[], None]:
    """Return a call of a bidirectional layer with as many inputs as units."""
    layer, x = compat.GRU(units, units, bidirectional=True, backend="numba"), torch.randn(time_steps, batch, units)

    def call() -> None:
        with torch.set_grad_enabled(training):
            output, _ = layer(x)
        if training:
            output.sum().backward()

    return call


def heads(batch: int, time_steps: int, units: int, count: int, training: bool) -> Callable[[], None]:
    """Return a call of several heads."""
    x, kernel, width = torch.randn(batch, time_steps, units), torch.randn(units, 3 * units) / units**0.5, units // count
    recurrent = (torch.randn(count, width, 3 * width) / width**0.5).requires_grad_(training)

    def call() -> None:
        outputs, _ = gru(x, kernel, recurrent, backend="numba")
        if training:
            outputs.sum().backward()

    return call


def measure(call: Callable[[], None], repeats: int) -> tuple[float, float]:
    """Return the milliseconds of a call whose members run at once, and one after another."""
    chosen, best = dispatch.RUNS_AT_ONCE["numba"], [float("inf")] * 2
    for _ in range(5):
        for place, at_once in enumerate((True, False)):
            dispatch.RUNS_AT_ONCE["numba"] = lambda signature, at_once=at_once: at_once
            dispatch.forget()
            call()
            times = []
            for _ in range(repeats):
                begin = time.perf_counter()
                call()
                times.append(1e3 * (time.perf_counter() - begin))
            best[place] = min(best[place], statistics.median(times))
    dispatch.RUNS_AT_ONCE["numba"] = chosen
    dispatch.forget()
    return best[0], best[1]


def main() -> None:
    """Measure every case and add the rows to the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, default=TABLE, help="the table the rows are added to")
    parser.add_argument("--threads", type=int, default=2, help="of torch and of numba's scan")
    parser.add_argument("--repeats", type=int, default=5, help="calls of which the median is taken, five times")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    where, rows = conditions(torch.device("cpu")), []
    cases = [(2, case, directions) for case in DIRECTIONS] + [(case[3], case, heads) for case in HEADS]
    for members, case, make in cases:
        for training in (False, True):
            call = make(*case, training)
            at_once, apart = measure(call, options.repeats)
            values = where | {
                "members": members, "mode": "training" if training else "inference", "B": case[0], "T": case[1],
                "U": case[2], "at_once_ms": f"{at_once:.4g}", "apart_ms": f"{apart:.4g}",
                "ratio": f"{apart / at_once:.3g}", "repeats": options.repeats,
                "chosen": "at once" if _is_at_once(members, case, training) else "apart",
            }  # fmt: skip
            rows.append({name: values[name] for name in FIELDS})
            print(*(values[name] for name in FIELDS[7:]), flush=True)
    is_new = not options.csv.exists()
    with options.csv.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def _is_at_once(members: int, case: tuple[int, ...], training: bool) -> bool:
    """Return what numba's own rule chooses."""
    if members > 2:
        return True
    layer = compat.GRU(case[2], case[2], bidirectional=True, backend="numba")
    with torch.set_grad_enabled(training):
        return layer.explain(torch.randn(case[1], case[0], case[2])).members > 1


if __name__ == "__main__":
    main()
