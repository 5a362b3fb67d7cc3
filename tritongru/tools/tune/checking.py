"""Whether a configuration is right: one short call against the float64 oracle, on the device at hand."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ...environment import is_interpreted
from ...tuning.configs import LaunchConfig
from ...tuning.tables import Key
from ..oracle.cases import DTYPES, Case, in_dtype, make_arguments, run_case
from ..oracle.tolerance import largest_error, tolerance
from .space import Problem

STEPS_CHECKED = 8
# In the interpreter: enough to walk every line, in seconds.
REHEARSED_STEPS = 3
# A call of this many rows proves the arithmetic of a tile and of a partial one; timing has them all.
ROWS_CHECKED = 80


def check_config(problem: Problem, config: LaunchConfig) -> str:
    """Return what is wrong with a configuration on the device at hand; "" if its results are within the tolerance."""
    from ...backends.triton.scan import use_config

    try:
        case, arguments, truth, oracle = _expected(problem, is_interpreted())
        with use_config({problem.key.kernel: config}):
            results = run_case(arguments, "triton", case.seed)
        for name, exact in truth.items():
            if name.startswith("d ") != (problem.key.kernel == "backward"):
                continue
            allowed = tolerance(oracle[name], exact, DTYPES[problem.key.dtype], problem.key.precision)
            if not (error := largest_error(results[name], exact)) <= allowed:
                return f"{name}: error {error:.3g} exceeds the tolerance {allowed:.3g}"
    except Exception as error:  # whatever compiler or driver raise is their verdict on this configuration
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0]}"[:300]
    return ""


@functools.lru_cache(maxsize=2)
def _expected(problem: Problem, rehearse: bool) -> tuple[Case, dict, dict[str, Tensor], dict[str, Tensor]]:
    """Return a short call of the problem, its arguments, and the oracle's results in float64 and in its dtype."""
    steps = REHEARSED_STEPS if rehearse else STEPS_CHECKED
    case = make_case(problem.key, min(problem.batch, ROWS_CHECKED), steps)
    arguments = make_arguments(case, "cpu" if rehearse else "cuda")
    truth = run_case(in_dtype(arguments, torch.float64), "reference", case.seed)
    return case, arguments, truth, run_case(arguments, "reference", case.seed)


def make_case(key: Key, batch: int, steps: int) -> Case:
    """Return the call that candidates are checked on."""
    masked = "masked" in key.flags
    return Case(
        batch=batch, time=steps, input_size=16, units=key.units, dtype=key.dtype, mask=masked, resets=masked,
        reset_after="reset_before" not in key.flags, recurrent_dropouts=3 if "dropout" in key.flags else 0,
        precision=key.precision,
    )  # fmt: skip
