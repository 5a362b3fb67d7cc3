"""Every backend against the oracle in float64: outputs, final state and all gradients.

The Triton kernels run compiled on a GPU. Without one they run in Triton's interpreter, in a process of their own, since
Triton settles on its interpreter when it is imported; the interpreter is slow, so a large batch or time is cut for
them, and the table says to what.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace

import torch

from ...activations import TABLE
from ...call.check import resolve_precision
from ...call.errors import (
    BACKENDS,
    LAYER_NORMS,
    PRECISIONS,
    UnsupportedError,
    check_choice,
    check_heads,
    check_norm_name,
)
from ...functional import explain_call
from .. import options
from ..show import print_table
from .cases import DTYPES, Case, as_arguments, in_dtype, make_arguments, moved_arguments, run_case
from .tolerance import largest_error, tolerance

OK, FAILED, NOT_RUN = "ok", "FAIL", "not run"
INTERPRETED_BATCH, INTERPRETED_TIME = 64, 32
INTERPRETER_TIMEOUT_S = 300.0
NODES_OF_A_STEP = 24 * 1024  # bytes, seen in the resident memory of 2,000 and 22,000 steps


@dataclass(frozen=True)
class Row:
    """One line of the comparison.

    Attributes:
        backend: its name. case: the shape and the variant that were run.
        quantity: "outputs", "state", "d x" and so on; "-" where the backend did not run.
        error, tolerance: largest absolute errors, measured and allowed; NaN where the backend did not run.
        verdict: "ok", "FAIL" or "not run". note: why.
    """

    backend: str
    case: str
    quantity: str
    error: float
    tolerance: float
    verdict: str
    note: str = ""


def compare(
    batch: int = 3,
    time: int = 7,
    units: int = 9,
    input_size: int = 5,
    dtype: str | torch.dtype = "float32",
    backends: Sequence[str] | None = None,
    seed: int = 0,
    device: str | None = None,
    timeout: float = INTERPRETER_TIMEOUT_S,
    **variant,
) -> list[Row]:
    """Compare backends with the oracle in float64 on one random call.

    err(backend) <= 2 err(oracle in the same dtype) + floor; the rule is `tritongru.tools.oracle.tolerance`

    Args:
        batch, time, units, input_size: the call's shape.
        dtype: "float32" (default), "float16", "bfloat16", "float64", or the torch.dtype.
        backends: names; None for all.
        seed: of the call's numbers.
        device: None for the GPU where there is one, else the CPU.
        timeout: seconds the interpreted kernels may take.
        variant: further fields of `tritongru.tools.oracle.cases.Case`: mask=True, resets=True, reset_after=False, ...

    Returns:
        One `Row` for each backend and quantity, or one that says why a backend did not run.

    Raises:
        ValueError, TypeError: an unknown dtype, backend or flag.

    >>> rows = compare(batch=2, time=3, units=4, input_size=3, mask=True, backends=["eager"])
    >>> {row.verdict for row in rows}, rows[0].quantity
    ({'ok'}, 'outputs')
    """
    name = str(dtype).removeprefix("torch.")
    check_choice("dtype", name, tuple(DTYPES))
    case = Case(batch=batch, time=time, units=units, input_size=input_size, dtype=name, seed=seed, **variant)
    check_case(case)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    rows: list[Row] = []
    for backend in BACKENDS if backends is None else backends:
        check_choice("backends", backend, BACKENDS)
        if backend == "triton" and place.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            rows += compare_interpreted(case, timeout)
        else:
            rows += compare_backend(case, backend, place)
    return rows


def check_case(case: Case) -> None:
    """Raise ValueError where fields of a case do not go together."""
    check_norm_name(case.layer_norm, case.reset_after)
    check_heads(case.heads, case.units, case.layer_norm)
    if case.reset_state is not None and not case.resets:
        raise ValueError(f"`reset_state`={case.reset_state!r} needs resets=True")


def compare_backend(case: Case, backend: str, device: torch.device) -> list[Row]:
    """Compare one backend in this process."""
    arguments = make_arguments(case, device)
    try:
        explain_call(as_arguments(arguments), backend)
    except UnsupportedError as error:
        reasons = error.rejected.get(backend, (str(error),))
        return [Row(backend, str(case), "-", float("nan"), float("nan"), NOT_RUN, "; ".join(reasons))]
    truth = run_case(in_dtype(arguments, torch.float64), "reference", case.seed)
    oracle = run_case(arguments, "reference", case.seed)
    moved = [run_case(given, "reference", case.seed) for given in moved_arguments(arguments)]
    try:
        results = run_case(arguments, backend, case.seed)
    except ImportError as error:
        return [Row(backend, str(case), "-", float("nan"), float("nan"), NOT_RUN, str(error))]
    precision = "ieee" if device.type == "cpu" else resolve_precision(case.precision)
    rows = []
    for quantity, exact in truth.items():
        error = largest_error(results[quantity], exact)
        allowed = tolerance(
            oracle[quantity], exact, DTYPES[case.dtype], precision, moved=[other[quantity] for other in moved]
        )
        rows.append(Row(backend, str(case), quantity, error, allowed, OK if error <= allowed else FAILED))
    return rows


def compare_interpreted(case: Case, timeout: float = INTERPRETER_TIMEOUT_S) -> list[Row]:
    """Compare the Triton kernels in Triton's interpreter, in a process of their own, at a small batch and time."""
    small = replace(case, batch=min(case.batch, INTERPRETED_BATCH), time=min(case.time, INTERPRETED_TIME))
    command = [sys.executable, "-m", "tritongru.tools.oracle.compare", json.dumps(asdict(small))]
    environment = os.environ | {"TRITON_INTERPRET": "1"}

    def single(verdict: str, note: str) -> list[Row]:
        return [Row("triton", str(small), "-", float("nan"), float("nan"), verdict, note)]

    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return single(FAILED, f"Triton's interpreter did not finish within {timeout:g} s")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return single(FAILED, f"Triton's interpreter ended with status {done.returncode}: {last}")
    rows = [Row(**row) for row in json.loads(done.stdout.strip().splitlines()[-1])]
    return [replace(row, note=row.note or "interpreted") for row in rows]


def memory_needed(case: Case) -> int:
    """Return about how many bytes the float64 oracle needs for a case, and what autograd saves for it."""
    weights = (case.input_size + case.units) * 3 * case.units
    a_step = case.batch * (4 * case.input_size + 24 * case.units)
    # Each of a step's operations also has a node in the graph, whatever the sizes.
    return 8 * (6 * weights + case.time * a_step) + NODES_OF_A_STEP * case.time


def has_failed(rows: Sequence[Row]) -> bool:
    """Return whether any backend was outside the tolerance."""
    return any(row.verdict == FAILED for row in rows)


def print_rows(rows: Sequence[Row]) -> None:
    """Print one table for each case that was run."""
    for case in dict.fromkeys(row.case for row in rows):
        cells = [
            (row.backend, row.quantity, _number(row.error), _number(row.tolerance), row.verdict, row.note)
            for row in rows
            if row.case == case
        ]
        print_table(("backend", "quantity", "error", "tolerance", "verdict", "note"), cells, title=case)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m tritongru compare`: the shape, and one for each field of `Case`."""
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, help="default: all")
    parser.add_argument("--device", type=options.device, help="default: the GPU where there is one, else the CPU")
    parser.add_argument(
        "--timeout",
        type=options.number(options.WEEK_IN_SECONDS),
        default=INTERPRETER_TIMEOUT_S,
        help="seconds for the interpreter",
    )
    ranges = {
        "batch": options.whole(1, options.MOST_ROWS),
        "time": options.whole(1, options.MOST_STEPS),
        "input_size": options.whole(0, options.MOST_UNITS),
        "units": options.whole(1, options.MOST_UNITS),
        "seed": options.whole(0, 2**62),
        "input_dropouts": int,
        "recurrent_dropouts": int,
        "gradient_clip": options.number(1e30, zero=True),
        "heads": options.whole(1, options.MOST_UNITS),
    }
    choices = {
        "input_dropouts": (0, 1, 3),
        "recurrent_dropouts": (0, 1, 3),
        "activation": tuple(TABLE),
        "recurrent_activation": tuple(TABLE),
        "dtype": tuple(DTYPES),
        "layout": ("keras", "torch"),
        "precision": PRECISIONS,
        "reset_state": ("initial", "rows", "steps"),
        "layer_norm": LAYER_NORMS,
    }
    for field in fields(Case):
        option = "--" + field.name.replace("_", "-")
        if isinstance(field.default, bool):
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=field.default)
        else:
            parser.add_argument(
                option,
                type=ranges.get(field.name, str),
                default=field.default,
                choices=choices.get(field.name),
                help=f"default: {field.default}",
            )


def main(args: argparse.Namespace) -> int:
    """Run the comparison that `args` describe; 1 if a backend is outside the tolerance, 2 if it is too large."""
    chosen = {field.name: getattr(args, field.name) for field in fields(Case)}
    place = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    needed, there = memory_needed(Case(**chosen)), options.memory_of(place)
    if there is not None and needed > there:
        sizes = f"--batch {args.batch}, --time {args.time}, --input-size {args.input_size} and --units {args.units}"
        memory = f"about {needed / 2**30:,.0f} GiB, more than the {there / 2**30:,.0f} GiB of the device {place}"
        print(f"compare: {sizes} need {memory}", file=sys.stderr)
        return 2
    try:
        check_case(Case(**chosen))
    except ValueError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    rows = compare(backends=args.backends, device=args.device, timeout=args.timeout, **chosen)
    print_rows(rows)
    if has_failed(rows):
        print("FAIL: a backend is outside the tolerance")
        return 1
    return 0


def _number(value: float) -> str:
    return "" if value != value else f"{value:.2e}"


def _compare_in_this_process(description: str) -> None:
    rows = compare_backend(Case(**json.loads(description)), "triton", torch.device("cpu"))
    print(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    _compare_in_this_process(sys.argv[1])
