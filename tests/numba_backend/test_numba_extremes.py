"""The ends of the range: saturation, NaN and inf in one row, padding, rows without steps, states held for long."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from extremes import (
    SCALES,
    SMALL,
    VARIANTS,
    check_a_reset_ends_it,
    check_length_is_a_shorter_call,
    check_padding_does_not_matter,
    check_rows_are_apart,
    check_rows_without_steps,
    check_scale,
)

from tritongru import gru
from tritongru.tools.oracle.cases import Case

BAD = [float("nan"), float("inf"), -1e38]
pytestmark = pytest.mark.usefixtures("weights")


@pytest.mark.parametrize("scales", SCALES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_sizes_of_inputs_and_states(dtype: str, scales: tuple[float, float]) -> None:
    for reset_after in (True, False):
        for use_bias in (True, False):
            check_scale("numba", replace(SMALL, dtype=dtype, reset_after=reset_after), *scales, use_bias)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("case", VARIANTS, ids=str)
def test_rows_are_apart(case: Case, bad: float) -> None:
    for changes in (case, replace(case, recompute=True), replace(case, recurrent_dropouts=3, resets=True),
                    replace(case, batch=9)):  # fmt: skip
        for argument in ("x", "initial_state"):
            check_rows_are_apart("numba", changes, argument, bad)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("case", VARIANTS, ids=str)
def test_padding_does_not_matter(case: Case, bad: float) -> None:
    for drops in (0, 1, 3):
        changed = replace(case, recurrent_dropouts=drops, input_dropouts=drops, recompute=drops == 3)
        check_padding_does_not_matter("numba", changed, bad)
    check_padding_does_not_matter("numba", replace(case, go_backwards=True, zero_output_for_mask=True), bad)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("case", VARIANTS, ids=str)
def test_a_reset_ends_it(case: Case, bad: float) -> None:
    check_a_reset_ends_it("numba", case, bad)


@pytest.mark.parametrize("case", VARIANTS, ids=str)
def test_rows_without_steps(case: Case) -> None:
    check_rows_without_steps("numba", case)
    check_length_is_a_shorter_call("numba", case)


@pytest.mark.parametrize("reset_after", [True, False])
def test_a_closed_gate_holds_its_state_bit_by_bit(reset_after: bool) -> None:
    """z = 1 keeps h exactly, however often, and z = 0 gives n."""
    U, T = 5, 200
    h0 = torch.randn(3, U)
    bias = torch.cat((torch.full((U,), 200.0), torch.zeros(2 * U)))
    bias = torch.stack((bias, bias * 0)) if reset_after else bias
    weights = torch.randn(4, 3 * U), torch.randn(U, 3 * U)
    outputs, last = gru(torch.randn(3, T, 4), *weights, bias, h0, reset_after=reset_after, backend="numba")
    assert torch.equal(last, h0) and torch.equal(outputs, h0[:, None].expand(-1, T, -1))
