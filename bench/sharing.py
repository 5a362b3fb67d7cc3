"""Calls in numba with units and sums shared among threads, and with their rows shared or nothing, side by side.

    python bench/sharing.py --threads 2

Takes about three minutes on two quiet cores. Adds rows to bench/results/sharing.csv: the least of five medians, in
microseconds, of calls taken in turn, and those of torch's own GRU. Where the choice is not to share, the first two are
the same.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from members import add, time_call  # noqa: E402

from tritongru import gru, repeats  # noqa: E402
from tritongru.backends.numba import sharing, short, sums  # noqa: E402
from tritongru.call.problem import Inputs  # noqa: E402
from tritongru.layouts import torch_to_keras  # noqa: E402
from tritongru.tools.benchmark.results import conditions  # noqa: E402

TABLE = ROOT / "bench" / "results" / "sharing.csv"
FIELDS = ("run", "date", "device", "torch", "python", "tritongru", "threads")
# T, B, I, U.
ONE_STEP = [(1, B, U, U) for B in (1, 4, 16, 64) for U in (64, 128, 256, 512, 1024)]
FEW_STEPS = [(T, 1, U, U) for T in (4, 16, 64) for U in (128, 256, 512, 1024)] + [(4, 4, 512, 512), (8, 4, 256, 256)]
SCANS = [
    (128, 1, 64, 128), (128, 1, 128, 192), (128, 1, 128, 256), (128, 1, 384, 384), (128, 1, 512, 512),
    (128, 1, 768, 768), (100, 2, 256, 256), (100, 4, 256, 256), (100, 12, 256, 256), (100, 16, 256, 256),
    (64, 4, 512, 512), (50, 8, 512, 512), (50, 16, 512, 512), (8, 16, 512, 512), (50, 32, 512, 512),
    (35, 20, 650, 650), (35, 16, 768, 768), (35, 16, 1024, 1024),
]  # fmt: skip
TRAINING = [
    (16, 1, 64, 128), (16, 1, 256, 256), (16, 1, 512, 512), (32, 1, 64, 192), (64, 1, 128, 256), (100, 1, 64, 128),
    (128, 1, 128, 256), (128, 1, 384, 384), (128, 1, 512, 512), (64, 1, 768, 768), (100, 2, 256, 256),
    (4, 16, 128, 128), (8, 4, 256, 256), (32, 4, 64, 128), (8, 16, 512, 512), (50, 12, 256, 256),
    (50, 16, 512, 512), (35, 20, 650, 650),
]  # fmt: skip


def make_call(layout: str, sizes: tuple[int, int, int, int], training: bool, backend: str) -> Callable[[], object]:
    """Return the call that is timed, with its backward pass where it trains."""
    T, B, I, U = sizes
    weights = [torch.randn(3 * U, I) / I**0.5, torch.randn(3 * U, U) / U**0.5, torch.randn(3 * U), torch.randn(3 * U)]
    kernel, recurrent, *bias = torch_to_keras(*weights) if layout == "keras" else weights
    given = dict(bias=bias[0] if layout == "keras" else tuple(bias), layout=layout, time_major=True, backend=backend)
    x, cotangent = torch.randn(T, B, I), torch.randn(T, B, U)
    if not training:
        return lambda: gru(x, kernel, recurrent, **given)
    trained = [t.requires_grad_() for t in (kernel, recurrent, *bias)]

    def train() -> None:
        outputs, _ = gru(x, kernel, recurrent, **given)
        torch.autograd.grad(outputs, trained, cotangent)

    return train


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Let no call share its units, nor its sums of few rows."""
    with (
        mock.patch.object(sharing, "MOST_SHARES", 1),
        mock.patch.object(short, "share_units", keep_together),
        mock.patch.object(sums, "count_parts", lambda *_: 1),  # of few rows
    ):
        yield


def keep_together(a: Inputs, *_: object) -> list[int]:
    """Return the bounds of one part that is all units."""
    return [0, a.u.shape[0]]


def measure(layout: str, sizes: tuple[int, int, int, int], training: bool) -> list[float]:
    """Return the microseconds of a call that may share its units, of one that may not, and of torch's GRU."""
    ours, aten = (make_call(layout, sizes, training, backend) for backend in ("numba", "aten"))
    best = [float("inf")] * 3
    for _ in range(5):
        for place, (call, choice) in enumerate(
            ((ours, contextlib.nullcontext), (ours, apart), (aten, contextlib.nullcontext))
        ):
            with choice():
                repeats.forget()
                call()  # plans it
                best[place] = time_again(call, best[place])
    return best


def time_again(call: Callable[[], object], best: float) -> float:
    """Return the best time, in microseconds, or the median of some calls more, if it is less; few if they take long."""
    return min(best, 1e6 * time_call(call, 100 if best < 1e3 else 20 if best < 1e4 else 7))


def main() -> None:
    """Measure every case and add the rows to the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, default=TABLE, help="the table the rows are added to")
    parser.add_argument("--threads", type=int, default=2, help="of torch and of numba's scan")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    where = conditions(torch.device("cpu"))
    cases = [(layout, "inference", sizes) for sizes in ONE_STEP + FEW_STEPS for layout in ("torch", "keras")]
    cases += [("torch", "inference", sizes) for sizes in SCANS]
    cases += [("torch", "forward+backward", sizes) for sizes in TRAINING]
    for layout, direction, sizes in cases:
        training = direction != "inference"
        with torch.set_grad_enabled(training):
            shared, apart, aten = measure(layout, sizes, training)
            values = {name: where[name] for name in FIELDS} | {"layout": layout, "direction": direction}
            values |= dict(zip("TBIU", sizes, strict=True))
            times = dict(shared_us=f"{shared:.4g}", apart_us=f"{apart:.4g}", aten_us=f"{aten:.4g}")
            row = values | times | {"ratio": f"{apart / shared:.3g}"}
            add(options.csv, row)
            print(*list(row.values())[7:], flush=True)


if __name__ == "__main__":
    main()
