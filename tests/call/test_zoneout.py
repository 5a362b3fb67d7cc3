"""Zoneout: the eager scan's gradients against the oracle, the formula written out, and what the layers draw."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import replace

import pytest
import torch
from test_eager import assert_equals_oracle
from torch import Tensor

import tritongru
from tritongru import GRU, Bidirectional, Stream, UnsupportedError, compat, faults, gru, scan
from tritongru.call.check import check
from tritongru.call.problem import canonicalize
from tritongru.environment import reasons_against_numba
from tritongru.tools.oracle.cases import Case, as_arguments, differentiated, make_arguments, run_case

F64 = torch.float64
BACKENDS = [name for name in ("numba", "eager", "reference") if name != "numba" or not reasons_against_numba()]
PRECISE = dict(rtol=1e-11, atol=1e-12)
VARIANTS = list(itertools.product(("keras", "torch"), (False, True), (False, True)))


@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recompute"])
@pytest.mark.parametrize("layout, reset_after, go_backwards", VARIANTS)
def test_eager_equals_the_oracle(layout: str, reset_after: bool, go_backwards: bool, recompute: bool) -> None:
    for seed, (mask, lengths, resets, drops) in enumerate(itertools.product((0, 1), (0, 1), (0, 1), (0, 3))):
        case = Case(
            3, 6, 4, 5, "float64", seed, reset_after=reset_after, layout=layout, go_backwards=go_backwards,
            recompute=recompute, mask=bool(mask), lengths=bool(lengths), resets=bool(resets), recurrent_dropouts=drops,
            time_major=seed % 4 == 3, zoneout=True, gates=seed % 5 == 4,
            recurrent_activation=("sigmoid", "hard_sigmoid", "tanh")[seed % 3],
        )  # fmt: skip
        assert_equals_oracle(case)


@pytest.mark.parametrize("rows", [1, 6])
def test_chunks_of_steps(monkeypatch, rows: int) -> None:
    monkeypatch.setattr("tritongru.backends.eager.layout.CHUNK", 1)
    monkeypatch.setattr("tritongru.backends.eager.layout.CHUNK_ROWS", rows)
    case = Case(3, 7, 4, 5, "float64", zoneout=True, mask=True)
    for changes in ({}, {"mask": False, "lengths": True}, {"reset_after": False}, {"dtype": "bfloat16"}):
        assert_equals_oracle(replace(case, **changes))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_formula(backend: str) -> None:
    """A loop of its own: where the mask is 0 the unit is left out of the step altogether."""
    arguments = make_arguments(Case(2, 6, 3, 4, "float64", zoneout=True))
    keep, h = arguments["zoneout"], arguments["initial_state"]
    outputs, state = gru(**arguments, backend=backend)
    plain = {name: value for name, value in arguments.items() if name not in ("zoneout", "initial_state")}
    for t in range(6):
        _, new = gru(**(plain | {"x": arguments["x"][:, t : t + 1]}), initial_state=h, backend="reference")
        h = torch.where(keep[:, t], new, h)
        torch.testing.assert_close(outputs[:, t], h, **PRECISE)
    torch.testing.assert_close(state, h, **PRECISE)


@pytest.mark.parametrize("lengths", [None, (2, 4, 0)])
@pytest.mark.parametrize("reset_after", [True, False])
def test_gradcheck(reset_after: bool, lengths) -> None:
    """The mask too has a gradient, at values between 0 and 1 as well."""
    arguments = make_arguments(Case(3, 4, 2, 2, "float64", reset_after=reset_after))
    arguments["lengths"] = None if lengths is None else torch.tensor(lengths)
    arguments["zoneout"] = torch.rand(3, 4, 2, dtype=F64)
    leaves = {name: value.clone().requires_grad_() for name, value in differentiated(arguments).items()}
    leaves["zoneout"] = arguments["zoneout"].requires_grad_()

    def function(*values):
        return gru(**(arguments | dict(zip(leaves, values, strict=True))), backend="eager")

    assert torch.autograd.gradcheck(function, tuple(leaves.values()))
    assert torch.autograd.gradgradcheck(function, tuple(leaves.values()))


def test_all_ones_change_nothing_and_all_zeros_keep_the_state() -> None:
    arguments = make_arguments(Case(dtype="float64", lengths=True))
    plain = run_case(arguments, "eager")
    for name, value in run_case(arguments | {"zoneout": torch.ones(3, 7, 9, dtype=F64)}, "eager").items():
        torch.testing.assert_close(value, plain[name], **PRECISE)
    _, state = gru(**arguments, zoneout=torch.zeros((), dtype=torch.bool), backend="eager")
    torch.testing.assert_close(state, arguments["initial_state"], **PRECISE)


def test_torchs_gru_says_why_not() -> None:
    with pytest.raises(UnsupportedError, match="zoneout given"):
        gru(**make_arguments(Case(zoneout=True)), backend="aten")


@pytest.mark.parametrize("reset_after", [True, False])
def test_a_call_that_the_kernels_fail_keeps_its_zoneout(monkeypatch, reset_after: bool) -> None:
    pytest.importorskip("triton.experimental.gluon", reason="needs Triton 3.4")
    from tritongru.backends.triton import families

    def refuse(*arguments):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(families, "run_scan", refuse)
    case = Case(3, 5, 2, 4, "float32", mask=True, zoneout=True, gradient_clip=0.3, reset_after=reset_after)
    call = check(as_arguments(make_arguments(case)))
    (inputs, variant), results = canonicalize(call.arguments, call.signature.variant), []
    weights = torch.randn(5, 3, 4)
    for backend in ("auto", "eager"):
        leaf = inputs.u.clone().requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", tritongru.FallbackWarning)
            out, last, *_ = torch.ops.tritongru.scan(*inputs._replace(u=leaf), *variant, "ieee", "gates", backend)
            results.append((out, last, torch.autograd.grad((out * weights).sum() + last.sum(), leaf)[0]))
    faults.forget()
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    "value, error, text",
    [
        (torch.ones(3, 6, 9), ValueError, r"`zoneout` must be broadcastable to \(3, 7, 9\), got \(3, 6, 9\)"),
        (torch.ones(3, 7, 9).long(), TypeError, "`zoneout` must be floating point, got torch.int64"),
        (0.1, TypeError, "`zoneout` must be a torch.Tensor, got float"),
        (torch.ones(9, dtype=F64), ValueError, "`zoneout` must have the dtype of the input"),
    ],
)
def test_bad_input_is_named(value, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        gru(**make_arguments(Case()), zoneout=value)


@pytest.mark.parametrize(
    "rate, error",
    [(1.5, ValueError), (-0.1, ValueError), (float("nan"), ValueError), ("a", TypeError), (True, TypeError)],
)
def test_bad_rates_are_named(rate, error: type) -> None:
    for make in (lambda: GRU(4, zoneout=rate), lambda: compat.GRU(3, 4, zoneout=rate)):
        with pytest.raises(error, match=r"`zoneout` must be a number in \[0, 1\], got"):
            make()


def layers() -> list:
    options = dict(zoneout=0.3, dtype=F64)
    keras = GRU(4, input_size=3, return_sequences=True, **options)
    return [
        keras,
        GRU(4, input_size=3, return_sequences=True, time_major=True, **options),
        Bidirectional(GRU(4, input_size=3, return_sequences=True, **options)),
        compat.GRU(3, 4, 2, bidirectional=True, **options),
    ]


@pytest.mark.parametrize("index", range(4))
def test_layers_draw_a_mask_for_each_unit_and_step(monkeypatch, index: int) -> None:
    layer, drawn = layers()[index], []
    inner = torch.bernoulli
    monkeypatch.setattr(torch, "bernoulli", lambda p: drawn.append(inner(p)) or drawn[-1])
    x = torch.randn(40, 50, 3, dtype=F64)
    first = layer(x)
    assert all(mask.shape == (40, 50, 4) for mask in drawn) and len(drawn) == (1, 1, 2, 4)[index]
    for mask in drawn:
        assert abs(float(mask.mean()) - 0.7) < 0.02 and set(mask.unique().tolist()) == {0.0, 1.0}
        assert not torch.equal(mask[0], mask[1]) and not torch.equal(mask[:, 0], mask[:, 1])
    second = layer(x)
    assert not torch.equal(_output(first), _output(second)), "another mask for each call"
    count = len(drawn)
    layer.eval()
    assert torch.equal(_output(layer(x)), _output(layer(x))) and len(drawn) == count


def _output(result) -> Tensor:
    return result[0] if isinstance(result, tuple) else result


def test_evaluation_takes_the_mean() -> None:
    """z' = p + (1 - p) z, with gradients."""
    layer = GRU(4, input_size=3, return_sequences=True, zoneout=0.3, dtype=F64).eval()
    x = torch.randn(2, 5, 3, dtype=F64, requires_grad=True)
    h, expected = torch.zeros(2, 4, dtype=F64), []
    for t in range(5):
        new = gru(x[:, t : t + 1], layer.kernel, layer.recurrent_kernel, layer.bias, h, backend="reference")[1]
        h = 0.3 * h + 0.7 * new  # p + (1 - p) z of h, (1 - p) (1 - z) of n
        expected.append(h)
    outputs, right = layer(x), torch.stack(expected, dim=1)
    torch.testing.assert_close(outputs, right, **PRECISE)
    for ours, theirs in zip(
        *(torch.autograd.grad(v.square().sum(), (x, layer.recurrent_kernel, layer.kernel)) for v in (outputs, right)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, **PRECISE)


def test_both_passes_use_the_mask_that_was_drawn() -> None:
    """With the mask all zero no gradient reaches the weights, with it all one the plain one does."""
    layer = GRU(4, input_size=3, zoneout=1.0)
    layer(torch.randn(2, 5, 3)).sum().backward()
    assert all(not p.grad.any() for p in layer.parameters())
    assert layer.last_decision is not None and "zoneout given" in layer.last_decision.rejected["aten"]


def test_a_stream_is_the_layer_in_evaluation() -> None:
    layer = GRU(4, input_size=3, return_sequences=True, zoneout=0.4, dtype=F64).eval()
    x, stream = torch.randn(2, 5, 3, dtype=F64), Stream(layer)
    steps = torch.stack([stream.step(x[:, t]) for t in range(5)], dim=1)
    torch.testing.assert_close(steps, layer(x), **PRECISE)
    layer.train()
    assert not torch.equal(stream.step(x[:, 0]), stream.step(x[:, 0]))


def test_configurations_and_reprs() -> None:
    layer = GRU(4, zoneout=0.25, gradient_clip=2.0)
    again = GRU.from_config(layer.get_config())
    assert (again.zoneout, again.gradient_clip) == (0.25, 2.0)
    assert not {"zoneout", "gradient_clip"} & set(GRU(4).get_config())
    both = Bidirectional(layer)
    assert both.backward_layer.zoneout == 0.25
    # A bound of 0 lets no gradient through; it is not the same as none.
    assert Bidirectional(GRU(4, gradient_clip=0)).forward_layer.gradient_clip == 0
    assert "gradient_clip=0" in repr(compat.GRU(3, 4, gradient_clip=0))
    assert "zoneout=0.25" in repr(compat.GRU(3, 4, zoneout=0.25)) and "zoneout" not in repr(compat.GRU(3, 4))


def test_the_operator_and_tracing() -> None:
    T, B, U = 3, 2, 4

    def leaf(*shape):
        return torch.randn(*shape, dtype=F64).requires_grad_()

    tensors = leaf(T, B, 3), leaf(3, 3 * U), None, leaf(U, 3 * U), None, leaf(B, U), *[None] * 4, leaf(T, B, U), None
    variant = "tanh", "sigmoid", True, False, False, False, 0.5, None, 1e-5
    arguments = (*tensors, *variant, "ieee", "gates", "eager")
    torch.library.opcheck(torch.ops.tritongru.scan, arguments, test_utils=("test_schema", "test_faketensor"))
    given = make_arguments(Case(zoneout=True))
    traced = torch.compile(lambda x: gru(**{**given, "x": x}), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(traced(given["x"]), gru(**given, backend="eager"))
    layer = compat.GRU(3, 4, zoneout=0.3)
    torch.compile(layer, backend="aot_eager", fullgraph=True)(torch.randn(5, 2, 3))[0].sum().backward()


def test_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert gru(**make_arguments(Case(zoneout=True)))[0].dtype == torch.bfloat16
        assert tritongru.GRU(4, zoneout=0.5)(torch.randn(2, 3, 5)).dtype == torch.bfloat16


def test_scan_takes_it() -> None:
    arguments = make_arguments(Case(gates=True, zoneout=True, dtype="float64"))
    torch.testing.assert_close(scan(**arguments, backend="eager"), scan(**arguments, backend="reference"), **PRECISE)
