"""The tolerance against bench/results/precision_cpu.csv, which it is derived from: neither broken nor wide."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from tritongru import gru
from tritongru.tools.oracle.cases import DTYPES, Case, in_dtype, make_arguments, moved_arguments
from tritongru.tools.oracle.tolerance import (
    FLOOR_IN_EPSILONS,
    MOVES,
    ORACLE_FACTOR,
    enlarges_errors,
    largest_error,
    machine_epsilon,
    tolerance,
)

TABLE = Path(__file__).parents[2] / "bench" / "results" / "precision_cpu.csv"


@pytest.fixture(scope="module")
def measured() -> list[dict]:
    """The rows that have a yardstick: with `oracle`, the reference's own error on the same problem."""
    with open(TABLE, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    cells = ("sweep", "dtype", "reset_after", "T", "B", "I", "U", "seed", "quantity")
    oracle = {tuple(r[c] for c in cells): float(r["error"]) for r in rows if r["backend"] == "reference"}
    judged = []
    for row in rows:
        own = float(row["allowed"]) - FLOOR_IN_EPSILONS[DTYPES[row["dtype"]]] * epsilon(row) * float(row["scale"])
        if row["backend"] != "reference" and own == own:
            # The interpreted kernels ran beside a reference of their own; its error is what `allowed` holds.
            judged.append(row | {"oracle": oracle.get(tuple(row[c] for c in cells), own / ORACLE_FACTOR)})
    assert len(judged) > 1000
    return judged


def epsilon(row: dict) -> float:
    return machine_epsilon(DTYPES[row["dtype"]], row["precision"])


def needed_floors(rows: list[dict]) -> dict[str, float]:
    """Return, for each dtype, the least k with which every row keeps the rule."""
    floors: dict[str, float] = defaultdict(float)
    for row in rows:
        error, scale = float(row["error"]), float(row["scale"])
        rest = error - ORACLE_FACTOR * row["oracle"]
        if rest > 0:
            floors[row["dtype"]] = max(floors[row["dtype"]], rest / (epsilon(row) * scale))
    return floors


def test_every_measurement_keeps_the_rule(measured) -> None:
    floors = needed_floors(measured)
    assert floors, "some row needs a floor"
    for name, k in floors.items():
        assert k <= FLOOR_IN_EPSILONS[DTYPES[name]], name


def test_the_floors_are_not_wide(measured) -> None:
    """In float32 and float64, where the floor does the work, it is within 16 times of what was needed."""
    floors = needed_floors(measured)
    for name in ("float32", "float64"):
        assert FLOOR_IN_EPSILONS[DTYPES[name]] <= 16 * floors[name], name
    # In half precision the floor is about two roundings of the result.
    assert FLOOR_IN_EPSILONS[torch.float16] == FLOOR_IN_EPSILONS[torch.bfloat16] <= 2


def test_errors_do_not_grow_with_time_where_the_model_says_so(measured) -> None:
    """The state and its gradient contract; the weights' gradient is one product in eager."""

    def relative(backend: str, dtype: str, quantity: str, times: tuple[str, ...]) -> float:
        key = ("T", backend, dtype, quantity)
        chosen = [
            r for r in measured if (r["sweep"], r["backend"], r["dtype"], r["quantity"]) == key and r["T"] in times
        ]
        return max(float(r["error"]) / float(r["scale"]) for r in chosen)

    for dtype in ("float32", "float16", "bfloat16"):
        for quantity in ("outputs", "d x", "d recurrent_kernel"):
            early, late = (relative("eager", dtype, quantity, times) for times in (("10", "100"), ("1000", "10000")))
            assert late < 4 * early, (dtype, quantity)
    # What a graph of single steps loses in half precision, and a single product does not.
    for dtype in ("float16", "bfloat16"):
        theirs, ours = (relative(b, dtype, "d recurrent_kernel", ("1000",)) for b in ("nn.GRU", "eager"))
        assert ours * 4 < theirs


def test_below_the_smallest_normal_number_the_floor_stays() -> None:
    tiny = torch.finfo(torch.float32).tiny
    exact = torch.full((3,), tiny / 1024, dtype=torch.float64)
    allowed = tolerance(exact.float(), exact, torch.float32)
    assert allowed == pytest.approx(FLOOR_IN_EPSILONS[torch.float32] * torch.finfo(torch.float32).eps * tiny, rel=0.1)


def test_amplification_widens_the_floor_alone() -> None:
    truth = torch.tensor([1.0, 2.0], dtype=torch.float64)
    oracle = (truth + 1e-3).float()
    plain, wide = (tolerance(oracle, truth, torch.float32, amplification=by) for by in (1.0, 100.0))
    floor = FLOOR_IN_EPSILONS[torch.float32] * torch.finfo(torch.float32).eps * 2
    assert wide - plain == pytest.approx(99 * floor, rel=1e-2)


def test_moved_inputs_count_only_where_a_step_may_enlarge_errors() -> None:
    """What makes them needed: the first steps' roundings grow, and one run says little about another."""
    growing = Case(2, 5, 4, 6, activation="linear", recurrent_activation="tanh", reset_after=False)
    assert enlarges_errors("tanh") and not moved_arguments(make_arguments(Case()))
    arguments = make_arguments(growing)
    truth = gru(**in_dtype(arguments, torch.float64), backend="reference")[1]
    oracle = gru(**arguments, backend="reference")[1]
    moved = [gru(**given, backend="reference")[1] for given in moved_arguments(arguments)]
    errors = [largest_error(value, truth) for value in moved]
    assert len(moved) == MOVES and max(errors) > 4 * min(errors)
    # Each input is half a spacing away; a step that contracts would leave the state about as near.
    assert max(errors) > 16 * torch.finfo(torch.float32).eps * float(truth.abs().max())
    plain, wide = (tolerance(oracle, truth, torch.float32, moved=given) for given in ((), moved))
    floor = FLOOR_IN_EPSILONS[torch.float32] * torch.finfo(torch.float32).eps * float(truth.abs().max())
    assert wide == pytest.approx(ORACLE_FACTOR * max(*errors, largest_error(oracle, truth)) + floor, rel=1e-6)
    assert plain == pytest.approx(ORACLE_FACTOR * largest_error(oracle, truth) + floor, rel=1e-6)
