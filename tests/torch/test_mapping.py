"""torch.func.vmap and one derivative, in any order, run on the fast backends; what comes out is the reference's."""

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


@pytest.mark.parametrize("backend", ["eager", "numba"])
def test_gradients_asked_for_many_at_once(backend) -> None:
    """autograd maps over the reverse scan."""
    if backend == "numba":
        pytest.importorskip("numba")
    layer = compat.GRU(2, 3, dtype=F64, backend=backend)
    x = torch.randn(4, 1, 2, dtype=F64)
    plain = torch.autograd.functional.jacobian(lambda x: layer(x)[0], x)
    many = torch.autograd.functional.jacobian(lambda x: layer(x)[0], x, vectorize=True)
    torch.testing.assert_close(many, plain, **PRECISE)


def test_second_derivatives_of_a_map() -> None:
    layer = compat.GRU(2, 3, dtype=F64)
    x = torch.randn(3, 4, 1, 2, dtype=F64, requires_grad=True)
    seconds = []
    for outputs in (vmap(lambda x: layer(x)[0])(x), torch.stack([layer(v, backend="reference")[0] for v in x])):
        (first,) = torch.autograd.grad(outputs.square().sum(), x, create_graph=True)
        seconds.append(torch.autograd.grad(first.square().sum(), x)[0])
    torch.testing.assert_close(*seconds, **PRECISE)


FAST = ["eager", "numba"]
# Compositions with one derivative. Of a loss of (parameters, x), members first in what is mapped.
COMPOSED = {
    "grad": lambda loss, p, x: torch.func.grad(loss)(_of(p, 0), x[0]),
    "grad of x": lambda loss, p, x: torch.func.grad(loss, argnums=1)(_of(p, 0), x[0]),
    "grad(vmap) over parameters": lambda loss, p, x: torch.func.grad(
        lambda p, x: vmap(loss, (0, None))(p, x).square().sum(), argnums=(0, 1)
    )(p, x[0]),
    "grad(vmap) over inputs": lambda loss, p, x: torch.func.grad(
        lambda p, x: vmap(loss, (None, 0))(p, x).square().sum(), argnums=(0, 1)
    )(_of(p, 0), x),
    "vmap(grad) over parameters": lambda loss, p, x: vmap(torch.func.grad(loss, (0, 1)), (0, None))(p, x[0]),
    "vmap(grad) over inputs": lambda loss, p, x: vmap(torch.func.grad(loss, (0, 1)), (None, 0))(_of(p, 0), x),
    "vmap(grad) over both": lambda loss, p, x: vmap(torch.func.grad(loss, (0, 1)))(p, x),
    "vmap(grad(vmap))": lambda loss, p, x: vmap(
        torch.func.grad(lambda p, x: vmap(loss, (None, 0))(p, x).sum()), (0, None)
    )(p, x),
    "vjp": lambda loss, p, x: torch.func.vjp(loss, _of(p, 0), x[0])[1](x.new_tensor(2.0)),
    "jacrev": lambda loss, p, x: torch.func.jacrev(lambda x: torch.stack((loss(_of(p, 0), x), x.sum())))(x[0]),
}  # fmt: skip


def _of(parameters: dict[str, Tensor], member: int) -> dict[str, Tensor]:
    return {name: value[member] for name, value in parameters.items()}


@pytest.mark.parametrize("options", [{}, dict(bidirectional=True), dict(num_layers=2), dict(lengths=True)], ids=str)
@pytest.mark.parametrize("name", COMPOSED)
def test_one_derivative_and_maps(name: str, options: dict) -> None:
    options = dict(options)
    lengths = torch.tensor([4, 2]) if options.pop("lengths", False) else None
    layers, stacked = stack_of_layers(3, **options)
    x, seen, results = torch.randn(3, 4, 2, 3, dtype=F64), [], []
    for backend in ("auto", "reference"):
        weights = torch.linspace(-1, 1, 4 * 2, dtype=F64).view(4, 2, 1)

        def loss(parameters, x, backend=backend, weights=weights):
            outputs, state = functional_call(layers[0], parameters, (x,), dict(backend=backend, lengths=lengths))
            seen.append(layers[0].last_decision.backend)
            return (weights * outputs).sum() + state.pow(3).sum()

        results.append(COMPOSED[name](loss, {key: value.detach() for key, value in stacked.items()}, x))
    assert seen[0] in FAST and seen[-1] == "reference"
    torch.testing.assert_close(*results, **PRECISE)


@pytest.mark.parametrize("case", [c for c in CASES if c.time and c.batch], ids=str)
def test_gradients_of_each_member(case: Case) -> None:
    """vmap(grad) of every tensor argument there is, against one call of autograd for each member."""
    arguments, function = make_arguments(case), scan if case.gates else gru
    leaves = {name: value for name, value in arguments.items() if isinstance(value, Tensor) and value.dtype == F64}
    members = {name: torch.stack((value, 0.5 * value, value.flip(0))) for name, value in leaves.items()}

    def loss(given, backend="eager"):
        return _loss(*function(**(arguments | given), backend=backend))

    found = vmap(torch.func.grad(loss))(members)
    for member in range(3):
        given = {name: value[member].detach().requires_grad_() for name, value in members.items()}
        right = torch.autograd.grad(loss(given, "reference"), list(given.values()))
        for (name, value), expected in zip(found.items(), right, strict=True):
            torch.testing.assert_close(
                value[member], expected, **PRECISE, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_a_derivative_of_torch_func_is_differentiated_by_autograd() -> None:
    """As in learning to learn: the inner derivative by torch.func, the outer one by backward()."""
    layer = compat.GRU(2, 3, dtype=F64)
    x = torch.randn(3, 4, 1, 2, dtype=F64)
    outer = []
    for backend in ("auto", "reference"):
        weight = layer.weight_hh_l0.detach().clone().requires_grad_()

        def loss(weight, x, backend=backend):
            return functional_call(layer, {"weight_hh_l0": weight}, (x,), dict(backend=backend))[0].square().sum()

        inner = vmap(torch.func.grad(loss), (None, 0))(weight, x)
        outer.append(torch.autograd.grad(inner.square().sum(), weight)[0])
    torch.testing.assert_close(*outer, **PRECISE)


def test_what_has_no_rule_runs_on_the_reference() -> None:
    layer, seen = compat.GRU(3, 5, dtype=F64), []
    x = torch.randn(4, 6, 2, 3, dtype=F64)

    def loss(x):
        seen.append(layer.explain(x))
        return layer(x)[0].square().sum()

    torch.func.jvp(loss, (x[0],), (x[1],))
    torch.func.hessian(loss)(x[0, :2])
    torch.func.grad(lambda x: torch.func.grad(loss)(x).sum())(x[0])
    torch.func.jacfwd(loss)(x[0])
    assert {decision.backend for decision in seen} == {"reference"}
    assert "forward-mode" in seen[0].rejected["eager"][0]


def test_aten_says_why_not() -> None:
    layer, seen = compat.GRU(3, 5), []
    vmap(lambda x: seen.append(layer.explain(x)) or layer(x))(torch.randn(3, 4, 2, 3))
    assert (
        seen[0].backend in ("eager", "numba")
        and "a torch.func transform (grad, vmap) is active" in seen[0].rejected["aten"]
    )
