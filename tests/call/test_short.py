"""Few steps without gradients, which eager runs without packing its weights, against the oracle in float64."""

import itertools

import pytest
import torch

from tritongru import gru
from tritongru.backends.eager import forward, short
from tritongru.tools.oracle.cases import Case, in_dtype, make_arguments

CASES = [
    Case(batch, time, 4, units, dtype, layout=layout, use_bias=bias, go_backwards=backwards)
    for (batch, time, units), dtype, layout, bias, backwards in itertools.product(
        [(1, 1, 5), (3, 1, 9), (2, 8, 6)], ["float32", "float64"], ["keras", "torch"], [True, False], [False, True]
    )
]


@pytest.fixture
def runs(monkeypatch) -> list:
    """Count the calls that were run so."""
    found = []

    def run(*arguments):
        found.append(True)
        return short.run_short(*arguments)

    monkeypatch.setattr(forward, "run_short", run)
    return found


@torch.no_grad()
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_the_oracle(case: Case, runs) -> None:
    arguments = make_arguments(case)
    outputs, state = gru(**arguments, backend="eager")
    expected, last = gru(**in_dtype(arguments, torch.float64), backend="reference")
    assert runs == [True]
    tolerance = 1e-12 if case.dtype == "float64" else 2e-6
    torch.testing.assert_close(outputs.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(state.double(), last, rtol=tolerance, atol=tolerance)


@torch.no_grad()
@pytest.mark.parametrize(
    "activation, recurrent", [("relu", "hard_sigmoid"), ("softplus", "sigmoid"), ("linear", "elu")]
)
def test_other_activations(activation: str, recurrent: str, runs) -> None:
    arguments = make_arguments(Case(2, 2, 3, 4, "float64", activation=activation, recurrent_activation=recurrent))
    outputs, _ = gru(**arguments, backend="eager")
    assert runs == [True]
    torch.testing.assert_close(outputs, gru(**arguments, backend="reference")[0], rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_results_are_tensors_of_their_own() -> None:
    arguments = make_arguments(Case(2, 1, 3, 4))
    before = arguments["initial_state"].clone()
    outputs, state = gru(**arguments, backend="eager")
    kept = outputs.clone()
    state.zero_()
    assert torch.equal(outputs, kept) and torch.equal(arguments["initial_state"], before)


@pytest.mark.parametrize(
    "changes", [{"mask": True}, {"resets": True}, {"recurrent_dropouts": 1}, {"reset_after": False}]
)
@torch.no_grad()
def test_what_it_does_not_run_goes_the_long_way(changes: dict, runs) -> None:
    arguments = make_arguments(Case(2, 3, 3, 4, "float64", **changes))
    outputs, _ = gru(**arguments, backend="eager")
    assert not runs
    torch.testing.assert_close(outputs, gru(**arguments, backend="reference")[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch, time", [(0, 1), (0, 3), (2, 0)])
@torch.no_grad()
def test_no_rows_or_no_steps(batch: int, time: int, runs) -> None:
    outputs, state = gru(**make_arguments(Case(batch, time, 3, 4)), backend="eager")
    assert outputs.shape == (batch, time, 4) and state.shape == (batch, 4) and not runs
