"""The oracle: against torch's GRU, against its own definition, and under automatic differentiation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tritongru.reference import gru_reference
from tritongru.tools.oracle.cases import Case, differentiated, make_arguments

PRECISE = dict(rtol=1e-10, atol=1e-11)
QUICK = settings(max_examples=25, deadline=None)


def call(case: Case, **changes) -> tuple[Tensor, Tensor]:
    return gru_reference(**reference_arguments(case, **changes))


def reference_arguments(case: Case, **changes) -> dict:
    arguments = make_arguments(case) | changes
    return {name: value for name, value in arguments.items() if name not in ("precision", "recompute")}


def sizes(**fixed) -> st.SearchStrategy[Case]:
    drawn = dict(
        batch=st.integers(1, 4), time=st.integers(1, 7), input_size=st.integers(1, 4), units=st.integers(1, 5),
        seed=st.integers(0, 10**6), dtype=st.just("float64"), reset_after=st.booleans(), use_bias=st.booleans(),
    )  # fmt: skip
    return st.builds(Case, **(drawn | {name: st.just(value) for name, value in fixed.items()}))


@pytest.mark.parametrize("batch, time, inputs, units", [(1, 1, 1, 1), (3, 7, 5, 9), (2, 4, 3, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_torch_gru(batch: int, time: int, inputs: int, units: int, bias: bool) -> None:
    model = torch.nn.GRU(inputs, units, bias=bias, batch_first=True, dtype=torch.float64)
    x = torch.randn(batch, time, inputs, dtype=torch.float64)
    h0 = torch.randn(batch, units, dtype=torch.float64)
    weights = dict(model.named_parameters())
    outputs, state = gru_reference(
        x,
        weights["weight_ih_l0"],
        weights["weight_hh_l0"],
        (weights["bias_ih_l0"], weights["bias_hh_l0"]) if bias else None,
        h0,
        layout="torch",
    )
    expected, last = model(x, h0[None])
    torch.testing.assert_close(outputs, expected, **PRECISE)
    torch.testing.assert_close(state, last[0], **PRECISE)
    ours = torch.autograd.grad(outputs.square().sum() + state.sum(), list(weights.values()))
    theirs = torch.autograd.grad(expected.square().sum() + last.sum(), list(weights.values()))
    for name, a, b in zip(weights, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **PRECISE, msg=lambda text, name=name: f"{name}: {text}")


def test_layouts_are_one_model() -> None:
    keras = make_arguments(Case(dtype="float64"))
    z, r, h = keras["kernel"].split(9, 1)
    zr, rr, hr = keras["recurrent_kernel"].split(9, 1)
    bz, br, bh = keras["bias"].split(9, 1)
    bias = torch.cat((br, bz, bh), 1)
    outputs, _ = gru_reference(keras["x"], keras["kernel"], keras["recurrent_kernel"], keras["bias"])
    turned, _ = gru_reference(
        keras["x"], torch.cat((r, z, h), 1).t(), torch.cat((rr, zr, hr), 1).t(), (bias[0], bias[1]), layout="torch"
    )
    torch.testing.assert_close(outputs, turned, **PRECISE)


GRADIENT_CASES = [
    Case(2, 3, 2, 3, "float64"),
    Case(2, 3, 2, 3, "float64", reset_after=False),
    Case(2, 4, 2, 3, "float64", mask=True, resets=True, reset_state="steps", zero_output_for_mask=True),
    Case(2, 4, 2, 3, "float64", lengths=True, resets=True, reset_state="initial", go_backwards=True),
    Case(2, 3, 2, 2, "float64", input_dropouts=3, recurrent_dropouts=3, layout="torch", time_major=True),
    Case(2, 3, 2, 2, "float64", activation="softmax", recurrent_activation="gelu"),
]


@pytest.mark.parametrize("case", GRADIENT_CASES, ids=str)
def test_gradcheck_and_gradgradcheck(case: Case) -> None:
    arguments = reference_arguments(case)
    leaves = {name: value.clone().requires_grad_() for name, value in differentiated(arguments).items()}

    def function(*values: Tensor):
        named = dict(zip(leaves, values, strict=True))
        given = arguments | {name: value for name, value in named.items() if "[" not in name}
        if "bias[0]" in named:
            given["bias"] = (named["bias[0]"], named["bias[1]"])
        return gru_reference(**given)

    inputs = tuple(leaves.values())
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@QUICK
@given(sizes(mask=True), st.data())
def test_splitting_time_equals_one_call(case: Case, data: st.DataObject) -> None:
    arguments = reference_arguments(case)
    cut = data.draw(st.integers(0, case.time))
    _, whole = gru_reference(**arguments)
    first = arguments | {name: arguments[name][:, :cut] for name in ("x", "mask")}
    _, middle = gru_reference(**first)
    second = arguments | {name: arguments[name][:, cut:] for name in ("x", "mask")} | {"initial_state": middle}
    _, last = gru_reference(**second)
    torch.testing.assert_close(last, whole, **PRECISE)


@QUICK
@given(sizes(), st.data())
def test_a_reset_equals_separate_calls_and_no_gradient_crosses(case: Case, data: st.DataObject) -> None:
    arguments = reference_arguments(case)
    cut = data.draw(st.integers(0, case.time - 1))
    resets = torch.zeros(case.batch, case.time, dtype=torch.bool)
    resets[:, cut] = True
    x = arguments["x"].requires_grad_()
    outputs, _ = gru_reference(**arguments, resets=resets)
    fresh = arguments | {"x": x[:, cut:], "initial_state": None}
    alone, _ = gru_reference(**fresh)
    torch.testing.assert_close(outputs[:, cut:], alone, **PRECISE)
    (gradient,) = torch.autograd.grad(outputs[:, cut:].sum(), x)
    assert torch.equal(gradient[:, :cut], torch.zeros_like(gradient[:, :cut]))


@QUICK
@given(sizes(), st.integers(0, 4))
def test_padding_never_changes_the_state(case: Case, extra: int) -> None:
    arguments = reference_arguments(case)
    _, state = gru_reference(**arguments)
    x = torch.cat((arguments["x"], torch.full((case.batch, extra, case.input_size), 7.0, dtype=torch.float64)), 1)
    lengths = torch.full((case.batch,), case.time)
    outputs, padded = gru_reference(**(arguments | {"x": x}), lengths=lengths)
    torch.testing.assert_close(padded, state, **PRECISE)
    for step in range(case.time, case.time + extra):
        assert torch.equal(outputs[:, step], padded), "a masked step repeats the output"


@QUICK
@given(sizes(mask=True, resets=True, reset_state="rows"), st.randoms(use_true_random=False))
def test_permuting_the_batch_permutes_the_result(case: Case, random) -> None:
    arguments = reference_arguments(case)
    order = list(range(case.batch))
    random.shuffle(order)
    outputs, state = gru_reference(**arguments)
    rows = ("x", "mask", "resets", "reset_state", "initial_state")
    moved, moved_state = gru_reference(**(arguments | {name: arguments[name][order] for name in rows}))
    torch.testing.assert_close(moved, outputs[order], **PRECISE)
    torch.testing.assert_close(moved_state, state[order], **PRECISE)


def test_masked_steps_before_the_first_valid_one() -> None:
    case = Case(1, 4, 2, 3, "float64")
    mask = torch.tensor([[False, True, False, True]])
    outputs, state = call(case, mask=mask)
    assert torch.equal(outputs[:, 0], torch.zeros(1, 3, dtype=torch.float64))
    assert torch.equal(outputs[:, 2], outputs[:, 1])
    assert torch.equal(outputs[:, 3], state)
    zeroed, same = call(case, mask=mask, zero_output_for_mask=True)
    assert torch.equal(zeroed[:, 2], torch.zeros(1, 3, dtype=torch.float64))
    assert torch.equal(same, state)


@pytest.mark.bits
def test_lengths_and_mask_mean_the_same() -> None:
    case = Case(3, 5, 2, 4, "float64")
    lengths = torch.tensor([0, 3, 5])
    mask = torch.arange(5)[None] < lengths[:, None]
    for a, b in zip(call(case, lengths=lengths), call(case, mask=mask), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(call(case, lengths=lengths)[1][0], make_arguments(case)["initial_state"][0])


@pytest.mark.parametrize("reset_after", [True, False])
def test_no_steps_and_no_rows(reset_after: bool) -> None:
    none = Case(2, 0, 3, 4, "float64", reset_after=reset_after)
    outputs, state = call(none)
    assert outputs.shape == (2, 0, 4) and torch.equal(state, make_arguments(none)["initial_state"])
    outputs, state = call(Case(0, 3, 3, 4, "float64", reset_after=reset_after))
    assert outputs.shape == (0, 3, 4) and state.shape == (0, 4)


@pytest.mark.bits
def test_go_backwards_and_time_major() -> None:
    case = Case(2, 5, 3, 4, "float64")
    arguments = reference_arguments(case)
    # Eighths, whose sums of products are exact in any order: where a step lies in memory may decide that order.
    arguments |= {name: (8 * arguments[name]).round() / 8 for name in ("x", "kernel")}
    backwards, state = gru_reference(**(arguments | {"go_backwards": True}))
    flipped, last = gru_reference(**(arguments | {"x": arguments["x"].flip(1)}))
    assert torch.equal(backwards, flipped) and torch.equal(state, last)
    major, _ = gru_reference(**(arguments | {"x": arguments["x"].transpose(0, 1), "time_major": True}))
    assert torch.equal(major.transpose(0, 1), gru_reference(**arguments)[0])


@pytest.mark.bits
def test_three_equal_dropout_masks_are_one() -> None:
    case = Case(2, 3, 3, 4, "float64", input_dropouts=1, recurrent_dropouts=1)
    arguments = reference_arguments(case)
    thrice = {name: [arguments[name]] * 3 for name in ("input_dropout", "recurrent_dropout")}
    for a, b in zip(gru_reference(**arguments), gru_reference(**(arguments | thrice)), strict=True):
        assert torch.equal(a, b)
