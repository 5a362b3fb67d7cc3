"""Rows of different length in the eager scan: the padding is neither stored nor computed, and nothing else changes."""

from __future__ import annotations

import itertools

import pytest
import torch
from test_eager import assert_equals_oracle

from tritongru import gru
from tritongru.backends.eager import backward, forward
from tritongru.backends.eager.packing import plan_packing
from tritongru.call.problem import Inputs, Variant
from tritongru.tools.oracle.cases import Case, make_arguments

B, T = 5, 7
LENGTHS = {
    "falling": [7, 5, 5, 2, 0],
    "mixed": [3, 7, 0, 1, 6],
    "shorter than T": [3, 5, 0, 1, 4],
    "whole or nothing": [7, 0, 7, 7, 0],
    "nothing": [0, 0, 0, 0, 0],
    "all but one step": [7, 7, 7, 7, 6],
}


def mask_of(lengths: list[int], side: str, time_major: bool = False) -> torch.Tensor:
    valid = torch.arange(T) < torch.tensor(lengths)[:, None]
    valid = valid if side == "right" else valid.flip(1)
    return valid.T if time_major else valid


@pytest.fixture
def plans(monkeypatch):
    """What was planned in a test, one entry per scan."""
    made = []

    def plan(*arguments):
        made.append(plan_packing(*arguments))
        return made[-1]

    for module in (forward, backward):
        monkeypatch.setattr(module, "plan_packing", plan)
    return made


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("layout, reset_after", list(itertools.product(("keras", "torch"), (True, False))))
def test_padded_rows(plans, layout, reset_after, lengths, side) -> None:
    for seed, (go_backwards, zero, recompute) in enumerate(itertools.product((False, True), repeat=3)):
        case = Case(
            B, T, 3, 4, "float64", seed, layout=layout, reset_after=reset_after, go_backwards=go_backwards,
            zero_output_for_mask=zero, recompute=recompute, use_bias=seed != 3, time_major=seed % 3 == 1,
            input_dropouts=(0, 1, 3)[seed % 3],
        )  # fmt: skip
        assert_equals_oracle(case, mask=mask_of(LENGTHS[lengths], side, case.time_major))
    assert len(plans) == 16 and None not in plans


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("side", ["right", "left"])
def test_chunks_of_steps(monkeypatch, plans, side, rows) -> None:
    monkeypatch.setattr("tritongru.backends.eager.layout.CHUNK", 0)
    monkeypatch.setattr("tritongru.backends.eager.layout.CHUNK_ROWS", rows)
    for reset_after, go_backwards, recompute in itertools.product((True, False), repeat=3):
        case = Case(B, T, 3, 4, "float64", reset_after=reset_after, go_backwards=go_backwards, recompute=recompute)
        assert_equals_oracle(case, mask=mask_of(LENGTHS["mixed"], side))
    assert None not in plans


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtypes(plans, dtype) -> None:
    for go_backwards, recompute in itertools.product((False, True), repeat=2):
        case = Case(B, T, 6, 20, dtype, go_backwards=go_backwards, recompute=recompute)
        assert_equals_oracle(case, mask=mask_of(LENGTHS["mixed"], "right"))
    assert None not in plans


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_mask_with_a_reset_or_dropout_is_not_packed(plans, side) -> None:
    """A reset changes the state in masked steps too, and recurrent dropout masks belong to rows."""
    mask = mask_of(LENGTHS["mixed"], side)
    assert_equals_oracle(Case(B, T, 3, 4, "float64", resets=True, reset_state="rows"), mask=mask)
    assert_equals_oracle(Case(B, T, 3, 4, "float64", recurrent_dropouts=3), mask=mask)
    holes = mask_of(LENGTHS["mixed"], side)
    holes[1, 3] = False
    assert_equals_oracle(Case(B, T, 3, 4, "float64"), mask=holes)
    assert_equals_oracle(Case(B, T, 3, 4, "float64"), mask=torch.ones(B, T))
    assert plans == [None] * 8


@pytest.mark.bits
def test_the_padding_and_what_is_unused_may_hold_anything() -> None:
    """Neither NaN in the padded inputs nor in the padding's gradients reaches a result."""
    arguments = make_arguments(Case(B, T, 3, 4, initial_state=False))
    mask = mask_of(LENGTHS["shorter than T"], "right")
    arguments |= {"mask": mask, "zero_output_for_mask": True, "backend": "eager"}
    poisoned = arguments | {"x": arguments["x"].masked_fill(~mask[..., None], torch.nan)}
    gradients = []
    for given in (arguments, poisoned):
        leaves = [given[name].clone().requires_grad_() for name in ("x", "kernel", "recurrent_kernel")]
        given = given | dict(zip(("x", "kernel", "recurrent_kernel"), leaves, strict=True))
        out, last = gru(**given)
        d_out = torch.ones_like(out)
        if given["x"].isnan().any():
            d_out = d_out.masked_fill(~mask[..., None], torch.nan)
        gradients.append((out, last, *torch.autograd.grad((out, last), leaves, (d_out, torch.ones_like(last)))))
    for plain, other in zip(*gradients, strict=True):
        assert torch.equal(plain, other)


def test_second_derivatives() -> None:
    arguments = make_arguments(Case(3, 4, 2, 2, "float64")) | {"mask": torch.arange(4) < torch.tensor([[2], [4], [0]])}
    names = ("x", "kernel", "recurrent_kernel", "initial_state")

    def function(*values):
        return gru(**(arguments | dict(zip(names, values, strict=True))), backend="eager")

    leaves = tuple(arguments[name].clone().requires_grad_() for name in names)
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("batch_first", [True, False])
def test_operators(batch_first: bool) -> None:
    """The operators' shapes and strides while tracing are those of a packed run."""
    arguments = make_arguments(Case(B, T, 3, 4, "float64"))
    x = arguments["x"].transpose(0, 1) if batch_first else arguments["x"].transpose(0, 1).contiguous()
    mask = mask_of(LENGTHS["mixed"], "right", time_major=True)
    tensors = [x, arguments["kernel"], None, arguments["recurrent_kernel"], None, arguments["initial_state"]]
    tensors = [t if t is None else t.clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors]
    rest = (mask, *[None] * 5, "tanh", "sigmoid", True, False, False, False, None, None, 1e-5, "ieee", "gates", "eager")
    torch.library.opcheck(torch.ops.tritongru.scan, (*tensors, *rest))


def test_the_plan() -> None:
    """The module's own example: a to d of lengths 4, 2, 2, 1, given as c, a, d, b."""
    mask = torch.arange(4)[:, None] < torch.tensor([2, 4, 1, 2])
    x, u, h0 = torch.zeros(4, 4, 1), torch.zeros(1, 3), torch.zeros(4, 1)
    packing = plan_packing(Inputs(x, None, None, u, None, h0, mask, None, None, None), Variant())
    assert packing is not None
    assert packing.order.tolist() == [1, 0, 3, 2] and packing.sizes == [4, 3, 1, 1]
    step, row = packing.places
    assert step.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 3] and row.tolist() == [1, 0, 3, 2, 1, 0, 3, 1, 1]
    assert packing.shown.view(4, 4).tolist() == [[1, 0, 3, 2], [5, 4, 3, 6], [5, 7, 3, 6], [5, 8, 3, 6]]
    assert packing.repeated is not None and torch.equal(packing.repeated, ~mask)
