"""One command for each measurement on a GPU, none longer than its budget; bench/README.md says in which order.

    python bench/gpu.py tests | exchange | grid | features | tune | auto | demo   [--out FOLDER] [--rehearse]

Needs torch, triton, numpy and pytest, and no installation. `--rehearse` takes the same way on a CPU, with the kernels
interpreted and tiny sizes, so that no minute on a GPU is spent on a typing error.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

DTYPES = ("bfloat16", "float16", "tf32")
FEATURE_BACKENDS = ("auto", "nn.GRU", "nn.GRU-packed", "loop", "flashrnn", "torchrl", "haste")
AUTO_BACKENDS = ("auto", "triton", "aten")
# auto may be slower than the better of triton and aten by this much, of which noise is a part.
AUTO_SLACK = 1.05


class StepError(RuntimeError):
    """A step cannot go on; the message says why."""


def run_tests(args: argparse.Namespace) -> int:
    """Every GPU-marked test compiled, in several processes; then the sanitizer on one small case of each schedule."""
    import gpu_tests

    return gpu_tests.run(ROOT, args.out, args.budget, args.rehearse)


def run_exchange(args: argparse.Namespace) -> int:
    """The microbenchmark of the exchange between programs."""
    script = ROOT / "bench" / "exchange.py"
    if not script.exists():
        raise StepError(f"{script} is not there")
    return call([str(script), "--out", str(args.out / "exchange.csv"), "--budget", str(0.85 * args.budget)], args)


def run_grid(args: argparse.Namespace) -> int:
    """torch.nn.GRU and every schedule over the grid: one dtype after another, the cells that say most first."""
    from tritongru.tools.benchmark.bench import BUILDERS

    schedules = [name for name in BUILDERS if name.startswith("triton-")]
    return measure_sets(
        ["gpu-grid", "gpu-small"], args, ["auto", "auto-recompute", "triton", *schedules, "aten", "nn.GRU"]
    )


def run_features(args: argparse.Namespace) -> int:
    """Packed sequences, and what torch.nn.GRU lacks against the torch loop; other packages where they are installed."""
    return measure_sets(["gpu-packed", "gpu-features", "named"], args, FEATURE_BACKENDS)


def run_layers(args: argparse.Namespace) -> int:
    """Both directions and stacked layers beside torch.nn.GRU's."""
    command = [str(ROOT / "bench" / "layers.py"), "--out", str(args.out / "layers.csv")]
    return call([*command, "--budget", str(0.85 * args.budget)], args)


def run_tune(args: argparse.Namespace) -> int:
    """The tuning sweep; its table and its CSV."""
    command = ["-m", "tritongru", "tune", "--out", str(args.out), "--minutes", str(0.85 * args.budget / 60)]
    sizes = ["--units", "512", "256", "1024", "768", "2048", "128", "--batch", "16", "64", "1", "128"]
    return call(command + (["--rehearse"] if args.rehearse else [*sizes, "--dtype", *args.dtypes[:2]]), args)


def run_auto(args: argparse.Namespace) -> int:
    """Whether auto is ever slower than the better of triton and aten by more than 5 %, over the grid."""
    from tritongru.tools.benchmark.results import latest_cells, read_results

    args.csv = args.csv or args.out / "auto.csv"
    if not args.rehearse:
        use_tuned_table(args.out)
    status = measure_sets(["gpu-grid"], args, AUTO_BACKENDS)
    slow = []
    for cell in latest_cells(read_results(args.csv)):
        timed = {name: row.p50_ms for name, row in cell.items() if row.p50_ms is not None}
        best = min((timed[name] for name in ("triton", "aten") if name in timed), default=None)
        if best is not None and timed.get("auto", 0.0) > AUTO_SLACK * best:
            row = cell["auto"]
            slow.append(
                f"U={row.U} B={row.B} {row.dtype} {row.direction}: auto {row.p50_ms:.4g} ms, best {best:.4g} ms"
            )
    print("\n".join(["auto is slower than the better of triton and aten by more than 5 %:", *slow] if slow else
                    ["auto is nowhere slower than the better of triton and aten by more than 5 %"]))  # fmt: skip
    # Interpreted times say nothing about the choice.
    return status or int(bool(slow) and not args.rehearse)


def use_tuned_table(out: Path) -> None:
    """Let auto take the table that the step "tune" left in `out`, as if it were the user's own."""
    import torch

    from tritongru.tuning import choices
    from tritongru.tuning.devices import device_limits

    device = device_limits(torch.device("cuda"))
    table = out / f"{device.target}-{device.processors}.json"
    if not table.exists():
        print(f"{table} is not there: auto takes the shipped tables")
        return
    os.environ["TRITONGRU_CACHE"] = str(out / "cache")
    path = choices.user_path(device.name)
    if path is None:
        raise StepError("this device has no name")
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(table, path)
    choices.forget()
    print(f"auto takes {table}")


def run_demo(args: argparse.Namespace) -> int:
    """The demo, on this device."""
    short = ["--seeds", "1", "--epochs", "1", "--device", "cpu", "--no-compare"] if args.rehearse else []
    return call(["-m", "tritongru", "demo", "--output", str(args.out / "demo.png"), *short], args)


STEPS = {
    "tests": run_tests,
    "exchange": run_exchange,
    "grid": run_grid,
    "features": run_features,
    "layers": run_layers,
    "tune": run_tune,
    "auto": run_auto,
    "demo": run_demo,
}


def measure_sets(sets: Sequence[str], args: argparse.Namespace, backends: Sequence[str]) -> int:
    """Check the kernels, then time workloads that the CSV does not hold yet; the CSV grows cell by cell."""
    from tritongru.tools.benchmark.bench import bench, has_failed, print_results
    from tritongru.tools.benchmark.contenders import DIRECTIONS, FORWARD, TRAINING
    from tritongru.tools.benchmark.results import append_results
    from tritongru.tools.benchmark.workloads import select

    stop = time.monotonic() + args.budget
    device = "cpu" if args.rehearse else "cuda"
    path = args.csv or args.out / "bench-gpu.csv"
    check_kernels(args.dtypes, device)
    names = ["tiny"] if args.rehearse else list(sets)
    directions = DIRECTIONS if args.rehearse else (FORWARD, TRAINING)
    rows, left = [], 0
    for dtype in args.dtypes:
        for workload in select(names):
            if measured(path, workload, dtype, device, directions, backends):
                continue
            if time.monotonic() > stop:
                left += 1
                continue
            with report_to(path, append_results, rows) as report:
                bench([workload], [dtype], directions, backends, device, args.seconds, report=report)
    print_results(rows)
    print(f"{len(rows)} rows added to {path}; {left} cells left out for lack of time: run the command again")
    return int(has_failed(rows))


@contextlib.contextmanager
def report_to(path: Path, append, rows: list):
    """Give a function that writes the rows of a cell at once, so that a cut run keeps what it has."""

    def report(found: list) -> None:
        append(path, found)
        rows.extend(found)
        first = found[0]
        times = ", ".join(f"{row.backend} {row.p50_ms:.3g}" for row in found if row.p50_ms is not None)
        place = f"{first.workload} T{first.T} B{first.B} U{first.U} {first.dtype} {first.direction}"
        print(f"{place}: {times or 'nothing ran'}", flush=True)

    yield report


def measured(path: Path, workload, dtype: str, device: str, directions: Sequence[str], backends: Sequence[str]) -> bool:
    """Return whether the CSV holds a workload with all of `backends` on this device with these versions."""
    import torch

    from tritongru.tools.benchmark.results import conditions, read_results

    if not path.exists():
        return False
    now = conditions(torch.device(device))
    wanted = (now["device"], now["torch"], now["triton"], workload.name, workload.features, workload.time,
              workload.batch, workload.input_size, workload.units, dtype)  # fmt: skip
    found = {
        (r.direction, r.backend)
        for r in read_results(path)
        if (r.device, r.torch, r.triton, r.workload, r.features, r.T, r.B, r.I, r.U, r.dtype) == wanted
    }
    return all((direction, backend) in found for direction in directions for backend in backends)


def check_kernels(dtypes: Sequence[str], device: str) -> None:
    """Hold the kernels to the oracle, outputs and gradients, before anything is timed."""
    import tritongru
    from tritongru.tools.oracle.compare import has_failed, print_rows

    for dtype in dtypes:
        precision = {"precision": "tf32"} if dtype == "tf32" else {}
        for units in (5,) if device == "cpu" else (64, 512):
            rows = tritongru.compare(
                batch=3, time=7, units=units, dtype=dtype.replace("tf32", "float32"), device=device,
                backends=["triton"], **precision,
            )  # fmt: skip
            if has_failed(rows) or any(row.verdict == "not run" for row in rows):
                print_rows(rows)
                raise StepError(f"the kernels are wrong or do not run at units={units}, {dtype}: nothing is timed")
    print("the kernels agree with the oracle")


def call(command: list[str], args: argparse.Namespace) -> int:
    """Run a Python command from the repository and return its exit status; 124 when the budget ended it."""
    from gpu_tests import child_environment

    environment = child_environment(ROOT, args.rehearse)
    if args.rehearse and command[0].endswith(("exchange.py", "layers.py")):
        command = [*command, "--rehearse"]
    print("python " + " ".join(command), flush=True)
    try:
        return subprocess.run([sys.executable, *command], env=environment, cwd=ROOT, timeout=args.budget).returncode
    except subprocess.TimeoutExpired:
        print(f"ended after {args.budget:g} s")
        return 124


def check_device() -> None:
    """Stop early where there is no GPU, or one that is in use."""
    import torch

    if not torch.cuda.is_available():
        raise StepError("torch sees no GPU; `--rehearse` takes the same way without one")
    import tritongru

    print(tritongru.info())
    free, total = torch.cuda.mem_get_info()
    print(f"memory free: {free / 2**30:.1f} of {total / 2**30:.1f} GiB", flush=True)


def check_interpreter() -> None:
    """Stop early where Triton's interpreter cannot run."""
    from tritongru.environment import reasons_against_interpreter

    if reasons := reasons_against_interpreter():
        raise StepError("; ".join(reasons))


def main() -> int:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=tuple(STEPS))
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ROOT / "bench" / "results")))
    parser.add_argument("--csv", type=Path, help="rows that are there are not measured again; default: in --out")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds for the step; default: 540")
    parser.add_argument("--seconds", type=float, default=0.2, help="of timing for each backend and cell; default: 0.2")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, interpreted, tiny sizes")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
        args.seconds = 0.0
    begin = time.monotonic()
    try:
        check_interpreter() if args.rehearse else check_device()
        status = STEPS[args.step](args)
    except StepError as error:
        print(f"{args.step}: {error}")
        status = 1
    print(f"{args.step}: {'ok' if status == 0 else f'FAILED, status {status}'} in {time.monotonic() - begin:.0f} s")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
