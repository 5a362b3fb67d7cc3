"""What changes no bit, as docs/reliability.md promises; what may change one stays in the tolerance."""

from __future__ import annotations

import pytest
import torch

from tritongru import gru
from tritongru.tools.oracle.cases import Case, in_dtype, make_arguments, run_case
from tritongru.tools.oracle.tolerance import check

BACKENDS = ("reference", "aten", "eager")
# Large enough that the products are split among threads.
CASES = [Case(3, 7, 5, 9), Case(33, 6, 100, 130, "float64"), Case(64, 4, 64, 256)]


@pytest.fixture
def threads():
    """Set the number of threads, and what it was afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.bits
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_repeated_runs_and_thread_counts(threads, backend: str, case: Case) -> None:
    arguments = make_arguments(case)
    truth, oracle = run_case(in_dtype(arguments, torch.float64), "reference"), run_case(arguments, "reference")
    for number in (1, 2):
        threads(number)
        first, again = run_case(arguments, backend), run_case(arguments, backend)
        for name, value in first.items():
            assert torch.equal(value, again[name]), f"{name}, {number} threads"
            check(f"{name}, {number} threads", value, oracle[name], truth[name])


@pytest.mark.bits
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_in_another_order(backend: str) -> None:
    """Within the tolerance: the vendor's products may treat the last rows of a block in another way."""
    arguments = make_arguments(Case(33, 4, 20, 65))
    order = torch.randperm(33, generator=torch.Generator().manual_seed(0))
    permuted = {name: arguments[name][order] for name in ("x", "initial_state")}
    exact = gru(**in_dtype(arguments, torch.float64), backend="reference")
    oracle = gru(**arguments, backend="reference")
    found = gru(**(arguments | permuted), backend=backend)
    for name, value, right, truth in zip(("outputs", "state"), found, oracle, exact, strict=True):
        check(name, value, right[order], truth[order])
