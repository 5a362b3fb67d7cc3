"""Nanoseconds per exchange between the programs of a batch tile, for each method and number of programs.

    python bench/exchange.py [--out FOLDER or FILE.csv] [--rehearse]

One exchange is a round of `backends/triton/kernels/probe.py`: every program publishes 16 rows of 16 units and gathers
those of all programs of its tile. A sample is the difference between a long and a short launch over the difference of
their rounds, so the launch itself is not in it. "marked" is the way of the kernels with weights in registers
(`kernels/resident_probe.py`), its marks among what is timed. "launch" is one launch for each round, replayed from a
CUDA graph, and "launch-from-host" the same from Python. Every method is checked before it is timed, and after.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SHORT, LONG, SAMPLES = 64, 576, 25
PATIENCE = 1 << 20
FIELDS = (
    "run", "date", "device", "torch", "triton", "tritongru", "method", "programs", "tiles", "dtype", "ns_p20", "ns_p50",
    "ns_p80", "samples", "notes",
)  # fmt: skip


def cases(processors: int):
    """Yield (programs, tiles, dtype), those that say most first."""
    counts = [n for n in (16, 32, 64, 8, 128, 2, 4) if n <= processors]
    yield from ((n, 1, "bfloat16") for n in (*counts, processors))
    yield from ((n, processors // n, "bfloat16") for n in counts if processors // n > 1)
    yield from ((n, 1, "float32") for n in counts[:3])


def check(probe, rounds: int) -> str:
    """Exchange `rounds` times and return what was wrong, or ""."""
    import torch

    probe.run(rounds, PATIENCE)
    if probe.faults.any():
        return "fault: a program waited too long"
    return "" if torch.equal(probe.gathered, probe.expected(rounds)) else "wrong sums"


def measure(method: str, programs: int, tiles: int, dtype: str) -> dict:
    """Return the fields of one row: checked, timed, checked again."""
    import torch

    from tritongru.backends.triton.probe import Probe
    from tritongru.tools.benchmark.timing import percentile, time_once

    device = torch.device("cuda")
    row = dict(method=method, programs=programs, tiles=tiles, dtype=dtype, samples=0, notes="")
    probe = Probe(method.partition("-")[0], programs, tiles, getattr(torch, dtype))
    for rounds in (1, 7, LONG):
        if wrong := check(probe, rounds):
            return row | dict(notes=wrong)
    if method == "launch":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            probe.run(SHORT, PATIENCE)
        samples = [time_once(lambda i: graph.replay(), device) / SHORT for _ in range(SAMPLES)]
    elif method == "launch-from-host":
        samples = [time_once(lambda i: probe.run(SHORT, PATIENCE), device) / SHORT for _ in range(SAMPLES)]
    else:
        samples = []
        for _ in range(SAMPLES):
            short = time_once(lambda i: probe.run(SHORT, PATIENCE), device)
            samples.append((time_once(lambda i: probe.run(LONG, PATIENCE), device) - short) / (LONG - SHORT))
    # A replay repeats old rounds: the board must be as the last round left it.
    if method != "launch" and (wrong := check(probe, 9)):
        return row | dict(notes=wrong + " after timing")
    ns = {f"ns_p{p}": round(percentile(tuple(samples), p) * 1e6, 1) for p in (20, 50, 80)}
    return row | ns | dict(samples=len(samples))


def rehearse(methods: tuple[str, ...]) -> list[dict]:
    """Take the same way on a CPU: one program interpreted, several compiled for sm_90 in a process of its own."""
    import torch

    from tritongru.backends.triton.probe import Probe

    rows = []
    for method in methods:
        name = method.partition("-")[0]
        if name == "marked":
            continue  # Gluon has no interpreter; it is compiled below
        for programs, tiles, dtype in ((3 if name == "launch" else 1, 2, "bfloat16"), (1, 1, "float32")):
            probe = Probe(name, programs, tiles, getattr(torch, dtype), device="cpu")
            wrong = check(probe, 3) or check(probe, 2)
            rows.append(
                dict(method=method, programs=programs, tiles=tiles, dtype=dtype, samples=0, notes=wrong or "rehearsed")
            )
    environment = os.environ | {
        "TRITON_INTERPRET": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }
    subprocess.run([sys.executable, __file__, "--compile"], env=environment, check=True)
    return rows


def compile_all() -> None:
    """Compile the kernel of every method for sm_90 and print its registers."""
    import torch

    from tritongru.backends.triton.ahead import compile_probe
    from tritongru.backends.triton.probe import METHODS

    for method in METHODS:
        for dtype in (torch.bfloat16, torch.float32):
            for programs in (2, 33):
                registers, spills = compile_probe("sm_90", method, programs, dtype)
                print(f"{method} {dtype} {programs} programs: {registers} registers, {spills} spilled", flush=True)


def append(path: Path, rows: list[dict], conditions: dict) -> None:
    """Add rows to the CSV, in one step."""
    from tritongru.tools.files import hold_lock, replace_file

    with hold_lock(path):
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, FIELDS, lineterminator="\n", extrasaction="ignore")
        if not old:
            writer.writeheader()
        elif tuple(next(csv.reader(io.StringIO(old)))) != FIELDS:
            raise ValueError(f"{path} is not a table of this benchmark")
        writer.writerows(conditions | row for row in rows)
        replace_file(path, old + text.getvalue())


def print_table(rows: list[dict]) -> None:
    """Print ns per exchange, the median, a column for each method."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    print("ns per exchange, median\n" + f"{'programs x tiles':>24}" + "".join(f"{name:>18}" for name in methods))
    places: dict = {}
    for row in rows:
        places.setdefault((row["dtype"], row["programs"], row["tiles"]), {})[row["method"]] = row
    for (dtype, programs, tiles), cell in places.items():
        texts = [str(cell[m].get("ns_p50") or cell[m]["notes"]) if m in cell else "" for m in methods]
        print(f"{dtype:>10} {programs:>6} x {tiles:<4}" + "".join(f"{text:>18}" for text in texts))


def main() -> int:
    """Check, measure, append, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ROOT / "bench" / "results")))
    parser.add_argument("--budget", type=float, default=480.0, help="seconds after which no new case begins")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU: interpreted, and compiled for sm_90")
    parser.add_argument("--compile", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.compile:
        compile_all()
        return 0
    if args.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
    import torch

    from tritongru.backends.triton.probe import METHODS
    from tritongru.tools.benchmark.results import conditions

    stop = time.monotonic() + args.budget
    path = args.out if args.out.suffix == ".csv" else args.out / "exchange.csv"
    methods = (*METHODS, "launch-from-host")
    if not args.rehearse and not torch.cuda.is_available():
        print("torch sees no GPU; `--rehearse` takes the same way without one")
        return 1
    shared = conditions(torch.device("cpu" if args.rehearse else "cuda"))
    rows: list[dict] = []
    if args.rehearse:
        rows = rehearse(methods)
        append(path, rows, shared)
    else:
        processors = torch.cuda.get_device_properties(0).multi_processor_count
        for programs, tiles, dtype in cases(processors):
            if time.monotonic() > stop:
                print(f"no time for {programs} x {tiles} {dtype}")
                continue
            found = [measure(method, programs, tiles, dtype) for method in methods]
            append(path, found, shared)
            rows += found
    print_table(rows)
    print(f"{len(rows)} rows added to {path}")
    return int(any(row["notes"] not in ("", "rehearsed") for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
