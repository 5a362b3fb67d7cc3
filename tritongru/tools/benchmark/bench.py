"""The benchmark: named workloads, every backend side by side in one run, one CSV that only grows."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from ...call.errors import ExchangeError
from ...environment import is_interpreted
from .. import options
from ..show import print_table, show_progress
from . import contenders, layers, peers, runtimes
from .contenders import DIRECTIONS, INFERENCE, TRAINING, Contender, UnavailableError, make_call
from .floor import cpu_step_floor, device_speeds, step_floor
from .memory import peak_bytes, saved_bytes
from .results import Result, append_results, conditions, read_results
from .timing import Timing, measure, ratio
from .work import DTYPES, Work, float32_products
from .workloads import SETS, Workload, parse_size, select

TORCH = "nn.GRU"
BUILDERS: dict[str, Callable[[Work], Contender]] = {
    "auto": partial(contenders.own, backend="auto"),
    "auto-recompute": partial(contenders.own, backend="auto", recompute=True),
    "triton": partial(contenders.own, backend="triton"),
    "triton-single": partial(contenders.schedule, name="single"),
    "triton-streamed": partial(contenders.schedule, name="streamed"),
    "triton-steps": partial(contenders.schedule, name="steps"),
    "triton-persistent": partial(contenders.schedule, name="persistent"),
    "aten": partial(contenders.own, backend="aten"),
    "numba": partial(contenders.own, backend="numba"),
    "eager": partial(contenders.own, backend="eager"),
    "reference": partial(contenders.own, backend="reference"),
    TORCH: contenders.torch_gru,
    "nn.GRU-packed": partial(contenders.torch_gru, packed=True),
    "loop": contenders.loop,
    "keras": peers.keras,
    "flashrnn": peers.flashrnn,
    "torchrl": peers.torchrl,
    "haste": peers.haste,
    **runtimes.RUNTIMES,
    **layers.LAYERS,
}
PEERS = ("keras", "flashrnn", "torchrl", "haste", *runtimes.RUNTIMES)
ON_CPU = ("auto", "aten", "numba", "eager", "reference", TORCH, "nn.GRU-packed", "loop")
ON_GPU = tuple(
    name for name in BUILDERS if name not in ("numba", "eager", "reference", *runtimes.RUNTIMES, *layers.LAYERS)
)
FAILED = "FAILED"
# On a busy machine too, --quick ends within two minutes: no cell is begun after this time.
QUICK_SECONDS = 75.0


def bench(
    workloads: Sequence[Workload],
    dtypes: Sequence[str] = ("float32",),
    directions: Sequence[str] = (INFERENCE, TRAINING),
    backends: Sequence[str] | None = None,
    device: str | torch.device | None = None,
    seconds: float = 1.0,
    budget: float | None = None,
    memory: bool = False,
    report: Callable[[list[Result]], None] = lambda rows: None,
) -> list[Result]:
    """Time backends side by side.

    Args:
        workloads: what is computed. dtypes: of `work.DTYPES`. directions: "inference" (no gradients wanted), "forward"
            (gradients wanted, not computed), "forward+backward".
        backends: of `BUILDERS`; None for those that make sense on the device.
        device: None for the GPU where there is one.
        seconds: of timing for each backend, workload, dtype and direction.
        budget: seconds after which no further cell is begun; None for no end.
        memory: also find out what is saved for the backward pass.
        report: called with the rows of each cell as soon as it is done.

    Returns:
        One `Result` for each cell and backend; a backend that cannot run a cell has no times and says why.

    Raises:
        ValueError: an unknown dtype, direction or backend.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    chosen = tuple(backends or (ON_GPU if place.type == "cuda" else ON_CPU))
    for name, values, known in (("dtypes", dtypes, DTYPES), ("directions", directions, DIRECTIONS),
                                ("backends", chosen, BUILDERS)):  # fmt: skip
        for value in values:
            if value not in known:
                raise ValueError(f"`{name}` must be among {', '.join(known)}, got {value!r}")
    facts, stop = conditions(place), None if budget is None else time.monotonic() + budget
    results: list[Result] = []
    for workload in workloads:
        for dtype in dtypes:
            if stop is not None and time.monotonic() > stop:
                return results
            with float32_products(dtype):
                work = Work(workload, dtype, place)
                built, missing = build(work, chosen)
                for direction in directions:
                    rows = run_cell(work, direction, built, missing, facts, seconds, memory)
                    results += rows
                    report(rows)
            del work, built
    return results


def build(work: Work, backends: Sequence[str]) -> tuple[dict[str, Contender], dict[str, str]]:
    """Return the contenders whose outputs are right, and for the other backends why they do not take part."""
    built: dict[str, Contender] = {}
    missing: dict[str, str] = {}
    for name in backends:
        try:
            contender = BUILDERS[name](work)
            outputs = make_call(contender, work, INFERENCE)(0)
            error = work.error(outputs) if contender.same_numbers else 0.0
            if error <= work.allowed_error:
                built[name] = contender
            else:
                missing[name] = f"{FAILED}: outputs are {error:.2g} from the reference, {work.allowed_error} is allowed"
        except UnavailableError as error:
            missing[name] = str(error)
        except (RuntimeError, ExchangeError, NotImplementedError, TypeError, ValueError) as error:
            missing[name] = f"{FAILED}: {_first_line(error)}"
    return built, missing


def run_cell(
    work: Work,
    direction: str,
    built: dict[str, Contender],
    missing: dict[str, str],
    facts: dict,
    seconds: float,
    memory: bool = False,
) -> list[Result]:
    """Time contenders on one workload, in turn; returns a row for each, those that are missing included."""
    calls, extra, failed = {}, {}, dict(missing)
    for name, contender in built.items():
        if direction not in contender.directions:
            failed[name] = f"{name} takes part in {' and '.join(contender.directions)} alone"
            continue
        call = make_call(contender, work, direction)
        try:
            call(0)
            extra[name] = (peak_bytes(call, work.device), saved_bytes(call) if memory else None)
            calls[name] = call
        except (RuntimeError, ExchangeError) as error:
            failed[name] = f"{FAILED}: {_first_line(error)}"
    timings = measure(calls, work.device, seconds)
    w = work.workload
    same = facts | dict(
        workload=w.name, features=w.features, T=w.time, B=w.batch, I=w.input_size, U=w.units,
        dtype=work.dtype_name, direction=direction,
    )  # fmt: skip
    speeds, training = device_speeds(work.device), direction == TRAINING
    floor = speeds and step_floor(w.units, w.batch, work.dtype_name, training, speeds)
    # Padding need not be computed.
    if work.device.type == "cpu" and work.dtype_name in ("float32", "float64") and not w.lengths:
        floor = cpu_step_floor(w.units, w.batch, w.input_size, work.dtype, training)
    rows = []
    for name in (*built, *(name for name in missing)):
        if name in failed:
            rows.append(Result(**same, backend=name, notes=failed[name]))
            continue
        t: Timing = timings[name]
        notes = ", ".join(filter(None, (built[name].note, built[name].note_of(direction))))
        rows.append(
            Result(
                **same, backend=name, p20_ms=t.p20, p50_ms=t.p50, p80_ms=t.p80, samples=len(t.samples),
                us_per_step=t.p50 * 1e3 / max(w.time, 1), floor_us=floor, peak_bytes=extra[name][0],
                saved_bytes=extra[name][1], notes=notes,
                ratio_to_nn_gru=ratio(timings[TORCH], t) if TORCH in timings else None,
            )
        )  # fmt: skip
    return rows


def has_failed(rows: Sequence[Result]) -> bool:
    """Return whether a backend of this package failed; that a peer did is only noted."""
    return any(row.notes.startswith(FAILED) and row.backend not in PEERS for row in rows)


def print_results(rows: Sequence[Result]) -> None:
    """Print one line for each time taken, then once why a backend did not run."""
    cells, reasons = [], {}
    for row in rows:
        if row.p50_ms is None:
            reasons[f"{row.backend}: {row.notes}"] = None
            continue
        size = f"{row.T},{row.B},{row.I},{row.U}"
        times = [_number(value) for value in (row.p20_ms, row.p50_ms, row.p80_ms, row.us_per_step, row.ratio_to_nn_gru)]
        cells.append((row.workload, size, row.dtype, row.direction, row.backend, *times, row.notes[:60]))
    headers = ("workload", "T,B,I,U", "dtype", "direction", "backend", "p20 ms", "p50 ms", "p80 ms", "us/step",
               "nn.GRU/this", "notes")  # fmt: skip
    print_table(headers, cells)
    for reason in reasons:
        print(f"not run  {reason}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m tritongru bench`."""
    parser.add_argument("workloads", nargs="*", help=f"sets ({', '.join(SETS)}) or single workloads; default: named")
    parser.add_argument("--quick", action="store_true", help="a few small workloads, below two minutes on a CPU")
    parser.add_argument("--sizes", nargs="+", metavar="T,B,I,U", help="plain calls of these sizes instead")
    parser.add_argument("--csv", type=Path, default=Path("out/bench.csv"), help="default: %(default)s; rows are added")
    parser.add_argument("--backends", nargs="+", choices=tuple(BUILDERS), help="default: what the device can run")
    parser.add_argument("--peers", action="store_true", help="also other packages, where they are installed")
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES), help="default: float32; bfloat16 too on a GPU")
    parser.add_argument("--directions", nargs="+", choices=DIRECTIONS, default=(INFERENCE, TRAINING))
    parser.add_argument("--device", type=options.device, help="default: the GPU where there is one, else the CPU")
    threads = options.whole(1, os.cpu_count() or 1)
    parser.add_argument("--threads", type=threads, help="of torch on the CPU; default: torch's own choice")
    seconds = options.number(3600.0, zero=True)
    parser.add_argument("--seconds", type=seconds, help="of timing for each backend and cell; default: 1")
    budget = options.number(options.WEEK_IN_SECONDS)
    parser.add_argument("--budget", type=budget, help="seconds after which no new cell is begun")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="run nothing: draw plots of the CSV into FOLDER")
    parser.add_argument("--report", action="store_true", help="run nothing: write docs/performance.md (in a clone)")
    parser.add_argument("--memory", action="store_true", help="also count what is saved for the backward pass")


def main(args: argparse.Namespace) -> int:
    """Do what `args` describe; 1 if a backend of this package failed, 2 for wrong options or an unusable file."""
    try:
        if args.report:
            from .report import write_report

            print(f"wrote {write_report()}")
            return 0
        if args.plots is not None:
            from .plots import draw

            for path in draw(read_results(args.csv), args.plots):
                print(f"wrote {path}")
            return 0
        return _measure(args)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


def _measure(args: argparse.Namespace) -> int:
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.sizes:
        workloads = [parse_size(text) for text in args.sizes]
    else:
        workloads = select(args.workloads or ["quick" if args.quick else "named"])
    dtypes = args.dtypes or (("float32", "bfloat16") if device.type == "cuda" else ("float32",))
    backends = list(args.backends or (ON_GPU if device.type == "cuda" else ON_CPU))
    if args.peers:
        backends += [name for name in PEERS if name not in backends]
    elif args.backends is None:
        backends = [name for name in backends if name not in PEERS]
    seconds = args.seconds if args.seconds is not None else 0.25 if args.quick else 1.0
    budget = args.budget if args.budget is not None else QUICK_SECONDS if args.quick else None
    _warn_of_noise(device)
    append_results(args.csv, [])  # a file that cannot be written is better known before than after
    total = len(workloads) * len(dtypes) * len(args.directions)
    rows: list[Result] = []
    interrupted = False
    with show_progress("bench", total) as advance:

        def report(found: list[Result]) -> None:
            append_results(args.csv, found)
            rows.extend(found)
            advance(f"{found[0].workload} {found[0].direction}")

        try:
            bench(workloads, dtypes, args.directions, backends, device, seconds, budget, args.memory, report)
        except KeyboardInterrupt:
            interrupted = True
    print_results(rows)
    done = len({row.cell for row in rows})
    if done < total:
        reason = "interrupted" if interrupted else f"the budget of {budget:g} s was spent"
        print(f"{total - done} of {total} cells were left out: {reason}")
    print(f"{len(rows)} rows added to {args.csv}")
    if has_failed(rows):
        print("FAIL: a backend of this package failed, see the notes")
        return 1
    return 130 if interrupted else 0


def _warn_of_noise(device: torch.device) -> None:
    if device.type == "cpu" and is_interpreted():
        print("TRITON_INTERPRET=1: times of the triton backend are those of its interpreter")
    if device.type == "cpu" and hasattr(os, "getloadavg"):
        load, cores = os.getloadavg()[0], os.cpu_count() or 1
        if load > 0.5 * cores:
            print(f"the machine is busy (load {load:.1f} on {cores} cores): the times will be noisy")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"
