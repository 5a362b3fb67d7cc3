"""What layer normalisation must give on any backend."""

from __future__ import annotations

import torch

from tritongru.tools.oracle.cases import Case, in_dtype, make_arguments, run_case
from tritongru.tools.oracle.tolerance import check

F64 = torch.float64


def assert_equals_oracle(backend: str, case: Case, **changes) -> None:
    """Assert outputs, state and every gradient by name; `changes` replace arguments of the case.

    A norm may enlarge an error, and in float64 the oracle is the truth itself: the measure is then what float32 gets
    wrong, in proportion to the epsilons.
    """
    arguments = make_arguments(case) | changes
    truth = run_case(in_dtype(arguments, F64), "reference", case.seed)
    if case.dtype == "float64":
        coarse, ratio = run_case(in_dtype(arguments, torch.float32), "reference", case.seed), 2.0 ** (23 - 52)
        oracle = {name: right + (coarse[name].double() - right) * ratio for name, right in truth.items()}
    else:
        oracle = run_case(arguments, "reference", case.seed)
    assert "d scale" in truth
    for name, value in run_case(arguments, backend, case.seed).items():
        check(f"{case}: {name}", value, oracle[name], truth[name])
