"""torch.func.vmap of layers and functions runs on the fast backends, with autograd's gradients."""

from __future__ import annotations

import pytest
import torch
from test_torch_home import functional_call, stack_module_state
from torch import Tensor
from torch.func import vmap

import tritongru
from tritongru import compat, gru, scan
from tritongru.tools.oracle.cases import Case, make_arguments

F64 = torch.float64
PRECISE = dict(rtol=1e-10, atol=1e-11)


def stack_of_layers(count: int, **options):
    layers = [compat.GRU(3, 5, dtype=F64, **options) for _ in range(count)]
    return layers, stack_module_state(layers)[0]


@pytest.mark.parametrize("lengths", [None, (4, 2)])
@pytest.mark.parametrize("shared_input", [True, False])
def test_an_ensemble_runs_on_eager_with_gradients(shared_input: bool, lengths) -> None:
    layers, stacked = stack_of_layers(4, num_layers=2, bidirectional=True)
    skeleton, chosen = layers[0], []
    lengths = None if lengths is None else torch.tensor(lengths)
    x = torch.randn(*(() if shared_input else (4,)), 6, 2, 3, dtype=F64, requires_grad=True)

    def call(parameters, x):
        result = functional_call(skeleton, (parameters,), (x,), dict(lengths=lengths))
        chosen.append(skeleton.last_decision.backend)
        return result

    found = vmap(call, in_dims=(0, None if shared_input else 0))(stacked, x)
    assert chosen in (["eager"], ["numba"])
    right = [layer(x if shared_input else x[i], lengths=lengths) for i, layer in enumerate(layers)]
    for ours, theirs in zip(found, map(torch.stack, zip(*right, strict=True)), strict=True):
        torch.testing.assert_close(ours, theirs, **PRECISE)
    gradients = torch.autograd.grad(_loss(*found), [x, *stacked.values()])
    expected = torch.autograd.grad(_loss(*map(torch.stack, zip(*right, strict=True))), [x, *_parameters(layers)])
    torch.testing.assert_close(gradients[0], expected[0], **PRECISE)
    width = len(stacked)
    for place, value in enumerate(gradients[1:]):
        torch.testing.assert_close(value, torch.stack(expected[1 + place :: width]), **PRECISE)


def _loss(output: Tensor, state: Tensor) -> Tensor:
    return output.square().sum() + state.pow(3).sum()


def _parameters(layers) -> list[Tensor]:
    return [parameter for layer in layers for parameter in layer.parameters()]


CASES = [
    Case(2, 4, 3, 5, "float64"),
    Case(2, 4, 3, 5, "float64", mask=True, resets=True, reset_state="rows", recompute=True),
    Case(2, 4, 3, 5, "float64", layout="torch", lengths=True, zoneout=True),
    Case(2, 4, 3, 5, "float64", resets=True, reset_state="steps", recurrent_dropouts=3, go_backwards=True),
    Case(2, 4, 3, 5, "float64", layer_norm="joint", reset_state="initial", resets=True),
    Case(2, 4, 3, 6, "float64", heads=2, time_major=True),
    Case(2, 4, 3, 5, "float64", gates=True, reset_after=False, gradient_clip=0.3),
    Case(0, 4, 3, 5, "float64"),
    Case(2, 0, 3, 5, "float64"),
]


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_over_inputs(case: Case, wanted: bool) -> None:
    """Members share their weights, and are rows of one scan; each argument that has rows may differ or not."""
    arguments, function = make_arguments(case), scan if case.gates else gru
    own = "gates" if case.gates else "x"
    for names in ([own], [own, "initial_state"], [own, "resets", "zoneout", "reset_state"], ["initial_state"]):
        names = [name for name in names if isinstance(arguments.get(name), Tensor)]
        members = {name: _three_of(arguments[name]) for name in names}
        leaves = [
            v.requires_grad_(wanted)
            for v in (*members.values(), arguments["recurrent_kernel"])
            if v.is_floating_point()
        ]

        def call(given):
            return function(**(arguments | given), backend="eager")

        found = vmap(call)(members)
        each = [call({name: value[i] for name, value in members.items()}) for i in range(3)]
        right = [torch.stack(values) for values in zip(*each, strict=True)]
        torch.testing.assert_close(list(found), right, **PRECISE)
        if wanted:
            pairs = [torch.autograd.grad(_loss(*v), leaves, allow_unused=True) for v in (found, right)]
            for ours, theirs in zip(*pairs, strict=True):
                torch.testing.assert_close(ours, theirs, **PRECISE)


def _three_of(value: Tensor) -> Tensor:
    if value.dtype == torch.bool:
        return torch.stack((value, ~value, value.flip(0)))
    return torch.stack((value, 0.5 * value, value.flip(0))).detach()


@pytest.mark.parametrize("in_dims", [0, 1, 2])
def test_any_axis_and_two_maps(in_dims: int) -> None:
    layer = compat.GRU(3, 5, dtype=F64)
    x = torch.randn(2, 4, 6, 2, 3, dtype=F64)
    right = torch.stack([torch.stack([layer(x[i, j])[0] for j in range(4)]) for i in range(2)])
    inner = vmap(lambda x: layer(x)[0], in_dims=in_dims)
    found = vmap(inner)(x.movedim(1, 1 + in_dims))
    torch.testing.assert_close(found, right, **PRECISE)
    assert layer.last_decision.backend in ("eager", "numba")


def test_members_that_share_weights_are_one_scan(monkeypatch) -> None:
    rows = []
    monkeypatch.setattr(tritongru.backends.numba, "reasons_against_numba", lambda: ("numba is not installed",))
    inner = tritongru.backends.eager.run_forward
    monkeypatch.setattr(
        tritongru.backends.eager, "run_forward", lambda a, *rest: rows.append(a.x.shape[1]) or inner(a, *rest)
    )
    layer = compat.GRU(3, 5)
    vmap(layer)(torch.randn(4, 6, 2, 3))
    assert rows == [8]
    layers, stacked = stack_of_layers(4)
    vmap(lambda p, x: functional_call(layers[0], (p,), (x,)), in_dims=(0, None))(stacked, torch.ones(6, 2, 3).double())
    assert rows == [8, 2, 2, 2, 2]


def test_gradients_asked_for_many_at_once() -> None:
    """autograd maps over the reverse scan."""
    layer = compat.GRU(2, 3, dtype=F64)
    x = torch.randn(4, 1, 2, dtype=F64)
    plain = torch.autograd.functional.jacobian(lambda x: layer(x, backend="eager")[0], x)
    many = torch.autograd.functional.jacobian(lambda x: layer(x, backend="eager")[0], x, vectorize=True)
    torch.testing.assert_close(many, plain, **PRECISE)


def test_second_derivatives_of_a_map() -> None:
    layer = compat.GRU(2, 3, dtype=F64)
    x = torch.randn(3, 4, 1, 2, dtype=F64, requires_grad=True)
    seconds = []
    for outputs in (vmap(lambda x: layer(x)[0])(x), torch.stack([layer(v, backend="reference")[0] for v in x])):
        (first,) = torch.autograd.grad(outputs.square().sum(), x, create_graph=True)
        seconds.append(torch.autograd.grad(first.square().sum(), x)[0])
    torch.testing.assert_close(*seconds, **PRECISE)


def test_other_transforms_run_on_the_reference() -> None:
    layer, seen = compat.GRU(3, 5, dtype=F64), []
    x = torch.randn(4, 6, 2, 3, dtype=F64)

    def loss(x):
        seen.append(layer.explain(x).backend)
        return layer(x)[0].square().sum()

    single = torch.stack([torch.func.grad(loss)(v) for v in x])
    torch.testing.assert_close(vmap(torch.func.grad(loss))(x), single, **PRECISE)
    torch.testing.assert_close(torch.func.grad(lambda x: vmap(loss)(x).sum())(x), single, **PRECISE)
    torch.func.jvp(loss, (x[0],), (x[1],))
    assert set(seen) == {"reference"}


def test_aten_says_why_not() -> None:
    layer, seen = compat.GRU(3, 5), []
    vmap(lambda x: seen.append(layer.explain(x)) or layer(x))(torch.randn(3, 4, 2, 3))
    assert seen[0].backend in ("eager", "numba") and "torch.func.vmap is active" in seen[0].rejected["aten"]
