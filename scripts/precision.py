"""Measure the error of every CPU backend and of torch.nn.GRU against float64, and draw it: docs/precision.md.

    python scripts/precision.py            # about 10 minutes on one core; writes the table and the plots
    python scripts/precision.py --quick    # a minute, sizes up to T=100 and U=64
    python scripts/precision.py --plots    # only draw what the table holds

The truth is the reference in float64 on inputs rounded to the dtype under test. The largest size leaves the reference
out, whose graph of single steps takes too long: there the truth is the eager scan in float64. Errors are largest
absolute differences; the plots divide them by the largest value of the truth. The Triton kernels run in Triton's
interpreter, in a process of their own, at small sizes; the interpreter rounds to bfloat16 by cutting digits off, so
that dtype waits for a GPU.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from tritongru.tools.benchmark.results import conditions
from tritongru.tools.files import replace_file
from tritongru.tools.oracle.cases import Case, in_dtype, make_arguments, run_case
from tritongru.tools.oracle.tolerance import largest_error, tolerance

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "bench" / "results" / "precision_cpu.csv"
FIGURES = ROOT / "docs" / "figures"
TIMES, UNITS = (1, 10, 100, 1000, 10_000), (16, 64, 256, 1024)
LARGEST = Case(1, 1000, 64, 1024, layout="torch")
DTYPES = ("float64", "float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Row:
    """One quantity of one backend: its error, the truth's largest value, and the error the tests' rule allows.

    `allowed` is NaN where the reference was left out.
    """

    run: str
    date: str
    device: str
    torch: str
    triton: str
    python: str
    tritongru: str
    threads: int
    sweep: str
    backend: str
    dtype: str
    precision: str
    reset_after: bool
    T: int
    B: int
    I: int
    U: int
    seed: int
    quantity: str
    error: float
    scale: float
    allowed: float


def grid(quick: bool) -> list[tuple[str, Case]]:
    """Return the named cases in the order of their cost."""
    times, units = ((1, 10, 100), (16, 64)) if quick else (TIMES, UNITS)
    cases = []
    for dtype in DTYPES:
        for T in times:
            seeds = range(3 if T <= 100 else 1)
            cases += [("T", Case(4, T, 32, 64, dtype, seed, layout="torch")) for seed in seeds]
        for U in units:
            cases += [("U", Case(4, 100, 64, U, dtype, seed, layout="torch")) for seed in range(3 if U < 256 else 1)]
        cases += [("reset before", Case(4, 100, 32, 64, dtype, seed, reset_after=False)) for seed in range(3)]
    cases.sort(key=lambda pair: pair[1].time * pair[1].units ** 2)
    return cases + ([] if quick else [("largest", LARGEST)])


def interpreted_grid(quick: bool) -> list[tuple[str, Case]]:
    """Return what Triton's interpreter can do in a few minutes."""
    times, units = ((1, 10), (16,)) if quick else ((1, 10, 100), (16, 64, 256))
    cases = []
    for dtype in ("float32", "float16"):
        cases += [("T", Case(4, T, 32, 64, dtype, seed, layout="torch")) for T in times for seed in range(3)]
        cases += [("U", Case(4, 10, 64, U, dtype, seed, layout="torch")) for U in units for seed in range(3)]
        cases += [("reset before", Case(4, 10, 32, 64, dtype, seed, reset_after=False)) for seed in range(3)]
    return cases


def run_nn_gru(arguments: dict, seed: int) -> dict:
    """Return what `run_case` returns, from torch.nn.GRU with the same weights."""
    kernel, recurrent = arguments["kernel"], arguments["recurrent_kernel"]
    module = torch.nn.GRU(kernel.shape[1], recurrent.shape[1], batch_first=True, dtype=kernel.dtype)
    with torch.no_grad():
        values = (kernel, recurrent, *arguments["bias"])
        for parameter, value in zip(module.parameters(), values, strict=True):
            parameter.copy_(value)
    x = arguments["x"].clone().requires_grad_()
    h0 = arguments["initial_state"].clone().requires_grad_()
    outputs, state = module(x, h0[None])
    generator = torch.Generator().manual_seed(seed + 1)

    def cotangent(like):
        # As in `tritongru.tools.oracle.cases.run_case`.
        values = torch.randint(-8, 9, like.shape, generator=generator, dtype=torch.float64) / 8
        return values.to(kernel.dtype)

    given = [cotangent(outputs), cotangent(state[0])[None]]
    leaves = [x, *module.parameters(), h0]
    gradients = torch.autograd.grad([outputs, state], leaves, given)
    names = ("x", "kernel", "recurrent_kernel", "bias[0]", "bias[1]", "initial_state")
    results = {"outputs": outputs.detach(), "state": state[0].detach()}
    return results | {f"d {name}": value for name, value in zip(names, gradients, strict=True)}


def measure(sweep: str, case: Case, backends: tuple[str, ...], same: dict) -> list[Row]:
    """Return the rows of one case."""
    arguments = make_arguments(case)
    exact = in_dtype(arguments, torch.float64)
    judged = sweep != "largest"
    truth = run_case(exact, "reference" if judged else "eager", case.seed)
    oracle = run_case(arguments, "reference", case.seed) if judged else {}
    rows = []
    for backend in backends:
        if (not case.reset_after and backend in ("aten", "nn.GRU")) or (
            not judged and backend in ("reference", "aten")
        ):
            continue
        if backend == "nn.GRU":
            results = run_nn_gru(arguments, case.seed)
        else:
            results = oracle if backend == "reference" else run_case(arguments, backend, case.seed)
        for quantity, right in truth.items():
            allowed = tolerance(oracle[quantity], right, oracle[quantity].dtype) if judged else float("nan")
            rows.append(
                Row(
                    **same,
                    sweep=sweep,
                    backend=backend,
                    dtype=case.dtype,
                    precision="ieee",
                    reset_after=case.reset_after,
                    T=case.time,
                    B=case.batch,
                    I=case.input_size,
                    U=case.units,
                    seed=case.seed,
                    quantity=quantity,
                    error=largest_error(results[quantity], right),
                    scale=float(right.abs().max()),
                    allowed=allowed,
                )
            )
    return rows


def measure_interpreted(quick: bool, same: dict) -> list[Row]:
    """Return the rows of the Triton kernels, from a process with the interpreter."""
    command = [sys.executable, __file__, "--interpreted", *(["--quick"] if quick else [])]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the interpreted kernels ended with status {done.returncode}:\n{done.stderr}")
    return [Row(**same | row) for row in json.loads(done.stdout.strip().splitlines()[-1])]


def write(path: Path, rows: list[Row]) -> None:
    """Write the whole table in one step."""
    text = io.StringIO(newline="")
    names = [field.name for field in dataclasses.fields(Row)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = dataclasses.asdict(row)
        writer.writerow({n: f"{v:.4g}" if isinstance(v, float) else v for n, v in cells.items()})
    replace_file(path, text.getvalue())


def read(path: Path) -> list[dict]:
    """Return the table's rows, sizes and errors as numbers."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row |= {name: int(row[name]) for name in ("T", "B", "I", "U", "seed")}
        row |= {name: float(row[name]) for name in ("error", "scale", "allowed")}
    return rows


def draw(rows: list[dict], folder: Path) -> None:
    """Draw error over T and over U, one picture each: quantities in columns, dtypes in rows."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    quantities = ("outputs", "d x", "d recurrent_kernel")
    styles = {"nn.GRU": "s-", "reference": "x:", "eager": "o-", "aten": ".--", "triton": "^-"}
    for sweep, axis in (("T", "T, steps"), ("U", "U, units")):
        figure, panels = plt.subplots(
            len(DTYPES), len(quantities), figsize=(9, 9), sharex=True, sharey="row", layout="constrained"
        )
        for i, dtype in enumerate(DTYPES):
            for j, quantity in enumerate(quantities):
                panel = panels[i][j]
                for backend, style in styles.items():
                    chosen = [
                        r
                        for r in rows
                        if (r["sweep"], r["dtype"], r["quantity"], r["backend"]) == (sweep, dtype, quantity, backend)
                    ]
                    sizes = sorted({r[sweep] for r in chosen})
                    worst = [max(r["error"] / r["scale"] for r in chosen if r[sweep] == size) for size in sizes]
                    if sizes:
                        panel.plot(sizes, worst, style, label=backend, markersize=4, linewidth=1)
                panel.set(xscale="log", yscale="log")
                panel.grid(alpha=0.3)
                if i == 0:
                    panel.set_title(quantity)
                if j == 0:
                    panel.set_ylabel(f"{dtype}\nerror / largest value")
                if i == len(DTYPES) - 1:
                    panel.set_xlabel(axis)
        handles = {}
        for panel in panels.flat:
            for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=5, frameon=False)
        figure.savefig(folder / f"precision_{sweep}.png", dpi=90)
        plt.close(figure)


def summarize(rows: list[dict]) -> str:
    """Return docs/precision.md's table of measurements: one line for each dtype, quantity and backend, T in columns."""
    chosen = [r for r in rows if r["sweep"] == "T"]
    times = sorted({r["T"] for r in chosen})
    lines = [
        "| dtype | quantity | backend | " + " | ".join(f"T={T:,}" for T in times) + " |",
        "|---" * (3 + len(times)) + "|",
    ]
    for dtype in DTYPES[1:]:
        for quantity in ("outputs", "d x", "d recurrent_kernel"):
            for backend in ("nn.GRU", "eager", "triton"):
                same = [r for r in chosen if (r["dtype"], r["quantity"], r["backend"]) == (dtype, quantity, backend)]
                if not same:
                    continue
                found = ([r["error"] / r["scale"] for r in same if r["T"] == T] for T in times)
                cells = (f"{max(errors):.1e}" if errors else "" for errors in found)
                lines.append(f"| {dtype} | {quantity} | {backend} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, write the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    parser.add_argument("--plots", action="store_true", help="only draw what the table holds")
    parser.add_argument("--table", type=Path, default=TABLE, help="the CSV file")
    parser.add_argument("--figures", type=Path, default=FIGURES, help="folder of the plots")
    parser.add_argument("--interpreted", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    own = {field.name for field in dataclasses.fields(Row)}
    same = {name: value for name, value in conditions(torch.device("cpu")).items() if name in own}
    if args.interpreted:
        rows = [row for sweep, case in interpreted_grid(args.quick) for row in measure(sweep, case, ("triton",), same)]
        print(json.dumps([dataclasses.asdict(row) for row in rows]))
        return
    if not args.plots:
        rows = measure_interpreted(args.quick, same)
        for sweep, case in grid(args.quick):
            began = time.monotonic()
            rows += measure(sweep, case, ("reference", "eager", "aten", "nn.GRU"), same)
            print(f"{sweep:12} {case}  {time.monotonic() - began:.1f} s", flush=True)
            write(args.table, rows)
    draw(read(args.table), args.figures)
    print(summarize(read(args.table)))


if __name__ == "__main__":
    main()
