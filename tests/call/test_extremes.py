"""The ends of the range on the CPU's backends: saturation, NaN and inf in one row, padding, rows without steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from extremes import (
    SCALES,
    SMALL,
    VARIANTS,
    accepts,
    check_a_reset_ends_it,
    check_length_is_a_shorter_call,
    check_padding_does_not_matter,
    check_rows_are_apart,
    check_rows_without_steps,
    check_scale,
)

from tritongru import gru
from tritongru.call.arguments import Arguments
from tritongru.call.check import check as check_call
from tritongru.call.problem import canonicalize
from tritongru.tools.oracle.cases import Case, in_dtype, make_arguments, run_case
from tritongru.tools.oracle.tolerance import check

BACKENDS = ("reference", "aten", "eager")
MASKING = ("reference", "eager")
BAD = [float("nan"), float("inf"), -1e38]


@pytest.mark.parametrize("scales", SCALES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_sizes_of_inputs_and_states(backend: str, scales: tuple[float, float]) -> None:
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        for reset_after in (True, False):
            case = replace(SMALL, dtype=dtype, reset_after=reset_after)
            if accepts(backend, case):
                for use_bias in (True, False):
                    check_scale(backend, case, *scales, use_bias)


@pytest.mark.bits
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("case", VARIANTS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_are_apart(backend: str, case: Case, bad: float) -> None:
    for changes in (case, replace(case, recompute=True), replace(case, recurrent_dropouts=3, resets=True)):
        if accepts(backend, changes):
            for argument in ("x", "initial_state"):
                check_rows_are_apart(backend, changes, argument, bad)


@pytest.mark.bits
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("case", VARIANTS, ids=str)
@pytest.mark.parametrize("backend", MASKING)
def test_padding_does_not_matter(backend: str, case: Case, bad: float) -> None:
    for drops in (0, 1, 3):
        changed = replace(case, recurrent_dropouts=drops, input_dropouts=drops, recompute=drops == 3)
        check_padding_does_not_matter(backend, changed, bad)
    check_padding_does_not_matter(backend, replace(case, go_backwards=True, zero_output_for_mask=True), bad)


@pytest.mark.bits
def test_padding_does_not_matter_to_second_derivatives() -> None:
    arguments = make_arguments(Case(2, 3, 2, 3, "float64", mask=True))
    found = []
    for filler in (0.0, float("nan")):
        x = torch.where(arguments["mask"][..., None], arguments["x"], filler).requires_grad_()
        u = arguments["recurrent_kernel"].clone().requires_grad_()
        outputs, _ = gru(**(arguments | {"x": x, "recurrent_kernel": u}), backend="eager")
        (gradient,) = torch.autograd.grad(outputs.square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), (x, u)))
    assert all(torch.equal(clean, padded) for clean, padded in zip(*found, strict=True))


@pytest.mark.bits
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("case", VARIANTS, ids=str)
@pytest.mark.parametrize("backend", MASKING)
def test_a_reset_ends_it(backend: str, case: Case, bad: float) -> None:
    check_a_reset_ends_it(backend, case, bad)


@pytest.mark.bits
@pytest.mark.parametrize("case", VARIANTS, ids=str)
@pytest.mark.parametrize("backend", MASKING)
def test_rows_without_steps(backend: str, case: Case) -> None:
    check_rows_without_steps(backend, case)
    check_rows_without_steps(backend, replace(case, recompute=True, go_backwards=True))


@pytest.mark.bits
@pytest.mark.parametrize("case", VARIANTS, ids=str)
@pytest.mark.parametrize("backend", MASKING)
def test_lengths(backend: str, case: Case) -> None:
    check_length_is_a_shorter_call(backend, case)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", [Case(1, 1, 1, 1), Case(3, 1, 4, 9), Case(1, 1, 0, 1), Case(3, 0, 4, 9)], ids=str)
def test_one_step_and_none(backend: str, case: Case) -> None:
    if not accepts(backend, case) or (backend == "aten" and not case.time):
        pytest.skip("not a case of torch's own GRU")
    arguments = make_arguments(case)
    truth, oracle = run_case(in_dtype(arguments, torch.float64), "reference"), run_case(arguments, "reference")
    for name, value in run_case(arguments, backend).items():
        check(name, value, oracle[name], truth[name])


@pytest.mark.slow
def test_a_hundred_thousand_steps() -> None:
    """Errors stay as small as over a few steps."""
    arguments = make_arguments(Case(1, 100_000, 1, 2))
    with torch.no_grad():
        outputs, state = gru(**arguments, backend="eager")
        truth, _ = gru(**in_dtype(arguments, torch.float64), backend="aten")
    assert (outputs - truth).abs().max() < 32 * torch.finfo(torch.float32).eps
    assert torch.equal(state, outputs[:, -1])


def test_offsets_past_two_to_the_31() -> None:
    """Shapes alone, and one row expanded: what is prepared for a scan counts elements in 64 bits and copies nothing."""
    T, B, I, U = 70_000, 1024, 64, 48
    arguments = make_arguments(Case(1, 1, I, U))
    arguments |= {"x": torch.zeros(1, 1, I).expand(B, T, I), "initial_state": None}
    assert arguments["x"].numel() > 2**31
    call = check_call(Arguments(**arguments))
    x = canonicalize(call.arguments, call.signature.variant).inputs.x
    assert x.shape == (T, B, I) and x.untyped_storage().nbytes() < 1024
    with torch.device("meta"):
        shapes = {
            "x": torch.empty(T, B, I),
            "kernel": torch.empty(I, 3 * U),
            "recurrent_kernel": torch.empty(U, 3 * U),
            "bias": torch.empty(2, 3 * U),
            "mask": torch.empty(T, B, dtype=torch.bool),
            "resets": torch.empty(T, B, dtype=torch.bool),
            "reset_state": torch.empty(T, B, U),
        }
    for name in ("x", "kernel", "recurrent_kernel", "bias", "reset_state"):
        shapes[name].requires_grad_()
    outputs, state = gru(**shapes, time_major=True, backend="eager")
    assert outputs.shape == (T, B, U) and outputs.numel() > 2**31 and state.shape == (B, U)
    gradients = torch.autograd.grad(
        (outputs, state), [shapes["x"], shapes["reset_state"]], (torch.empty_like(outputs), torch.empty_like(state))
    )
    assert [g.shape for g in gradients] == [(T, B, I), (T, B, U)]
