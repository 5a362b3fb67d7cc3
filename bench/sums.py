"""The gradients that are sums over all steps, by compiled code and by a library's products, side by side.

    python bench/sums.py --threads 2

Takes three minutes on two quiet cores, four with one thread. Adds rows to bench/results/sums.csv: the least of five
medians, in microseconds, of both, timed in turn, for so many rows of all steps.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from members import add  # noqa: E402
from sharing import FIELDS, time_again  # noqa: E402

from tritongru.backends.numba.plain_sums import sum_plainly  # noqa: E402
from tritongru.call.problem import Inputs  # noqa: E402
from tritongru.tools.benchmark.results import conditions  # noqa: E402

TABLE = ROOT / "bench" / "results" / "sums.csv"
SIZES = [(8, 64), (64, 64), (40, 128), (128, 128), (257, 256), (256, 256), (512, 512), (650, 650)]  # I, U
ROWS = (16, 64, 128, 512, 4096)


def make_calls(layout: str, rows: int, inputs: int, units: int, with_x: bool) -> list[Callable[[], object]]:
    """Return the two calls that are timed, ours first."""

    def weights(count: int) -> torch.Tensor:
        return torch.randn(count, 3 * units) if layout == "keras" else torch.randn(3 * units, count).t()

    bias, h0 = torch.randn(3 * units), torch.randn(rows, units)
    x, d, entering = (torch.randn(rows, columns) for columns in (inputs, 4 * units, units))
    a = Inputs(x[None], weights(inputs), bias, weights(units), bias, h0)
    wanted = Inputs(with_x, *[True] * 4, False)  # type: ignore[arg-type]

    def multiply() -> None:
        if with_x:
            torch.mm(d[:, units:], a.w.t())  # type: ignore[union-attr]
        parts = ((x, d[:, units:]), (entering, d[:, units : 3 * units]), (entering, d[:, :units]))
        for left, right in parts:
            torch.mm(left.t(), right) if layout == "keras" else torch.mm(right.t(), left)
        d.sum(0)

    return [lambda: sum_plainly(a, wanted, d, entering, awake=True), multiply]


def main() -> None:
    """Measure every case and add the rows to the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, default=TABLE, help="the table the rows are added to")
    parser.add_argument("--threads", type=int, default=2, help="of torch and of the compiled code")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    where = conditions(torch.device("cpu"))
    cases = [
        (layout, rows, *sizes, with_x)
        for sizes in SIZES for layout in ("torch", "keras") for rows in ROWS for with_x in (False, True)
    ]  # fmt: skip
    for layout, rows, inputs, units, with_x in cases:
        calls, best = make_calls(layout, rows, inputs, units, with_x), [float("inf")] * 2
        for _ in range(5):
            for place, call in enumerate(calls):
                best[place] = time_again(call, best[place])
        values = {name: where[name] for name in FIELDS}
        values |= dict(layout=layout, rows=rows, I=inputs, U=units, gradient_of_x="yes" if with_x else "no")
        times = dict(ours_us=f"{best[0]:.4g}", library_us=f"{best[1]:.4g}", ratio=f"{best[1] / best[0]:.3g}")
        add(options.csv, values | times)
        print(*list((values | times).values())[7:], flush=True)


if __name__ == "__main__":
    main()
