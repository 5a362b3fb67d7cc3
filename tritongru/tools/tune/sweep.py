"""Sweep launch configurations: time them on a GPU, or compile them for one that is not there and replay a step.

    python -m tritongru tune --units 256 512 --batch 1 16 64 --dtype bfloat16            on a GPU
    python -m tritongru tune --target sm_90 --units 256 --jobs 8                         without one
    python -m tritongru tune --rehearse                                                  the first, in the interpreter

docs/tuning.md says what is swept, which rules prune it, and how the results are chosen and read.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...tuning import choices
from ...tuning.configs import Device
from ...tuning.tables import FLAGS, ITEM_SIZES, KERNELS, KINDS, MEASURED, PRODUCTS, Key, Race, bucket
from .. import options, show
from . import store as tune_store
from .model import MACHINES
from .search import Found, compile_candidates, make_entries, open_problems
from .space import Problem
from .workers import Compilers

# The devices that a target's name alone stands for: name, multiprocessors (the vendors' data sheets).
USUAL_DEVICES = {
    "sm_80": ("NVIDIA A100", 108),
    "sm_86": ("NVIDIA A10", 72),
    "sm_89": ("NVIDIA L40S", 142),
    "sm_90": ("NVIDIA H100 SXM and H200", 132),
    "sm_100": ("NVIDIA B200", 148),
    "sm_120": ("NVIDIA RTX PRO 6000", 188),
    "gfx942": ("AMD Instinct MI300X", 304),
}
# Of a sweep's minutes on a GPU: for timing whole calls beside torch's own GRU.
SHARE_OF_RACES = 0.2
UNITS, BATCHES = (128, 256, 512, 1024), (1, 16, 64)
# For the interpreter: units that are a multiple of 16 and that are not, a tile that is full and one that is not.
REHEARSED = (16, 20), (1, 16)


@dataclass(frozen=True)
class Result:
    """What a sweep leaves: the table and the CSV it wrote, every candidate, and whether it was interrupted."""

    table: Path
    rows: Path
    found: list[Found]
    interrupted: bool


def tune(
    units: Sequence[int] = UNITS,
    batch: Sequence[int] = BATCHES,
    dtype: str | Sequence[str] = "bfloat16",
    *,
    precision: Sequence[str] = ("ieee",),
    kernels: Sequence[str] = KERNELS,
    flags: Sequence[Sequence[str]] = ((),),
    target: str | None = None,
    processors: int | None = None,
    out: str | Path | None = None,
    jobs: int | None = None,
    depth: int | None = None,
    seconds: float | None = None,
    minutes: float = 30.0,
    rehearse: bool = False,
) -> Result:
    """Find the launch configuration for every combination of the given sizes.

    On a GPU each candidate that agrees with the oracle is timed. With `target`, each is compiled, held to the budgets,
    and ranked by the replay of its machine code; where that cannot be replayed, by a model.

    Args:
        units, batch, dtype, precision, kernels, flags: what to look for; `tritongru.tables.Key` describes them. A batch
            stands for its bucket, the next power of two.
        target: a GPU that need not be there: "sm_80", "sm_90", "sm_100", "gfx942", ... None: the GPU at hand.
        processors: multiprocessors of the target, None: those of its usual device.
        out: a folder for the table and the CSV. None: the user's cache for the GPU at hand, else "out".
        jobs: worker processes that compile and check, None: one for each CPU core.
        depth: candidates for each problem, in the order of the model. None: 8 on a GPU, all (0) with a target.
        seconds: for one candidate, None: 120 to compile, 1 to time.
        minutes: for the whole sweep, on a GPU.
        rehearse: run the way of a GPU in Triton's interpreter on tiny sizes; results say nothing of speed.

    Returns:
        A `Result`. An interrupt from the keyboard ends the sweep early and keeps what was found.

    Raises:
        ValueError: an unknown name or a size below 1. RuntimeError: no GPU, no target, no rehearsal.
        OSError: the results cannot be written.
    """
    problems = list(list_problems(units, batch, dtype, precision, kernels, flags))
    if target is not None:
        device, machine = _target_device(target, processors), MACHINES[target]
        folder = Path(out or "out")
    elif rehearse:
        from .measure import rehearsal_device

        device, machine = rehearsal_device(), MACHINES["sm_90"]
        folder = Path(out or "out")
    elif torch.cuda.is_available():
        from ...tuning.devices import device_limits

        device = device_limits(torch.device("cuda"))
        machine = MACHINES.get(device.target, MACHINES["sm_90"])
        folder = Path(out) if out else choices.user_folder()
    else:
        raise RuntimeError("no GPU here: give `target` to compile for one, or `rehearse=True`")
    name = f"{device.target}-{device.processors}"
    path = folder / f"{name}.json" if out or target or rehearse else choices.user_path(device.name)
    assert path is not None, "a GPU has a name"
    rows = folder / f"tune-{name}.csv"
    shipped = None
    if target is not None and (shipped_path := choices.shipped_path(device)) is not None:
        shipped = choices.load(shipped_path)
    found = open_problems(problems, device, machine, shipped.entries if shipped else ())
    made = {kind: tune_store.make_provenance(kind, device) for kind in KINDS}
    ids = {kind: name for kind, (name, _) in made.items()}

    def keep() -> None:
        tune_store.save_entries(path, device, dict(made.values()), make_entries(found, ids), races)
        tune_store.save_rows(rows, tune_store.make_rows(found, device, machine, made[MEASURED][1]))

    races: list[Race] = []
    keep()  # a place that cannot be written is better known before the sweep than after it
    interrupted = False
    try:
        with show.show_steps("tune") as report:
            workers, limit = jobs or os.cpu_count() or 1, (seconds if target else None) or 120.0
            with Compilers(workers, limit, rehearse) as compilers:
                if target is not None:
                    compile_candidates(found, target, compilers, depth or 0, report)
                else:
                    from .measure import measure_candidates
                    from .races import run_races

                    limits = (depth or (2 if rehearse else 8), seconds or (0.05 if rehearse else 1.0))
                    sweep, rest = (60.0 * minutes * share for share in (1 - SHARE_OF_RACES, SHARE_OF_RACES))
                    measure_candidates(found, rehearse, compilers, *limits, sweep, report=report, keep=keep)
                    run_races(found, rehearse, ids[MEASURED], 0.2 * limits[1], rest, races, report)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        keep()
        choices.forget()
    return Result(path, rows, found, interrupted)


def list_problems(
    units: Sequence[int],
    batch: Sequence[int],
    dtype: str | Sequence[str],
    precision: Sequence[str],
    kernels: Sequence[str],
    flags: Sequence[Sequence[str]],
) -> Iterator[Problem]:
    """Yield the problems of all combinations; the other dtypes know the precision "ieee" alone."""
    dtypes = [dtype] if isinstance(dtype, str) else list(dtype)
    for name, values, known in (
        ("dtype", dtypes, tuple(ITEM_SIZES)), ("precision", precision, PRODUCTS), ("kernels", kernels, KERNELS),
        ("flags", [flag for group in flags for flag in group], FLAGS),
    ):  # fmt: skip
        for value in values:
            if value not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(map(repr, known))}, got {value!r}")
    for name, sizes, most in (("units", units, options.MOST_UNITS), ("batch", batch, options.MOST_ROWS)):
        for size in sizes:
            if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= most:
                raise ValueError(f"`{name}` must be whole numbers from 1 to {most:,}, got {size!r}")
    for kernel in kernels:
        for kind in dtypes:
            for product in precision if kind == "float32" else ("ieee",):
                for group in flags:
                    ordered = tuple(flag for flag in FLAGS if flag in group)
                    for size in units:
                        for rows in sorted({bucket(value) for value in batch}):
                            yield Problem(Key(kernel, kind, product, size, ordered), rows)


def _target_device(target: str, processors: int | None) -> Device:
    from ...backends.triton.ahead import TARGETS

    if target not in TARGETS or target not in USUAL_DEVICES:
        raise ValueError(f"`target` must be one of {', '.join(USUAL_DEVICES)}, got {target!r}")
    gpu, shared = TARGETS[target]
    name, usual = USUAL_DEVICES[target]
    if processors is not None and processors != usual:
        name = f"{target} with {processors} multiprocessors"
    return Device(processors or usual, shared, warp_size=gpu.warp_size, name=name, target=target)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m tritongru tune`."""
    add = parser.add_argument
    whole, number = options.whole, options.number
    add("--units", type=whole(1, options.MOST_UNITS), nargs="+", help=f"default: {' '.join(map(str, UNITS))}")
    add("--batch", type=whole(1, options.MOST_ROWS), nargs="+", help=f"default: {' '.join(map(str, BATCHES))}")
    add("--dtype", nargs="+", choices=tuple(ITEM_SIZES), default=["bfloat16"], help="default: bfloat16")
    add("--precision", nargs="+", choices=PRODUCTS, default=["ieee"], help="of float32 products; default: ieee")
    add("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS), help="default: both")
    add(
        "--flags", nargs="+", default=["plain"],
        help=f"variants, each 'plain' or some of {', '.join(FLAGS)} joined by '+'; default: plain",
    )  # fmt: skip
    add("--workloads", type=Path, help='a JSON list of {"name": ..., "units": ..., "batch": ..., "dtype": ...}')
    add("--target", choices=tuple(USUAL_DEVICES), help="compile for this GPU, which need not be there")
    add("--processors", type=whole(1, 1024), help="multiprocessors of the target; default: those of its usual device")
    add("--jobs", type=whole(1, 1024), help="compilers at once; default: one for each CPU core")
    add("--depth", type=whole(0, 10_000), help="candidates for each problem, 0: all; default: 8, or 0 with --target")
    add("--seconds", type=number(24 * 3600.0), help="for one candidate; default: 120 to compile, 1 to time")
    add("--minutes", type=number(7 * 24 * 60.0), default=30.0, help="for the whole sweep on a GPU; default: 30")
    add("--out", type=Path, help="folder of the table and the CSV; default: the user's cache, or out with --target")
    add("--rehearse", action="store_true", help="run the way of a GPU in Triton's interpreter, on tiny sizes")
    add("--verify", type=Path, metavar="TABLE", help="compile every entry of a table and check it, nothing else")
    add("--repair", action="store_true", help="with --verify: write the table again without the entries that fail")
    add("--plot", type=Path, metavar="CSV", help="draw the plots of a sweep's CSV beside it, nothing else")


def main(args: argparse.Namespace) -> int:
    """Run what `args` describe.

    Returns:
        1 if an entry of a verified table breaks its budget, 2 for what cannot be done, 130 after an interrupt, else 0.
    """
    if args.repair and args.verify is None:
        print("tune: --repair goes with --verify", file=sys.stderr)
        return 2
    try:
        if args.plot is not None:
            from .plots import draw_sweep

            for path in draw_sweep(args.plot):
                print(path)
            return 0
        if args.verify is not None:
            from .verify import verify_table

            return verify_table(args.verify, args.jobs or os.cpu_count() or 1, args.seconds or 120.0, args.repair)
        results = _sweep(args)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"tune: {error}", file=sys.stderr)
        return 2
    for result in results:
        _print_winners(result)
    return 130 if results[-1].interrupted else 0


def _sweep(args: argparse.Namespace) -> list[Result]:
    if args.rehearse:
        # Triton settles on its interpreter when it is imported, which is later than this.
        os.environ["TRITON_INTERPRET"] = "1"
    groups = [[] if name == "plain" else name.split("+") for name in args.flags]
    given = "precision kernels target processors out jobs depth seconds minutes rehearse".split()
    same = {name: getattr(args, name) for name in given}
    # What ends a job on a shared machine is to keep what was found, as Ctrl-C does.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if args.workloads is None:
            sizes = REHEARSED if args.rehearse else (UNITS, BATCHES)
            return [tune(args.units or sizes[0], args.batch or sizes[1], args.dtype, flags=groups, **same)]
        results: list[Result] = []
        for work in read_workloads(args.workloads):
            print(f"workload {work['name']}")
            results.append(tune([work["units"]], [work["batch"]], work["dtype"], flags=groups, **same))
            if results[-1].interrupted:
                break
        return results
    finally:
        signal.signal(signal.SIGTERM, before)


def read_workloads(path: Path) -> list[dict[str, Any]]:
    """Return the workloads of a JSON file; ValueError names the file and what is wrong."""
    try:
        lines = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(lines, list) or not lines:
        raise ValueError(f"{path}: expected a list of workloads")
    for number, line in enumerate(lines):
        missing = {"name", "units", "batch", "dtype"} - set(line if isinstance(line, dict) else ())
        if missing:
            raise ValueError(f"{path}: workload {number} lacks {', '.join(sorted(missing))}")
        list(list_problems([line["units"]], [line["batch"]], line["dtype"], (), (), ()))
    return lines


def _print_winners(result: Result) -> None:
    cells = []
    for one in result.found:
        best, able = one.winner, sum(not tried.fault for tried in one.tried)
        if best is None:
            cells.append((str(one.problem), "none within the budget", "", "", f"0 of {len(one.tried)}"))
            continue
        made = f"{best.compiled.registers} regs, {best.compiled.shared} B" if best.compiled else ""
        configuration, time = str(best.candidate.config), f"{best.microseconds:.2f}"
        cells.append((str(one.problem), configuration, made, time, f"{able} of {len(one.tried)}"))
    show.print_table(("problem", "configuration", "compiled to", "us per step", "may run"), cells)
    print(f"table: {result.table}\nevery candidate: {result.rows}")
    if result.interrupted:
        print("interrupted: what was found until then is kept")
