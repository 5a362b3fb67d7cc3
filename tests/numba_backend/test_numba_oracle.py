"""Outputs, state and every gradient of the numba scan against the oracle in float64, by the project's one rule."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from fuzzing import check_against_oracle
from hypothesis import HealthCheck, given, settings
from strategies import Configuration, configurations, plain_configurations

from tritongru import gru
from tritongru.activations import TABLE
from tritongru.tools.oracle.cases import Case, in_dtype, make_arguments, run_case
from tritongru.tools.oracle.tolerance import check

VARIANTS = list(itertools.product(("keras", "torch"), (False, True), (False, True)))
FLAGS = list(itertools.product((False, True), (None, "rows"), (0, 1, 3), (False, True)))
NAMES = [name for name, entry in TABLE.items() if entry.derivative is not None]


def assert_equals_oracle(case: Case, **changes) -> None:
    """Assert outputs, state and every gradient by name; `changes` replace arguments of the case."""
    arguments = make_arguments(case) | changes
    truth = run_case(in_dtype(arguments, torch.float64), "reference", case.seed)
    oracle = run_case(arguments, "reference", case.seed)
    for name, value in run_case(arguments, "numba", case.seed).items():
        check(f"{case}: {name}", value, oracle[name], truth[name])


@pytest.mark.parametrize("batch", [1, 3, 11])
@pytest.mark.parametrize("layout, reset_after, go_backwards", VARIANTS)
def test_grid(divided: str, layout: str, reset_after: bool, go_backwards: bool, batch: int) -> None:
    for seed, (mask, reset_state, dropouts, zero) in enumerate(FLAGS):
        case = Case(
            batch, 6, 4, (5, 8, 19)[seed % 3], "float32" if seed % 4 else "float64", seed, reset_after=reset_after,
            layout=layout, go_backwards=go_backwards, recompute=seed % 3 == 1, mask=mask, resets=bool(seed % 2),
            reset_state=reset_state if seed % 2 else None, recurrent_dropouts=dropouts,
            input_dropouts=(0, 3, 1)[seed % 3], zero_output_for_mask=zero, use_bias=seed % 5 > 0,
            time_major=seed % 4 == 3, lengths=seed % 7 == 2,
        )  # fmt: skip
        assert_equals_oracle(case)


CELLS = list(itertools.product((False, True), (False, True), (0, 1, 3), ("mask", "mean", None), (None, 0.2)))


@pytest.mark.parametrize("layout, reset_after, go_backwards", VARIANTS)
def test_zoneout_and_a_bound_of_the_gradient(divided: str, layout: str, reset_after: bool, go_backwards: bool) -> None:
    for seed, (mask, resets, dropouts, zoneout, bound) in enumerate(CELLS):
        case = Case(
            (9, 3, 1)[seed % 3], 6, 4, (35, 8, 5)[seed % 3], "float32" if seed % 4 else "float64", seed,
            reset_after=reset_after, layout=layout, go_backwards=go_backwards, recompute=seed % 3 == 1, mask=mask,
            resets=resets, reset_state="rows" if resets else None, recurrent_dropouts=dropouts, lengths=seed % 7 == 2,
            zoneout=zoneout == "mask", gradient_clip=bound, time_major=seed % 4 == 3,
            recurrent_activation=("sigmoid", "hard_sigmoid", "softsign")[seed % 3],
        )  # fmt: skip
        mean = torch.tensor(0.75, dtype=torch.float64 if seed % 4 == 0 else torch.float32)
        assert_equals_oracle(case, **(dict(zoneout=mean) if zoneout == "mean" else {}))


@torch.no_grad()
@pytest.mark.parametrize("rows, units", [(1, 1), (3, 1), (3, 9)])
def test_one_feature_and_one_unit_may_lie_apart(rows: int, units: int) -> None:
    a = make_arguments(Case(rows, 4, 1, units))
    a["x"], a["initial_state"] = (spread(a[name]) for name in ("x", "initial_state"))
    found, expected = gru(**a, backend="numba"), gru(**a, backend="reference")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def spread(value: torch.Tensor) -> torch.Tensor:
    """Return the same numbers, of which no two that follow each other along the last axis are neighbours."""
    return torch.stack((value, torch.full_like(value, torch.nan)), dim=-1)[..., 0]


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("reset_after", [False, True])
@pytest.mark.parametrize("shape", [(3, 4), (3, "steps", 4)], ids=str)
@pytest.mark.parametrize("wanted", ["reset_state", "kernel"])
def test_what_the_product_of_the_first_step_leads_to(steps: int, reset_after: bool, shape, wanted: str) -> None:
    """It is left out where neither the initial state's gradient is wanted nor that of the state after a reset."""
    torch.manual_seed(0)
    x, kernel, recurrent = (torch.randn(size, dtype=torch.float64) for size in ((3, steps, 2), (2, 12), (4, 12)))
    state = torch.randn([steps if n == "steps" else n for n in shape], dtype=torch.float64)
    resets = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 1]])[:, :steps].bool()
    leaf = {"reset_state": state, "kernel": kernel}[wanted].requires_grad_()
    found = []
    for backend in ("numba", "reference"):
        choices = dict(resets=resets, reset_state=state, reset_after=reset_after, backend=backend)
        outputs, _ = gru(x, kernel, recurrent, **choices)
        found += torch.autograd.grad(outputs.sum(), leaf)
    torch.testing.assert_close(*found)


def test_the_gradient_of_a_zoneout_mask() -> None:
    arguments = make_arguments(Case(3, 5, 3, 5, "float64", mask=True))
    keep = torch.rand(3, 5, 5, dtype=torch.float64, requires_grad=True)
    results = []
    for backend in ("numba", "reference"):
        outputs, _ = gru(**arguments, zoneout=keep, backend=backend)
        results.append(torch.autograd.grad(outputs.square().sum(), keep)[0])
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_activations(name: str, reset_after: bool) -> None:
    for dtype in ("float64", "float32"):
        case = Configuration(
            units=4, input_size=3, dtype=dtype, spread=0.5, reset_after=reset_after, activation=name, batch=9
        )
        assert check_against_oracle(case, ("numba",)), "nothing compared"
        if name != "exponential":
            case = replace(case, activation="tanh", recurrent_activation=name)
            assert check_against_oracle(case, ("numba",)), "nothing compared"


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize(
    "case",
    [
        Case(1, 1, 1, 1),
        Case(1, 9, 3, 17),
        Case(5, 1, 4, 33),
        Case(2, 40, 12, 64, mask=True),
        Case(16, 30, 40, 64, lengths=True, layout="torch"),
        Case(9, 12, 330, 40, reset_after=False),
        Case(13, 5, 7, 340, layout="torch", recurrent_dropouts=3),
        Case(4, 12, 7, 31, "float16", resets=True, reset_state="steps"),
        Case(4, 12, 7, 31, "bfloat16", mask=True, reset_after=False),
        Case(3, 8, 0, 4, "float64"),
        Case(9, 8, 0, 4, "float64", resets=True, reset_state="initial"),
        Case(2, 0, 3, 4, "float64"),
        Case(0, 3, 3, 4, "float64", mask=True),
    ],
    ids=str,
)
def test_shapes_and_dtypes(case: Case) -> None:
    assert_equals_oracle(case)
    assert_equals_oracle(replace(case, recompute=True))


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("strategy", [configurations(), plain_configurations()], ids=["any", "plain"])
def test_any_configuration(strategy) -> None:
    compared = []

    @settings(
        max_examples=80, deadline=None, database=None, derandomize=True,
        suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
    )  # fmt: skip
    @given(strategy)
    def draw(configuration) -> None:
        compared.append(check_against_oracle(configuration, ("numba",)))

    draw()
    assert sum(map(bool, compared)) >= 40, "hardly anything compared"


def test_the_state_of_a_half_precision_scan_is_kept_in_float32() -> None:
    """A state that nears its end by less than half a digit of bfloat16 in each step would otherwise stand still."""
    from tritongru import gru

    U, T = 2, 400
    bias = torch.cat((torch.full((U,), 5.0), torch.zeros(U), torch.ones(U))).bfloat16()
    weights = torch.zeros(1, 3 * U).bfloat16(), torch.zeros(U, 3 * U).bfloat16()
    outputs, _ = gru(torch.zeros(1, T, 1).bfloat16(), *weights, torch.stack((bias, bias * 0)), backend="numba")
    end = torch.tensor(1.0).tanh() * (1 - torch.tensor(5.0).sigmoid().pow(T))
    torch.testing.assert_close(outputs[0, -1].float(), end.expand(U), rtol=4e-3, atol=0)


@pytest.mark.parametrize("layout, reset_after, go_backwards", VARIANTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_few_rows_of_weights_as_they_lie(dtype: str, layout: str, reset_after: bool, go_backwards: bool) -> None:
    """Without gradients: every way to multiply, with rows left over, and more inputs than are turned at a time."""
    for seed, (batch, time) in enumerate([(1, 1), (1, 4), (3, 2), (4, 1), (8, 1), (11, 1), (16, 1), (2, 9), (30, 1)]):
        for inputs, units in ((5, 3), (40, 19), (300, 64)):
            case = Case(
                batch, time, inputs, units, dtype, seed, reset_after=reset_after, layout=layout,
                go_backwards=go_backwards, use_bias=seed % 3 > 0, time_major=seed % 2 == 0,
            )  # fmt: skip
            arguments = make_arguments(case)
            with torch.no_grad():
                found = gru(**arguments, backend="numba")
                oracle = gru(**arguments, backend="reference")
                truth = gru(**in_dtype(arguments, torch.float64), backend="reference")
            for name, *values in zip(("outputs", "state"), found, oracle, truth, strict=True):
                check(f"{case}: {name}", *values)
