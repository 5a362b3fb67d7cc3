"""`tritongru.scan`: the recurrence of gates that are given, against the oracle and against `gru` of a product."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_eager import assert_equals_oracle

import tritongru
from tritongru import UnsupportedError, gru, scan
from tritongru.tools.oracle.cases import Case, as_arguments, differentiated, make_arguments
from tritongru.tools.oracle.compare import compare

F64 = torch.float64
CASES = [
    Case(dtype="float64"),
    Case(dtype="float64", layout="torch", recompute=True, go_backwards=True),
    Case(dtype="float64", reset_after=False, mask=True, time_major=True),
    Case(dtype="float64", lengths=True, recurrent_dropouts=3, use_bias=False),
    Case(dtype="float64", layout="torch", reset_after=False, resets=True, reset_state="rows"),
    Case(dtype="bfloat16", mask=True, resets=True, reset_state="steps"),
    Case(2, 0, 3, 4, "float64"),
    Case(0, 3, 3, 4, "float64"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_eager_equals_the_oracle(case: Case) -> None:
    assert_equals_oracle(replace(case, gates=True))


@pytest.mark.parametrize("backend", ["eager", "reference"])
@pytest.mark.parametrize("layout", ["keras", "torch"])
@pytest.mark.parametrize("reset_after", [True, False])
def test_a_product_given_is_the_product_taken(layout: str, reset_after: bool, backend: str) -> None:
    case = Case(3, 5, 4, 6, "float64", layout=layout, reset_after=reset_after, mask=True)
    whole = make_arguments(case)
    x, kernel, bias = whole.pop("x"), whole.pop("kernel"), whole.pop("bias")
    expected = gru(x, kernel, bias=bias, **whole)
    if layout == "torch":
        gates, recurrent = x @ kernel.t() + bias[0], bias[1]
    else:
        first, recurrent = bias if reset_after else (bias, None)
        gates = x @ kernel + first
    for ours, theirs in zip(scan(gates, bias=recurrent, **whole, backend=backend), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


def test_gradients_and_their_gradients() -> None:
    arguments = make_arguments(Case(2, 3, 2, 2, "float64", mask=True, resets=True, reset_state="rows", gates=True))
    leaves = {name: value.clone().requires_grad_() for name, value in differentiated(arguments).items()}
    assert list(leaves) == ["gates", "recurrent_kernel", "bias", "initial_state", "reset_state"]

    def function(*values):
        return scan(**(arguments | dict(zip(leaves, values, strict=True))), backend="eager")

    assert torch.autograd.gradcheck(function, tuple(leaves.values()))
    assert torch.autograd.gradgradcheck(function, tuple(leaves.values()))


def test_every_backend_runs_it_or_says_why_not() -> None:
    rows = compare(2, 3, 4, dtype="float32", backends=["eager", "aten", "reference"], gates=True)
    assert {row.backend: row.verdict for row in rows} == {"eager": "ok", "aten": "not run", "reference": "ok"}
    assert "d gates" in {row.quantity for row in rows}
    with pytest.raises(UnsupportedError, match="gates given"):
        scan(**make_arguments(Case(gates=True)), backend="aten")


def test_nothing_is_as_large_as_a_kernel(monkeypatch) -> None:
    """No identity matrix stands in for the kernel that is not there, not in second derivatives either."""
    for name in ("eye", "eye_"):
        monkeypatch.setattr(torch, name, None, raising=False)
    arguments = make_arguments(Case(2, 3, 2, 2, "float64", gates=True))
    gates = arguments.pop("gates").requires_grad_()
    for backend in ("eager", "reference"):
        (first,) = torch.autograd.grad(scan(gates, **arguments, backend=backend)[0].sum(), gates, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), gates)
        assert second.shape == gates.shape


@pytest.mark.parametrize(
    "changes, error, text",
    [
        (dict(gates=[1.0]), TypeError, "`gates` must be a torch.Tensor, got list"),
        (dict(gates=torch.ones(3, 7, 26)), ValueError, r"`gates` must have a last axis of 3U = 27 .* got 26"),
        (dict(gates=torch.ones(3, 27)), ValueError, r"`gates` must have 3 axes \(B,T,3U\), got 2"),
        (dict(gates=torch.ones(3, 7, 27).long()), TypeError, "`gates` must be floating point"),
        (dict(bias=torch.ones(2, 27)), ValueError, r"`bias` must have shape \(27,\) for gates given, got \(2, 27\)"),
        (dict(bias=(torch.ones(27), torch.ones(27))), TypeError, "`bias` must be a torch.Tensor, got tuple"),
        (dict(recurrent_kernel=torch.ones(9, 27, dtype=F64)), ValueError, "`recurrent_kernel` must have the dtype"),
    ],
)
def test_bad_input_is_named(changes: dict, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        scan(**(make_arguments(Case(gates=True)) | changes))


def test_a_forgotten_kernel_is_named() -> None:
    with pytest.raises(TypeError, match="`kernel` must be a torch.Tensor, got NoneType"):
        gru(torch.ones(1, 2, 12), None, torch.ones(4, 12))


def test_embeddings_in_gate_space_train() -> None:
    """What it is for: a table of gates, whose unused rows get no gradient."""
    table = torch.nn.Embedding(7, 3 * 4)
    tokens = torch.tensor([[1, 2, 3], [3, 1, 0]])
    outputs, _ = tritongru.scan(table(tokens), torch.randn(4, 12), mask=tokens != 0)
    outputs.sum().backward()
    assert (table.weight.grad.abs().sum(1) > 0).tolist() == [False, True, True, True, False, False, False]


def test_autocast_and_tracing() -> None:
    arguments = make_arguments(Case(gates=True, mask=True))
    with torch.autocast("cpu", torch.bfloat16):
        assert scan(**arguments)[0].dtype == torch.bfloat16
    traced = torch.compile(lambda gates: scan(**{**arguments, "gates": gates}), backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(traced(arguments["gates"]), scan(**arguments, backend="eager"), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert as_arguments(arguments).kernel is None


@pytest.mark.parametrize("backend", ["numba", "eager", "aten"])
@pytest.mark.parametrize("features", [1, 3])
def test_the_imaginary_part_of_a_conjugate(backend: str, features: int) -> None:
    """It is a view of numbers whose signs are yet to be changed."""
    if backend == "numba":
        pytest.importorskip("numba")
    x = torch.randn(2, 70, features, dtype=torch.cfloat).conj().imag
    assert x.is_neg()
    kernel, recurrent = torch.randn(features, 12), torch.randn(4, 12)
    right = gru(x.resolve_neg(), kernel, recurrent, backend="reference")
    for _ in range(2):
        torch.testing.assert_close(gru(x, kernel, recurrent, backend=backend), right)
    layer = tritongru.compat.GRU(features, 4, batch_first=True, backend=backend)
    with torch.no_grad():
        for steps in (3, 70):
            for _ in range(2):
                torch.testing.assert_close(layer(x[:, :steps])[0], layer(x[:, :steps].resolve_neg())[0])
