"""The clipped gradient of the state: the eager scan against the oracle, both against steps taken one by one."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from test_eager import assert_equals_oracle

from tritongru import GRU, UnsupportedError, compat, gru
from tritongru.environment import reasons_against_numba
from tritongru.tools.oracle.cases import Case, differentiated, make_arguments, run_case

F64 = torch.float64
BACKENDS = [name for name in ("numba", "eager", "reference") if name != "numba" or not reasons_against_numba()]
PRECISE = dict(rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    "layout, reset_after, go_backwards", list(itertools.product(("keras", "torch"), (0, 1), (0, 1)))
)
def test_eager_equals_the_oracle(layout: str, reset_after: int, go_backwards: int) -> None:
    flags = itertools.product((0, 1), (0, 1), (None, "rows", "steps", "initial"), (0, 1))
    for seed, (mask, lengths, reset_state, drops) in enumerate(flags):
        case = Case(
            3, 6, 4, 5, "float64", seed, reset_after=bool(reset_after), layout=layout, go_backwards=bool(go_backwards),
            mask=bool(mask), lengths=bool(lengths), resets=seed % 2 == 1, recurrent_dropouts=drops,
            reset_state=reset_state if seed % 2 else None, gradient_clip=0.3, zoneout=seed % 3 == 0,
            recompute=seed % 3 == 1,
        )  # fmt: skip
        assert_equals_oracle(case)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bound", [0.0, 0.05, 0.5, 1e9])
def test_where_it_clips(backend: str, bound: float) -> None:
    """Step by step with autograd's own hooks: what enters a step is clipped, the output's own gradient is not."""
    arguments = make_arguments(Case(3, 6, 4, 5, "float64"))
    names = ("x", "kernel", "recurrent_kernel", "bias", "initial_state")
    for name in names:
        arguments[name].requires_grad_()
    leaves = [arguments[name] for name in names]
    outputs, state = gru(**(arguments | {"gradient_clip": bound}), backend=backend)
    h, steps = arguments["initial_state"], []
    for t in range(6):
        entering = h.view_as(h)
        entering.register_hook(lambda d: d.clamp(-bound, bound))
        given = arguments | {"x": arguments["x"][:, t : t + 1], "initial_state": entering}
        h = gru(**given, backend="reference")[1]
        steps.append(h)
    cotangents = torch.randn_like(outputs), torch.randn_like(state)
    right = torch.autograd.grad((torch.stack(steps, 1), h), leaves, cotangents)
    for ours, theirs in zip(torch.autograd.grad((outputs, state), leaves, cotangents), right, strict=True):
        torch.testing.assert_close(ours, theirs, **PRECISE)
    assert right[-1].abs().max() <= bound


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_calls_are_one(backend: str) -> None:
    """A sequence may be cut anywhere: each step clips what it passes back, the last of a call like any other."""
    arguments = make_arguments(Case(2, 6, 3, 4, "float64")) | {"gradient_clip": 0.1}
    x = arguments["x"].requires_grad_()
    weight = torch.randn(2, 6, 4, dtype=F64)
    (whole,) = torch.autograd.grad((gru(**arguments, backend=backend)[0] * weight).sum(), x)
    first, middle = gru(**(arguments | {"x": x[:, :2]}), backend=backend)
    second, _ = gru(**(arguments | {"x": x[:, 2:], "initial_state": middle}), backend=backend)
    (halves,) = torch.autograd.grad((torch.cat((first, second), 1) * weight).sum(), x)
    torch.testing.assert_close(halves, whole, **PRECISE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_changes_no_gradient(backend: str) -> None:
    arguments = make_arguments(Case(2, 4, 3, 4, "float64")) | {"gradient_clip": 0.1}
    padded = arguments | {"x": torch.cat((arguments["x"], torch.ones(2, 3, 3, dtype=F64)), 1)}
    results = []
    for given in (
        arguments,
        padded | {"lengths": torch.tensor([4, 4])},
        padded | {"lengths": torch.tensor([4, 4]), "resets": torch.zeros(2, 7)},
    ):
        state = given["initial_state"].clone().requires_grad_()
        last = gru(**(given | {"initial_state": state}), backend=backend)[1]
        results.append(torch.autograd.grad(5 * last.sum(), state)[0])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], **PRECISE)


def test_values_are_untouched_and_a_large_bound_changes_nothing() -> None:
    arguments = make_arguments(Case(dtype="float64", lengths=True))
    plain, clipped = (run_case(arguments | {"gradient_clip": c}, "eager") for c in (None, 0.01))
    assert all(torch.equal(plain[name], clipped[name]) for name in ("outputs", "state"))
    assert not torch.equal(plain["d x"], clipped["d x"])
    for name, value in run_case(arguments | {"gradient_clip": float("inf")}, "eager").items():
        torch.testing.assert_close(value, plain[name], **PRECISE)


def test_gradcheck_where_nothing_is_clipped() -> None:
    arguments = make_arguments(Case(2, 3, 2, 2, "float64", mask=True)) | {"gradient_clip": 1e6}
    leaves = {name: value.clone().requires_grad_() for name, value in differentiated(arguments).items()}

    def function(*values):
        return gru(**(arguments | dict(zip(leaves, values, strict=True))), backend="eager")

    assert torch.autograd.gradcheck(function, tuple(leaves.values()))
    assert torch.autograd.gradgradcheck(function, tuple(leaves.values()))


def test_transforms_run_on_the_reference() -> None:
    arguments = make_arguments(Case(2, 3, 2, 2, "float64", gradient_clip=0.05))

    def loss(u):
        return gru(**(arguments | {"recurrent_kernel": u}))[0].square().sum()

    u = arguments["recurrent_kernel"].clone().requires_grad_()
    torch.testing.assert_close(torch.func.grad(loss)(u.detach()), torch.autograd.grad(loss(u), u)[0], **PRECISE)
    torch.func.jvp(loss, (u.detach(),), (torch.ones_like(u),))
    stacked = torch.func.vmap(torch.func.grad(loss))(torch.stack((u.detach(), 2 * u.detach())))
    torch.testing.assert_close(stacked[0], torch.func.grad(loss)(u.detach()), **PRECISE)


def test_torchs_gru_says_why_not() -> None:
    with pytest.raises(UnsupportedError, match="gradient_clip=0.5"):
        gru(**make_arguments(Case(gradient_clip=0.5)), backend="aten")


@pytest.mark.parametrize(
    "bound, error",
    [(-1.0, ValueError), (float("nan"), ValueError), ("1", TypeError), (True, TypeError), ([1.0], TypeError)],
)
def test_bad_bounds_are_named(bound, error: type) -> None:
    for make in (
        lambda: gru(**(make_arguments(Case()) | {"gradient_clip": bound})),
        lambda: GRU(4, gradient_clip=bound),
        lambda: compat.GRU(3, 4, gradient_clip=bound),
    ):
        with pytest.raises(error, match="`gradient_clip` must be None or a number"):
            make()


@pytest.mark.parametrize(
    "make",
    [lambda **o: GRU(4, input_size=3, return_sequences=True, **o), lambda **o: compat.GRU(3, 4, 2, **o)],
    ids=["keras", "torch"],
)
def test_layers_pass_it_on(make) -> None:
    layer, free = make(gradient_clip=1e-3), make()
    free.load_state_dict(layer.state_dict())
    x, gradients = torch.randn(5, 6, 3), []
    for each in (layer, free):
        result = each(x)
        (result if isinstance(result, torch.Tensor) else result[0]).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in each.parameters()]))
    assert not torch.allclose(*gradients)


def test_one_case_of_each_dtype() -> None:
    for dtype in ("float32", "bfloat16", "float16"):
        assert_equals_oracle(replace(Case(gradient_clip=0.25, mask=True), dtype=dtype))
