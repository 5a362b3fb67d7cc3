"""The eager scan's hand-derived gradients against the oracle, over a grid of flags, with and without recomputation."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from tritongru import gru
from tritongru.backends import eager
from tritongru.backends.eager import layout
from tritongru.tools.oracle.cases import Case, differentiated, in_dtype, make_arguments, run_case
from tritongru.tools.oracle.tolerance import check


def assert_equals_oracle(case: Case, backend: str = "eager", **changes) -> None:
    """Assert outputs, state and every gradient by name; `changes` replace arguments of the case."""
    arguments = make_arguments(case) | changes
    truth = run_case(in_dtype(arguments, torch.float64), "reference", case.seed)
    oracle = run_case(arguments, "reference", case.seed)
    for name, value in run_case(arguments, backend, case.seed).items():
        check(f"{case}: {name}", value, oracle[name], truth[name])


VARIANTS = list(itertools.product(("keras", "torch"), (False, True), (False, True)))
FLAGS = list(itertools.product((False, True), (None, "rows"), (0, 1, 3), (False, True)))


@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recompute"])
@pytest.mark.parametrize("layout, reset_after, go_backwards", VARIANTS)
def test_grid(layout: str, reset_after: bool, go_backwards: bool, recompute: bool) -> None:
    for seed, (mask, reset_state, dropouts, zero) in enumerate(FLAGS):
        case = Case(
            3, 6, 4, 5, "float64", seed, reset_after=reset_after, layout=layout, go_backwards=go_backwards,
            recompute=recompute, mask=mask, resets=bool(seed % 2), reset_state=reset_state if seed % 2 else None,
            recurrent_dropouts=dropouts, input_dropouts=(0, 3, 1)[seed % 3], zero_output_for_mask=zero,
            use_bias=seed % 5 > 0, time_major=seed % 4 == 3, lengths=seed % 7 == 2,
        )  # fmt: skip
        assert_equals_oracle(case)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("layout, reset_after, go_backwards", VARIANTS)
def test_chunks_of_steps(monkeypatch, layout: str, reset_after: bool, go_backwards: bool, steps: int) -> None:
    """States, gradients and sums cross from one chunk of steps to the next, and the last one may be shorter."""
    monkeypatch.setattr("tritongru.backends.eager.layout.CHUNK", 0)
    monkeypatch.setattr("tritongru.backends.eager.layout.CHUNK_ROWS", 3 * steps)
    for seed, (mask, reset_state, dropouts, zero) in enumerate(FLAGS):
        case = Case(
            3, 5, 4, 5, "float64", seed, reset_after=reset_after, layout=layout, go_backwards=go_backwards,
            recompute=seed % 3 == 1, mask=mask, resets=bool(seed % 2), reset_state=reset_state if seed % 2 else None,
            recurrent_dropouts=dropouts, input_dropouts=(0, 3, 1)[seed % 3], zero_output_for_mask=zero,
            use_bias=seed % 5 > 0, time_major=seed % 4 == 3,
        )  # fmt: skip
        assert_equals_oracle(case)
    half = Case(3, 5, 4, 5, "bfloat16", 1, reset_after=reset_after, layout=layout, mask=True, resets=True)
    assert_equals_oracle(half)


def test_one_call_is_one_chunk_or_many(monkeypatch) -> None:
    from tritongru.backends.eager.layout import Steps

    monkeypatch.setattr("tritongru.backends.eager.layout.CHUNK", 24)
    monkeypatch.setattr("tritongru.backends.eager.layout.CHUNK_ROWS", 2)
    assert list(Steps([2] * 7).chunks(4, False)) == [(0, 3), (3, 6), (6, 7)]
    assert list(Steps([2] * 7).chunks(4, True)) == [(4, 7), (1, 4), (0, 1)]
    assert list(Steps([2] * 0).chunks(4, False)) == []
    assert list(Steps([0] * 2).chunks(4, False)) == [(0, 2)]


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize(
    "name",
    ["linear", "tanh", "sigmoid", "relu", "hard_sigmoid", "elu", "selu", "softplus", "softsign", "exponential",
     "leaky_relu"],
)  # fmt: skip
def test_activations(name: str, reset_after: bool) -> None:
    case = Case(2, 3, 3, 4, "float64", activation=name, reset_after=reset_after)
    assert_equals_oracle(case)
    if name != "exponential":
        assert_equals_oracle(replace(case, activation="tanh", recurrent_activation=name))


@pytest.mark.parametrize(
    "case",
    [
        Case(1, 1, 1, 1),
        Case(1, 9, 3, 17),
        Case(5, 1, 4, 33),
        Case(2, 40, 12, 64, mask=True),
        Case(4, 12, 7, 31, "float16", resets=True, reset_state="steps"),
        Case(4, 12, 7, 31, "bfloat16", mask=True, reset_after=False),
        Case(3, 8, 0, 4, "float64"),
        Case(3, 8, 2, 4, "float64", initial_state=False, resets=True, reset_state="initial"),
        Case(3, 8, 2, 4, "float64", resets=True, reset_state="initial"),
    ],
    ids=str,
)
def test_shapes_and_dtypes(case: Case) -> None:
    assert_equals_oracle(case)
    assert_equals_oracle(replace(case, recompute=True))


@pytest.mark.parametrize("case", [Case(2, 0, 3, 4, "float64"), Case(0, 3, 3, 4, "float64", mask=True)], ids=str)
@pytest.mark.parametrize("recompute", [False, True])
def test_no_steps_and_no_rows(case: Case, recompute: bool) -> None:
    assert_equals_oracle(replace(case, recompute=recompute))


@pytest.mark.parametrize("layout", ["keras", "torch"])
@pytest.mark.parametrize("go_backwards", [False, True])
def test_aten_equals_oracle(layout: str, go_backwards: bool) -> None:
    case = Case(3, 7, 5, 9, "float64", layout=layout, go_backwards=go_backwards, input_dropouts=1)
    assert_equals_oracle(case, "aten")
    assert_equals_oracle(replace(case, use_bias=False, dtype="float32"), "aten")


def test_second_derivatives() -> None:
    arguments = make_arguments(Case(2, 3, 2, 2, "float64", mask=True, resets=True, reset_state="rows"))
    leaves = {name: value.clone().requires_grad_() for name, value in differentiated(arguments).items()}

    def function(*values):
        return gru(**(arguments | dict(zip(leaves, values, strict=True))), backend="eager")

    assert torch.autograd.gradcheck(function, tuple(leaves.values()))
    assert torch.autograd.gradgradcheck(function, tuple(leaves.values()))


@pytest.mark.parametrize("used", [0, 1])
def test_no_zeros_are_made_for_results_that_nobody_used(monkeypatch, used: int) -> None:
    """Autograd would fill arrays of zeros as large as the states and the gates."""
    seen = []
    inner = eager.run_backward

    def look(inputs, variant, setting, saved, d_out, d_last, wanted):
        seen.append([d is not None for d in (d_out, d_last)])
        return inner(inputs, variant, setting, saved, d_out, d_last, wanted)

    monkeypatch.setattr(eager, "run_backward", look)
    arguments = make_arguments(Case(2, 3, 2, 2, mask=True)) | {"backend": "eager"}
    arguments["x"].requires_grad_()
    gru(**arguments)[used].sum().backward()
    assert seen == [[used == 0, used == 1]]


@pytest.mark.bits
def test_a_repeated_run_gives_the_same_bits() -> None:
    arguments = make_arguments(Case(3, 8, 4, 16, mask=True))
    first, second = run_case(arguments, "eager"), run_case(arguments, "eager")
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_the_state_of_a_half_precision_scan_is_kept_in_float32() -> None:
    """A state that nears its end by less than half a digit of bfloat16 in each step would otherwise stand still."""
    U, T = 2, 400
    bias = torch.cat((torch.full((U,), 5.0), torch.zeros(U), torch.ones(U))).bfloat16()
    weights = torch.zeros(1, 3 * U).bfloat16(), torch.zeros(U, 3 * U).bfloat16()
    outputs, _ = gru(torch.zeros(1, T, 1).bfloat16(), *weights, torch.stack((bias, bias * 0)), backend="eager")
    end = torch.tensor(1.0).tanh() * (1 - torch.tensor(5.0).sigmoid().pow(T))
    torch.testing.assert_close(outputs[0, -1].float(), end.expand(U), rtol=4e-3, atol=0)


@pytest.mark.parametrize("rows", [1, 6, 9])
@pytest.mark.parametrize("go_backwards", [False, True])
def test_chunks_of_steps_make_no_difference(monkeypatch, go_backwards: bool, rows: int) -> None:
    """No sequence of the other tests is long enough to be cut."""
    monkeypatch.setattr(layout, "CHUNK", 1)
    monkeypatch.setattr(layout, "CHUNK_ROWS", rows)
    case = Case(3, 7, 4, 5, "float64", go_backwards=go_backwards, mask=True, resets=True, reset_state="steps")
    for changes in ({}, {"mask": False}, {"resets": False, "reset_state": None}, {"recompute": True},
                    {"reset_after": False, "recurrent_dropouts": 3}):  # fmt: skip
        assert_equals_oracle(replace(case, **changes))
