"""aten, numba and eager side by side on a grid of sizes: what "auto" chooses by on a CPU (`tritongru/dispatch.py`).

    python bench/dispatch.py --threads 1        about four minutes; then --threads 2
    python bench/dispatch.py --threads 1 --doubtful     the cells in which "auto" lost once more, four times as long

Adds rows to bench/results/dispatch/cpu.csv: the median microseconds of a call. A test holds the choice to the newest
row of each cell.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numba  # noqa: E402
import torch  # noqa: E402

from tritongru.call.problem import Shape  # noqa: E402
from tritongru.cpu_order import order_on_cpu  # noqa: E402
from tritongru.environment import has_large_cache  # noqa: E402
from tritongru.functional import gru  # noqa: E402
from tritongru.layouts import torch_to_keras  # noqa: E402
from tritongru.tools.benchmark.contenders import INFERENCE, TRAINING, Contender, make_call  # noqa: E402
from tritongru.tools.benchmark.results import conditions, device_name  # noqa: E402
from tritongru.tools.benchmark.timing import measure  # noqa: E402
from tritongru.tools.benchmark.work import Work  # noqa: E402
from tritongru.tools.benchmark.workloads import Workload  # noqa: E402

TABLE = ROOT / "bench" / "results" / "dispatch" / "cpu.csv"
STEPS, BATCHES, UNITS = (1, 2, 4, 8, 16, 32, 128), (1, 4, 16, 64), (64, 128, 256, 512)
LARGE = (768, 1024, 2048)  # at a few steps alone
DIRECTIONS = INFERENCE, TRAINING
BACKENDS = ("aten", "numba", "eager")
MOST_WORK = 1 << 29  # T B U U: beyond it nothing is in doubt, and every sample takes long
FIELDS = (
    "date", "device", "torch", "numba", "threads", "layout", "direction", "T", "B", "I", "U",
    *(f"{name}_us" for name in BACKENDS),
)  # fmt: skip


def grid() -> list[tuple[str, int, int, int, int]]:
    """Return layout, T, B, I, U of each cell; Keras's weights, which aten puts in order first, at a few steps alone."""
    cells = [("torch", T, B, U, U) for T, B, U in itertools.product(STEPS, BATCHES, UNITS)]
    cells += [("torch", T, B, 16, 128) for T, B in itertools.product(STEPS, BATCHES)]
    cells += [("keras", T, B, U, U) for T, B, U in itertools.product((1, 2, 4, 16), (1, 16), UNITS)]
    large = itertools.product(("torch", "keras"), (1, 4, 16), (1, 4, 16), LARGE)
    cells += [(layout, T, B, U, U) for layout, T, B, U in large]
    return [cell for cell in cells if cell[1] * cell[2] * cell[4] ** 2 <= MOST_WORK]


def doubtful(table: Path, threads: int) -> list[tuple[tuple[str, int, int, int, int], str]]:
    """Return the cells of this device's newest rows in which the first choice takes 4 % longer than the fastest."""
    newest, device = {}, device_name(torch.device("cpu"))
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if int(row["threads"]) == threads and row["device"] == device:
                sizes = (int(row[name]) for name in ("T", "B", "I", "U"))
                newest[(row["layout"], *sizes), row["direction"]] = [float(row[f"{name}_us"]) for name in BACKENDS]
    cells = []
    for (cell, direction), times in newest.items():
        layout, T, B, I, U = cell
        first = order_on_cpu(Shape(B, T, I, U), direction == TRAINING, layout == "torch", has_large_cache())[0]
        if times[BACKENDS.index(first)] > 1.04 * min(times):
            cells.append((cell, direction))
    return cells


def contender(work: Work, layout: str, backend: str) -> Contender:
    """Return `tritongru.gru` on a backend, with the weights in one of its layouts."""
    kernel, recurrent_kernel, *bias = work.weights
    if layout == "keras":
        kernel, recurrent_kernel, *bias = torch_to_keras(*work.weights)
    weights = [value.detach().clone().requires_grad_() for value in (kernel, recurrent_kernel, *bias)]
    bias = tuple(weights[2:]) if layout == "torch" else weights[2]

    def forward(number: int, x: torch.Tensor) -> torch.Tensor:
        return gru(x, weights[0], weights[1], bias, time_major=True, layout=layout, backend=backend)[0]

    return Contender(forward, weights)


def main() -> int:
    """Measure every cell and add its row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, default=TABLE, help="the table the rows are added to")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--seconds", type=float, default=0.1, help="of timing for each backend and cell")
    parser.add_argument("--doubtful", action="store_true", help="only cells in which the first choice lost by 4 %")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    place = torch.device("cpu")
    where = conditions(place) | {"numba": numba.__version__}
    seconds, rounds = (4 * options.seconds, 100) if options.doubtful else (options.seconds, 25)
    options.csv.parent.mkdir(parents=True, exist_ok=True)
    found = doubtful(options.csv, options.threads) if options.doubtful else itertools.product(grid(), DIRECTIONS)
    is_new = not options.csv.exists()
    with options.csv.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n", extrasaction="ignore")
        if is_new:
            writer.writeheader()
        for (layout, T, B, I, U), direction in found:
            work = Work(Workload("grid", T, B, I, U), "float32")
            calls = {name: make_call(contender(work, layout, name), work, direction) for name in BACKENDS}
            timings = measure(calls, place, seconds, rounds, least=7)
            times = {f"{name}_us": f"{timing.p50 * 1e3:.4g}" for name, timing in timings.items()}
            writer.writerow(where | dict(layout=layout, direction=direction, T=T, B=B, I=I, U=U) | times)
            file.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
