"""Members: two directions and several heads in one call, with what calls one after another give; the two operators."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import tritongru
from tritongru import GRU, Bidirectional, compat, dispatch, functional, gru
from tritongru.backends.members import Group, are_alike, differentiable_gradients
from tritongru.backends.operators import WHOLE
from tritongru.call.problem import Inputs, Variant
from tritongru.tools.oracle.cases import Case, differentiated, make_arguments, run_case

F64 = torch.float64
SETTINGS = [(mask, save, backend) for mask in (False, True) for save in ("gates", "recompute") for backend in WHOLE]


def two_members(mask: bool, save: str, backend: str, resets: bool = False) -> tuple:
    """Return the arguments of `tritongru::scan_members` for two directions, and the inputs of each."""
    T, B, I, U = 4, 2, 3, 5

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=F64).requires_grad_()

    x = leaf(B, T, I).transpose(0, 1)
    steps = torch.tensor([[1, 1], [1, 0], [0, 1], [1, 1]], dtype=torch.bool) if mask else None
    members = [
        Inputs(x, leaf(I, 3 * U), leaf(3 * U), leaf(U, 3 * U), leaf(3 * U), leaf(B, U), steps, resets=again)
        for again in ((None, None) if not resets else (torch.rand(T, B) < 0.3, torch.rand(T, B) < 0.3))
    ]
    group = Group.of(members, [False, True])
    return (group.pack(members), *map(list, group), *Variant(), "ieee", save, backend), members


@pytest.mark.parametrize("mask, save, backend", SETTINGS)
def test_opcheck(mask: bool, save: str, backend: str) -> None:
    arguments, _ = two_members(mask, save, backend)
    torch.library.opcheck(torch.ops.tritongru.scan_members, arguments)
    tensors = [t.detach() for t in arguments[0]]
    out, last, states, gates = torch.ops.tritongru.scan_members(tensors, *arguments[1:])
    wanted = [t.is_floating_point() for t in tensors]
    rest = out, states, gates, torch.randn_like(out), torch.randn_like(last), wanted
    # out, last, states, gates: the last state is no part of what is saved.
    torch.library.opcheck(torch.ops.tritongru.scan_members_backward, (tensors, *arguments[1:], *rest))


@pytest.mark.parametrize("mask, save, backend", SETTINGS)
def test_the_operator_is_the_scan_of_each(mask: bool, save: str, backend: str) -> None:
    arguments, members = two_members(mask, save, backend, resets=True)
    out, last, *_ = torch.ops.tritongru.scan_members(*arguments)
    pairs = [
        torch.ops.tritongru.scan(*a, *Variant(reverse=b), "ieee", save, backend)[:2]
        for a, b in zip(members, (False, True), strict=True)
    ]
    outs, lasts = map(torch.stack, zip(*pairs, strict=True))
    assert torch.equal(out, outs) and torch.equal(last, lasts)
    leaves = [t for t in arguments[0] if t.requires_grad]
    cotangents = torch.randn_like(out), torch.randn_like(last)
    found = torch.autograd.grad((out, last), leaves, cotangents, retain_graph=True)
    right = torch.autograd.grad((outs, lasts), leaves, cotangents, retain_graph=True)
    for value, expected in zip(found, right, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-13)
    # One gradient that nobody asks for, and a result without one.
    (found,) = torch.autograd.grad(last, leaves[-1:], cotangents[1])
    torch.testing.assert_close(found, torch.autograd.grad(lasts, leaves[-1:], cotangents[1])[0])


def test_second_derivatives() -> None:
    arguments, _ = two_members(True, "gates", "eager")
    leaves = [t.detach().clone().requires_grad_(t.requires_grad) for t in arguments[0]]
    rest = arguments[1:]

    def function(*given: Tensor) -> tuple[Tensor, Tensor]:
        values = iter(given)
        tensors = [next(values) if t.requires_grad else t for t in leaves]
        return torch.ops.tritongru.scan_members(tensors, *rest)[:2]

    assert torch.autograd.gradgradcheck(function, [t for t in leaves if t.requires_grad])


def test_nothing_saved_is_said() -> None:
    arguments, _ = two_members(False, "nothing", "eager")
    with pytest.raises(RuntimeError, match="without saving"):
        torch.ops.tritongru.scan_members(*arguments)[0].sum().backward()


def test_members_that_differ_are_not_alike() -> None:
    _, (first, second) = two_members(True, "gates", "eager")
    assert are_alike([first, second])
    for change in (dict(mask=None), dict(h0=first.h0.float()), dict(w=first.w[:2])):
        assert not are_alike([first, second._replace(**change)])
    group = Group.of([first, second], [False, True])
    found = differentiable_gradients(
        group, Variant(), group.pack([first, second]), [False] * 14, None, first.x.new_ones(2, 2, 5)
    )
    assert found == [None] * 14


NUMBA = [
    (dict(), dict()),
    (dict(lengths=True), dict()),
    (dict(resets=True, lengths=True), dict(recurrent_dropout=0.3)),
    (dict(hx=True), dict(num_layers=2, dtype=F64)),
    (dict(lengths=True), dict(layer_norm="joint")),
    (dict(), dict(layer_norm="separate")),
]


@pytest.fixture
def as_if_large(monkeypatch):
    """Small calls are run at once too, on as many threads as there are members."""
    from tritongru.backends import numba
    from tritongru.backends.numba import threads

    monkeypatch.setattr(numba, "LEAST_WORK", 0)
    monkeypatch.setattr(threads, "LEAST_WORK", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    dispatch.forget()
    yield monkeypatch
    dispatch.forget()


def alone(monkeypatch) -> None:
    monkeypatch.setitem(dispatch.RUNS_AT_ONCE, "numba", lambda signature: False)
    dispatch.forget()


@pytest.mark.parametrize("call, options", NUMBA)
def test_two_directions_in_numba_give_the_same_bits(as_if_large, call: dict, options: dict) -> None:
    pytest.importorskip("numba")
    layer = compat.GRU(3, 9, bidirectional=True, **options)
    x = torch.randn(7, 5, 3, dtype=options.get("dtype"))
    given = dict(lengths=torch.tensor([7, 3, 0, 1, 6]) if "lengths" in call else None,
                 resets=torch.rand(7, 5) < 0.3 if "resets" in call else None,
                 hx=torch.randn(2 * layer.num_layers, 5, 9, dtype=x.dtype) if "hx" in call else None)  # fmt: skip
    results = []
    for members in (2, 1):
        torch.manual_seed(1)
        with torch.no_grad():
            output, h_n = layer(x, **given, backend="numba")
        assert layer.last_decision.members == members
        assert ("2 scans at once" in str(layer.last_decision)) == (members == 2)
        results.append((output, h_n))
        alone(as_if_large)
    assert all(map(torch.equal, *results))


def test_keras_directions_in_numba_give_the_same_bits(as_if_large) -> None:
    pytest.importorskip("numba")
    for merge_mode, sequences in (("concat", True), (None, True), ("sum", False)):
        inner = GRU(9, return_sequences=sequences, return_state=True, input_size=3, backend="numba")
        layer = Bidirectional(inner, merge_mode=merge_mode)
        x, mask, resets = torch.randn(5, 7, 3), torch.rand(5, 7) < 0.7, torch.rand(5, 7) < 0.3
        results = []
        for members in (2, 1):
            with torch.no_grad():
                results.append(layer(x, mask=mask, resets=resets))
                said = layer.explain(x, mask=mask, resets=resets)
            assert layer.last_decision.members == members == said.members
            alone(as_if_large)
        dispatch.RUNS_AT_ONCE["numba"] = tritongru.backends.numba.runs_at_once
        dispatch.forget()
        assert all(map(torch.equal, *results))


@pytest.mark.parametrize("lower", [False, True], ids=["plain", "autocast"])
def test_an_input_of_all_is_cleared_and_cast_once(as_if_large, lower: bool) -> None:
    pytest.importorskip("numba")
    seen, inner = [], functional.run_members
    as_if_large.setattr(
        functional, "run_members", lambda problems, *rest: seen.extend(problems) or inner(problems, *rest)
    )
    layer, x = compat.GRU(3, 9, bidirectional=True), torch.randn(7, 5, 3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=lower):
        layer(x, lengths=torch.tensor([7, 3, 0, 1, 6]), backend="numba")
    first, second = (problem.inputs for problem in seen)
    assert first.x is second.x and first.mask is second.mask and first.u is not second.u
    assert first.x.dtype == (torch.bfloat16 if lower else torch.float32)


HEADS = [
    Case(5, 7, 3, 12, heads=4),
    Case(5, 7, 3, 12, "float64", heads=3, layout="torch", lengths=True, recompute=True),
    Case(5, 9, 3, 12, heads=3, mask=True, resets=True, reset_state="steps", recurrent_dropouts=3, go_backwards=True),
    Case(9, 7, 3, 12, heads=3, reset_after=False, recurrent_dropouts=1, gates=True),
    Case(0, 7, 3, 12, heads=3),
    Case(2, 0, 3, 12, heads=3),
]


@pytest.mark.parametrize("case", HEADS, ids=str)
def test_heads_in_numba_give_the_same_bits(as_if_large, case: Case) -> None:
    pytest.importorskip("numba")
    arguments = make_arguments(case)
    together = run_case(arguments, "numba")
    alone(as_if_large)
    apart = run_case(arguments, "numba")
    for name, value in together.items():
        # A sum over the heads, which autograd takes in the order of their calls.
        if name in ("d x", "d initial_state"):
            torch.testing.assert_close(value, apart[name])
        else:
            assert torch.equal(value, apart[name]), name


def test_gradcheck_of_heads_at_once() -> None:
    pytest.importorskip("numba")
    arguments = make_arguments(Case(2, 5, 2, 6, "float64", heads=3, mask=True))
    leaves = {name: value.clone().requires_grad_() for name, value in differentiated(arguments).items()}

    def function(*values: Tensor):
        return gru(**(arguments | dict(zip(leaves, values, strict=True))), backend="numba")

    assert torch.autograd.gradcheck(function, tuple(leaves.values()))
    assert torch.autograd.gradgradcheck(function, tuple(leaves.values()))


def test_a_hook_sees_its_direction() -> None:
    """Who looks at a half of a Bidirectional gets a call of its own."""
    layer = Bidirectional(GRU(4, return_sequences=True, input_size=3))
    x, seen = torch.randn(2, 5, 3), []
    plain = layer(x)
    handle = layer.backward_layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    torch.testing.assert_close(layer(x), plain)
    assert len(seen) == 1 and torch.equal(seen[0].flip(1), layer(x)[..., 4:])
    handle.remove()
    layer.forward_layer.forward = lambda *a, **o: torch.zeros(2, 5, 4)
    assert torch.equal(layer(x)[..., :4], torch.zeros(2, 5, 4))


def test_layers_that_differ_run_as_they_say() -> None:
    make = dict(return_sequences=True, input_size=3)
    for ours, theirs in ((dict(backend="eager"), dict(backend="reference")), (dict(backend="eager"), dict(units=6))):
        both = [GRU(**(dict(units=4, go_backwards=bool(i), backend="eager") | make | options))
                for i, options in enumerate((ours, theirs))]  # fmt: skip
        layer, x = Bidirectional(both[0], backward_layer=both[1]), torch.randn(2, 5, 3)
        forward, backward = layer.forward_layer, layer.backward_layer
        merged = layer(x)
        assert [part.last_decision.backend for part in (forward, backward)] == ["eager", theirs.get("backend", "eager")]
        torch.testing.assert_close(merged, torch.cat((forward(x), backward(x).flip(1)), -1))


def test_results_may_be_written_into(as_if_large) -> None:
    pytest.importorskip("numba")
    as_if_large.setitem(dispatch.RUNS_AT_ONCE, "numba", lambda signature: True)
    dispatch.forget()
    inner = GRU(4, return_sequences=True, return_state=True, input_size=3, backend="numba")
    layer = Bidirectional(inner, merge_mode=None)
    *outputs, h, h_rev = layer(torch.randn(2, 5, 3))
    assert layer.last_decision.members == 2
    right = [value.clone() for value in (*outputs, h_rev)]
    h.mul_(2)
    assert all(map(torch.equal, (*outputs, h_rev), right))
    (h.sum() + h_rev.sum()).backward()
    assert h.untyped_storage().nbytes() == h.numel() * h.element_size()


def test_few_steps_and_small_scans_run_one_after_another() -> None:
    pytest.importorskip("numba")

    def said(time: int, units: int, **options) -> int:
        layer = compat.GRU(8, units, bidirectional=True, backend="numba")
        with torch.set_grad_enabled(options.pop("training", False)):
            return layer.explain(torch.randn(time, 4, 8)).members

    assert said(100, 256) == 2
    assert said(100, 256, training=True) == said(100, 16) == said(4, 1024) == 1
    heads = make_arguments(Case(3, 20, 5, 12, heads=4))
    decision = tritongru.functional.explain_call(tritongru.tools.oracle.cases.as_arguments(heads), "numba")
    assert decision.members == 4
