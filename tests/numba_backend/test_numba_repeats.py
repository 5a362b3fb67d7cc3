"""A call of a kind that ran before takes a shorter way: the same bits, and gradients as from the whole way."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch_release import REPEATS_GRADIENTS

from tritongru import GRU, compat, gru, repeats
from tritongru.tools.oracle.cases import Case, make_arguments, run_case

CASES = [
    Case(1, 5, 3, 9),
    Case(1, 70, 3, 9, layout="torch"),
    Case(1, 5, 3, 33, layout="torch"),
    Case(2, 20, 6, 24, "float64"),
    Case(3, 30, 6, 24, layout="torch", use_bias=False),
    Case(9, 30, 2, 40, initial_state=False),
    Case(33, 9, 5, 17, go_backwards=True),
    Case(5, 9, 5, 17, time_major=True, go_backwards=True, layout="torch"),
    Case(4, 6, 5, 17, reset_after=False),
    Case(4, 6, 5, 17, reset_after=False, layout="torch", use_bias=False),
    Case(2, 6, 40, 50, activation="relu", recurrent_activation="hard_sigmoid"),
    Case(2, 6, 3, 4, gradient_clip=0.1),
    Case(700, 12, 3, 16),  # its backward pass takes several chunks of steps
]

# Kinds that take a shorter way after one with gradients: before torch 2.8 those all go the whole way, see repeats.py.
SHORTER = int(REPEATS_GRADIENTS)


def shorter() -> list[repeats.Repeat]:
    return [known for known in repeats._known.values() if known.repeat is not None]


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_second_call_is_the_first(case: Case) -> None:
    arguments = make_arguments(case)
    first = run_case(arguments, "numba")
    assert len(shorter()) == SHORTER
    for _ in range(2):
        again = run_case(arguments, "numba")
        for name, value in first.items():
            assert torch.equal(again[name], value), name
            if "kernel" in name or "bias" in name:
                assert again[name].stride() == value.stride(), name
    assert len(shorter()) == SHORTER


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_other_values_of_the_same_kind(case: Case) -> None:
    run_case(make_arguments(case), "numba")
    arguments = make_arguments(replace(case, seed=1))
    found, right = run_case(arguments, "numba"), run_case(arguments, "reference")
    assert len(shorter()) == SHORTER
    for name, value in right.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def leaves(steps: int = 6) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(2, steps, 3), (3, 12), (4, 12), (2, 12), (2, 4)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def run(tensors: list[Tensor], backend: str = "numba") -> tuple[Tensor, Tensor]:
    x, kernel, recurrent, bias, h0 = tensors
    return gru(x, kernel, recurrent, bias, h0, backend=backend)


def gradients(tensors: list[Tensor], loss, backend: str = "numba", **options) -> tuple:
    return torch.autograd.grad(loss(*run(tensors, backend)), tensors, allow_unused=True, **options)


LOSSES = {
    "outputs": lambda y, s: y.sum(),  # a gradient expanded from one number
    "state": lambda y, s: s.square().sum(),
    "both": lambda y, s: (y * y.detach()).sum() + s.sum(),
    "every other step": lambda y, s: y[:, ::2].square().sum(),
    "by units": lambda y, s: y.transpose(1, 2).flatten(1).square().cumsum(1).sum(),
}


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("steps", [6, 60])
def test_whatever_asks_for_the_gradient(loss, steps: int) -> None:
    tensors = leaves(steps)
    gradients(tensors, loss)
    assert len(shorter()) == SHORTER
    for found, right in zip(gradients(tensors, loss), gradients(tensors, loss, "reference"), strict=True):
        torch.testing.assert_close(found, right)


@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize("wanted", range(5))
def test_one_gradient_alone(wanted: int, steps: int) -> None:
    tensors = leaves(steps)
    for place, t in enumerate(tensors):
        t.requires_grad_(place == wanted)
    for _ in range(2):
        found = torch.autograd.grad(LOSSES["both"](*run(tensors)), tensors[wanted])
    right = torch.autograd.grad(LOSSES["both"](*run(tensors, "reference")), tensors[wanted])
    torch.testing.assert_close(found, right)
    assert len(shorter()) == SHORTER


def test_gradients_that_an_earlier_call_did_not_ask_for() -> None:
    tensors = leaves()
    for _ in range(2):
        assert not run([t.detach() for t in tensors])[0].requires_grad
    right = gradients(tensors, LOSSES["both"], "reference")
    for found, wanted in zip(gradients(tensors, LOSSES["both"]), right, strict=True):
        torch.testing.assert_close(found, wanted)


def test_second_derivatives() -> None:
    tensors = leaves(3)
    run(tensors)
    assert torch.autograd.gradcheck(lambda *t: run(list(t)), tensors)
    assert torch.autograd.gradgradcheck(lambda *t: run(list(t)), tensors)


def test_many_gradients_at_once() -> None:
    tensors = leaves()
    for _ in range(2):
        y, _ = run(tensors)
        many = torch.randn(3, *y.shape, dtype=y.dtype)
        found = torch.autograd.grad(y, tensors, many, is_grads_batched=True, retain_graph=True)
        one = torch.autograd.grad(y, tensors, many[1])
        for batched, alone in zip(found, one, strict=True):
            torch.testing.assert_close(batched[1], alone)


def test_hooks_on_what_is_saved() -> None:
    tensors = leaves()
    right = gradients(tensors, LOSSES["both"])
    turned = saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t.mT.contiguous().mT if t.dim() > 1 else t)
    for hooks in (save_on_cpu(), turned):
        with hooks:
            found = gradients(tensors, LOSSES["both"])
        for one, other in zip(found, right, strict=True):
            torch.testing.assert_close(one, other)


def test_a_weight_written_to_before_the_backward_pass_is_noticed() -> None:
    tensors = leaves()
    for _ in range(2):
        y, _ = run(tensors)
    with torch.no_grad():
        tensors[2].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_results_may_be_written_to() -> None:
    tensors = leaves()
    for _ in range(2):
        y, state = run(tensors)
    kept = state.detach().clone()
    y = y * 1
    y.add_(1)
    assert torch.equal(state, kept)
    with torch.no_grad():
        for _ in range(3):
            y, state = run(tensors)
            kept = state.clone()
            y.zero_()
            assert torch.equal(state, kept)


def test_a_kind_is_more_than_shapes() -> None:
    """What is the same but for one choice is another kind: nothing of the first call is left in the second."""
    tensors = [t.detach() for t in leaves()]
    x, kernel, recurrent, bias, h0 = tensors
    changes = [
        dict(activation="relu"), dict(recurrent_activation="hard_sigmoid"), dict(go_backwards=True),
        dict(time_major=True, initial_state=h0.new_ones(6, 4)), dict(mask=torch.ones(2, 6).tril()),
        dict(lengths=torch.tensor([2, 6])), dict(resets=torch.ones(2, 6)), dict(zoneout=x.new_zeros(2, 6, 4)),
        dict(layer_norm="joint"), dict(recurrent_dropout=x.new_zeros(2, 4)), dict(input_dropout=x.new_zeros(2, 1, 3)),
    ]  # fmt: skip
    for change in changes:
        gru(x, kernel, recurrent, bias, h0)
        options = dict(initial_state=h0) | change
        found = gru(x, kernel, recurrent, bias, **options)
        right = gru(x, kernel, recurrent, bias, **options, backend="reference")
        torch.testing.assert_close(found, right)


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("shape", [(4,), (1, 4)], ids=str)
def test_one_state_for_all_rows(batch: int, shape: tuple[int, ...]) -> None:
    x, kernel, recurrent, bias, _ = leaves()
    x = x.detach()[:1].expand(batch, -1, -1)
    h0 = torch.randn(shape, dtype=x.dtype, requires_grad=True)
    right = torch.autograd.grad(gru(x, kernel, recurrent, bias, h0, backend="reference")[0].sum(), h0)[0]
    for _ in range(3):
        y, _ = gru(x, kernel, recurrent, bias, h0, backend="numba")
        torch.testing.assert_close(torch.autograd.grad(y.sum(), h0)[0], right)


def test_layers_share_what_is_known_and_nothing_else() -> None:
    one, other = (GRU(4, input_size=3, return_sequences=True, return_state=True) for _ in range(2))
    x = torch.randn(2, 8, 3)
    for layer in (one, other, one):
        y, state = layer(x)
        right = gru(x, layer.kernel, layer.recurrent_kernel, layer.bias, backend="reference")
        torch.testing.assert_close((y, state), right)
        y.sum().backward()
    assert len(shorter()) == SHORTER
    half = GRU(4, input_size=3, dtype="mixed_float16", return_sequences=True)
    assert half(x).dtype == torch.float16
    drops = GRU(4, input_size=3, recurrent_dropout=0.5, return_sequences=True)
    assert not torch.equal(drops(x), drops(x))


def test_the_most_kinds_that_are_known(monkeypatch) -> None:
    monkeypatch.setattr(repeats, "MOST_KINDS", 3)
    layer = compat.GRU(3, 4)
    for steps in range(1, 8):
        layer(torch.randn(steps, 2, 3))
        assert len(repeats._known) <= 3


@pytest.mark.parametrize("backend", ["numba", "eager"])
def test_an_expanded_bias_of_both_parts(backend: str) -> None:
    x, w, r = torch.randn(1, 2, 4), torch.randn(4, 24), torch.randn(8, 24)
    for steps in (2, 40):
        found = []
        for name in ("reference", backend, backend, backend):
            bias = torch.linspace(-1, 1, 24).requires_grad_()
            outputs = gru(x.repeat(1, steps, 1), w, r, bias.expand(2, 24), backend=name)[0]
            outputs.square().sum().backward()
            found.append((outputs.detach(), bias.grad))
            with torch.no_grad():
                torch.testing.assert_close(
                    gru(x.repeat(1, steps, 1), w, r, bias.expand(2, 24), backend=name)[0], outputs
                )
        for outputs, d_bias in found[1:]:
            torch.testing.assert_close(outputs, found[0][0])
            torch.testing.assert_close(d_bias, found[0][1], rtol=1e-4, atol=1e-4)


def test_a_bound_given_as_a_tensor_may_change() -> None:
    x, w = torch.randn(2, 5, 3), torch.randn(3, 24)
    r, bound = torch.randn(8, 24, requires_grad=True), torch.tensor(0.01)

    def gradient(backend: str, bound) -> torch.Tensor:
        outputs = gru(x, w, r, gradient_clip=bound, backend=backend)[0]
        return torch.autograd.grad(outputs.square().sum(), r)[0]

    gradient("numba", bound), gradient("numba", bound)
    bound.fill_(100.0)
    torch.testing.assert_close(gradient("numba", bound), gradient("reference", 100.0))


def test_threads_that_push_out_each_other_s_kinds(monkeypatch) -> None:
    monkeypatch.setattr(repeats, "MOST_KINDS", 3)
    before, errors = sys.getswitchinterval(), []
    w, r, x = torch.randn(3, 12), torch.randn(4, 12), torch.randn(1, 60, 3)

    def work(seed: int) -> None:
        try:
            for call in range(300):
                gru(x[:, : 1 + (call * seed) % 59], w, r, backend="numba")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (7, 11, 13, 17)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not errors
