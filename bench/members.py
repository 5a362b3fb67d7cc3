"""Two directions, several heads and ensembles in numba or eager, at once and one after another, side by side.

    python bench/members.py --threads 2
    python bench/members.py --threads 2 --backend eager

Takes about two minutes on two quiet cores. Adds rows to bench/results/members.csv, of eager to members_eager.csv: the
least of five medians, in milliseconds, of calls taken in turn.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tritongru import compat, dispatch, gru  # noqa: E402
from tritongru.backends.eager import members as eager  # noqa: E402
from tritongru.tools.benchmark.results import conditions  # noqa: E402

RESULTS = ROOT / "bench" / "results"
TABLES = {"numba": RESULTS / "members.csv", "eager": RESULTS / "members_eager.csv"}
FIELDS = (
    "run", "date", "device", "torch", "python", "tritongru", "threads", "members", "mode", "B", "T", "U",
    "at_once_ms", "apart_ms", "ratio", "chosen", "repeats",
)  # fmt: skip


class Case(NamedTuple):
    """What runs; units are those of all heads, inputs as many as units where they are None."""

    what: str
    members: int
    B: int
    T: int
    U: int
    inputs: int | None = None

    @property
    def I(self) -> int:  # noqa: E743
        """How many inputs."""
        return self.U if self.inputs is None else self.inputs


CASES = {
    "numba": [
        *(Case("directions", 2, *sizes) for sizes in (
            (1, 100, 64), (1, 100, 128), (1, 100, 256), (1, 200, 512), (4, 100, 256), (16, 100, 256), (64, 50, 128))),
        *(Case("heads", *sizes) for sizes in ((4, 1, 100, 256), (4, 4, 100, 256), (8, 16, 100, 256), (8, 32, 50, 512))),
    ],
    "eager": [
        *(Case("directions", 2, *sizes) for sizes in (
            (1, 32, 64, 64), (1, 1000, 64, 40), (1, 100, 128, 64), (1, 100, 256, 256), (4, 100, 64, 64),
            (4, 100, 128, 64), (16, 100, 64, 64), (16, 100, 128, 64), (32, 100, 128, 64), (64, 50, 256, 256))),
        *(Case("heads", 8, *sizes) for sizes in ((1, 100, 256), (16, 100, 256), (64, 100, 256), (1, 100, 1024))),
        *(Case("ensemble", 16, *sizes) for sizes in ((1, 100, 64), (4, 100, 64), (16, 100, 64))),
    ],
}  # fmt: skip


def directions(case: Case, backend: str, training: bool) -> Callable[[], Tensor]:
    """Return the forward pass of a bidirectional layer."""
    layer = compat.GRU(case.I, case.U, bidirectional=True, backend=backend)
    x = torch.randn(case.T, case.B, case.I)
    return lambda: layer(x)[0]


def heads(case: Case, backend: str, training: bool) -> Callable[[], Tensor]:
    """Return a call of several heads."""
    x, kernel, width = torch.randn(case.B, case.T, case.I), torch.randn(case.I, 3 * case.U), case.U // case.members
    recurrent = torch.randn(case.members, width, 3 * width) / width**0.5
    kernel, recurrent = kernel / case.I**0.5, recurrent.requires_grad_(training)
    return lambda: gru(x, kernel, recurrent, backend=backend)[0]


def ensemble(case: Case, backend: str, training: bool) -> Callable[[], Tensor]:
    """Return a map over layers with weights of their own."""
    layers = [compat.GRU(case.I, case.U, backend=backend) for _ in range(case.members)]
    weights, x = stack_module_state(layers)[0], torch.randn(case.T, case.B, case.I)
    return lambda: vmap(lambda w: functional_call(layers[0], (w,), (x,))[0])(weights)


WHAT = {"directions": directions, "heads": heads, "ensemble": ensemble}


def make_call(case: Case, backend: str, training: bool) -> Callable[[], None]:
    """Return the call that is timed."""
    forward = WHAT[case.what](case, backend, training)

    def call() -> None:
        with torch.set_grad_enabled(training):
            outputs = forward()
        if training:
            outputs.sum().backward()

    return call


def choose(backend: str, at_once: Callable[..., bool]) -> Callable[..., bool]:
    """Let `at_once` say whether members run at once; return what said so before."""
    if backend == "eager":
        before, eager.is_faster = eager.is_faster, at_once
    else:
        before, dispatch.RUNS_AT_ONCE[backend] = dispatch.RUNS_AT_ONCE[backend], at_once
    dispatch.forget()
    return before


def time_call(call: Callable[[], object], count: int) -> float:
    """Return the median of so many calls, in seconds, after one that is not timed."""
    call()
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def measure(call: Callable[[], None], backend: str, repeats: int) -> tuple[float, float]:
    """Return the milliseconds of a call whose members run at once, and one after another."""
    best = [float("inf")] * 2
    for _ in range(5):
        for place, at_once in enumerate((True, False)):
            chosen = choose(backend, lambda *_, at_once=at_once: at_once)
            best[place] = min(best[place], 1e3 * time_call(call, repeats))
            choose(backend, chosen)
    return best[0], best[1]


def main() -> None:
    """Measure every case and add the rows to the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=list(CASES), default="numba", help="which backend's members")
    parser.add_argument("--what", nargs="+", choices=list(WHAT), default=list(WHAT), help="which kinds of members")
    parser.add_argument("--csv", type=Path, help="the table the rows are added to")
    parser.add_argument("--threads", type=int, default=2, help="of torch and of numba's scan")
    parser.add_argument("--repeats", type=int, default=5, help="calls of which the median is taken, five times")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    where = conditions(torch.device("cpu"))
    table, fields = options.csv or TABLES[options.backend], list(FIELDS)
    if options.backend == "eager":
        fields[fields.index("members")] = "what"
        fields[fields.index("mode")] = "members"
        fields[fields.index("B") : fields.index("U")] = ["mode", "B", "T", "I"]
    for case in (case for case in CASES[options.backend] if case.what in options.what):
        for training in (False, True):
            at_once, apart = measure(make_call(case, options.backend, training), options.backend, options.repeats)
            values = where | case._asdict() | {
                "I": case.I, "mode": "training" if training else "inference", "at_once_ms": f"{at_once:.4g}",
                "apart_ms": f"{apart:.4g}", "ratio": f"{apart / at_once:.3g}", "repeats": options.repeats,
                "chosen": "at once" if is_at_once(case, options.backend, training) else "apart",
            }  # fmt: skip
            add(table, {name: values[name] for name in fields})
            print(*(values[name] for name in fields[7:]), flush=True)


def add(table: Path, row: dict) -> None:
    """Add a row to a table, which is made where there is none."""
    is_new = not table.exists()
    with table.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def is_at_once(case: Case, backend: str, training: bool) -> bool:
    """Return what the backend's own rule chooses."""
    if backend == "eager":
        return eager.is_faster(case.members, case.T, case.B, case.U // (case.members if case.what == "heads" else 1))
    if case.members > 2:
        return True
    layer = compat.GRU(case.I, case.U, bidirectional=True, backend=backend)
    with torch.set_grad_enabled(training):
        return layer.explain(torch.randn(case.T, case.B, case.I)).members > 1


if __name__ == "__main__":
    main()
