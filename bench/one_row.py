"""What bounds a step of one row on a CPU: how fast one core reads weights of a size, beside a step of torch.nn.GRU.

    python bench/one_row.py

Takes about a minute on a quiet core. The product of one row with a packed matrix, by the function that the scan uses,
as often as a sequence has steps: the matrix stays where it fits, in the second cache, the third, or memory. Beside it a
step of torch.nn.GRU and of ours with as many recurrent weights, without gradients and with hardly any input. All with
one thread, in turn; each figure is the least of the medians of some rounds. Adds rows to bench/results/one_row.csv.
"""

from __future__ import annotations

import csv
import statistics
import sys
import time
from pathlib import Path

import numba
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tritongru import compat  # noqa: E402
from tritongru.backends.numba.kernels.products import tile_1  # noqa: E402
from tritongru.backends.numba.kernels.vectors import lanes, pointer  # noqa: E402
from tritongru.tools.benchmark.results import conditions  # noqa: E402

TABLE = ROOT / "bench" / "results" / "one_row.csv"
UNITS = (64, 128, 192, 256, 384, 512, 768, 1024)
STEPS, INPUTS, ROUNDS, CALLS = 128, 8, 8, 5
FIELDS = ("run", "date", "device", "torch", "python", "tritongru", "U", "weights_kib", "product_us", "product_gb_s",
          "numba_us", "nn_us", "nn_over_product", "nn_over_numba")  # fmt: skip


@numba.njit(error_model="numpy")
def multiply_often(row, weights, sums, K, N, steps, like):
    """Multiply a row of K numbers by a packed matrix (K,N), so many times; the arguments are addresses."""
    a, w, out = pointer(row, like), pointer(weights, like), pointer(sums, like)
    L = lanes(like)
    for _ in range(steps):
        for column in range(0, N, 3 * L):
            tile_1(a, 0, w, column * K, 3 * L, L, K, out, column, L)


def median_us(call) -> float:
    """Return the median of some calls, in microseconds a step."""
    times = []
    for _ in range(CALLS):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e6 / STEPS


def measure(U: int) -> dict[str, float]:
    """Return the microseconds a step of the product, of ours and of torch.nn.GRU."""
    N = 3 * U + -3 * U % 48  # whole panels of any vectors
    row, weights, sums = torch.randn(U), torch.randn(U * N), torch.empty(N)
    x, theirs, ours = torch.randn(STEPS, 1, INPUTS), torch.nn.GRU(INPUTS, U), compat.GRU(INPUTS, U, backend="numba")
    addresses = [t.data_ptr() for t in (row, weights, sums)]
    calls = {
        "product_us": lambda: multiply_often(*addresses, U, N, STEPS, np.float32(0)),
        "numba_us": lambda: ours(x),
        "nn_us": lambda: theirs(x),
    }
    found: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(ROUNDS):
        for name, call in calls.items():
            found[name].append(median_us(call))
    return {"weights_kib": 4 * U * N / 1024} | {name: min(values) for name, values in found.items()}


def main() -> int:
    """Measure, print and add to the table."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    about = conditions(torch.device("cpu"))
    rows = []
    with torch.no_grad():
        for U in UNITS:
            r = measure(U)
            r |= dict(
                product_gb_s=r["weights_kib"] * 1.024 / r["product_us"], nn_over_product=r["nn_us"] / r["product_us"],
                nn_over_numba=r["nn_us"] / r["numba_us"],
            )  # fmt: skip
            rows.append(about | {"U": U} | {name: f"{value:.4g}" for name, value in r.items()})
            print(" ".join(f"{name} {rows[-1][name]}" for name in FIELDS[6:]), flush=True)
    is_new = not TABLE.exists()
    with TABLE.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, extrasaction="ignore", lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
