"""Layer normalisation: the scans against the oracle and the two formulas written out, and the layers."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from norm_checks import assert_equals_oracle

import tritongru
from tritongru import GRU, GRUCell, LayerNorm, Stream, UnsupportedError, compat, faults, gru
from tritongru.call.check import check
from tritongru.call.problem import canonicalize
from tritongru.tools.oracle.cases import Case, as_arguments, differentiated, make_arguments

F64 = torch.float64
PRECISE = dict(rtol=1e-11, atol=1e-12)
KINDS = ("separate", "joint")
SCANS = ("numba", "eager") if find_spec("numba") else ("eager",)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout, go_backwards", list(itertools.product(("keras", "torch"), (False, True))))
def test_eager_equals_the_oracle(kind: str, layout: str, go_backwards: bool) -> None:
    flags = itertools.product((0, 1), (0, 1), (0, 1), (0, 1, 3), (False, True))
    for seed, (mask, lengths, resets, drops, recompute) in enumerate(flags):
        case = Case(
            3, 6, 4, 5, "float64", seed, layout=layout, go_backwards=go_backwards, recompute=recompute,
            mask=bool(mask), lengths=bool(lengths), resets=bool(resets), reset_state="rows" if resets else None,
            recurrent_dropouts=drops, input_dropouts=(0, 3, 1)[seed % 3], use_bias=seed % 5 > 0,
            time_major=seed % 4 == 3, layer_norm=kind, gates=seed % 7 == 4, zoneout=seed % 6 == 5,
            gradient_clip=0.5 if seed % 11 == 7 else None,
        )  # fmt: skip
        assert_equals_oracle("eager", case)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 6])
def test_chunks_of_steps_and_dtypes(monkeypatch, kind: str, rows: int) -> None:
    monkeypatch.setattr("tritongru.backends.eager.layout.CHUNK", 1)
    monkeypatch.setattr("tritongru.backends.eager.layout.CHUNK_ROWS", rows)
    case = Case(3, 7, 4, 5, "float64", layer_norm=kind, mask=True)
    for changes in ({}, {"mask": False, "lengths": True}, {"dtype": "float32"}, {"dtype": "bfloat16"},
                    {"time": 0}, {"batch": 0}):  # fmt: skip
        assert_equals_oracle("eager", replace(case, **changes))


def normalise(value, epsilon: float = 1e-5):
    """One row at a time, by the definition."""
    rows = []
    for row in value:
        mean = sum(row) / len(row)
        rows.append((row - mean) / ((row - mean).square().sum() / len(row) + epsilon).sqrt())
    return torch.stack(rows)


def haste_step(x, h, w, r, b, c, scale):
    """The cell of haste's LayerNormGRU."""
    vx, vh = normalise(x @ w) * scale[0] + b, normalise(h @ r) * scale[1] + c
    (x_z, x_r, x_g), (h_z, h_r, h_g) = vx.chunk(3, 1), vh.chunk(3, 1)
    z, reset = torch.sigmoid(x_z + h_z), torch.sigmoid(x_r + h_r)
    return z * h + (1 - z) * torch.tanh(x_g + reset * h_g)


def dreamer_step(x, h, kernel, scale, offset):
    """The cell of DreamerV2: one kernel for input and state, parts in the order reset, candidate, update."""
    parts = normalise(torch.cat((x, h), 1) @ kernel) * scale + offset
    reset, cand, update = parts.chunk(3, 1)
    cand = torch.tanh(torch.sigmoid(reset) * cand)
    update = torch.sigmoid(update - 1)
    return update * cand + (1 - update) * h


@pytest.mark.parametrize("backend", [*SCANS, "reference"])
def test_the_formula_of_haste(backend: str) -> None:
    arguments = make_arguments(Case(2, 5, 3, 4, "float64", layer_norm="separate"))
    outputs, state = gru(**arguments, backend=backend)
    h, scale = arguments["initial_state"], arguments["layer_norm"].scale
    weights = arguments["kernel"], arguments["recurrent_kernel"], *arguments["bias"], scale
    for t in range(5):
        h = haste_step(arguments["x"][:, t], h, *weights)
        torch.testing.assert_close(outputs[:, t], h, **PRECISE)
    torch.testing.assert_close(state, h, **PRECISE)


@pytest.mark.parametrize("backend", [*SCANS, "reference"])
def test_the_formula_of_dreamer(backend: str) -> None:
    """Its update gate is one minus ours, so that the scale and the shift of z change their sign."""
    U = 4
    kernel = torch.randn(3 + U, 3 * U, dtype=F64)
    scale, offset = torch.rand(3 * U, dtype=F64) + 0.5, torch.randn(3 * U, dtype=F64)
    reset, cand, update = kernel.chunk(3, 1)
    ours = torch.cat((update, reset, cand), 1)
    (s_r, s_c, s_u), (o_r, o_c, o_u) = scale.chunk(3), offset.chunk(3)
    norm = LayerNorm("joint", torch.cat((-s_u, s_r, s_c)))
    bias = torch.stack((torch.zeros(3 * U, dtype=F64), torch.cat((1 - o_u, o_r, o_c))))
    x, h = torch.randn(2, 5, 3, dtype=F64), torch.randn(2, U, dtype=F64)
    outputs, _ = gru(x, ours[:3], ours[3:], bias, h, layer_norm=norm, backend=backend)
    for t in range(5):
        h = dreamer_step(x[:, t], h, kernel, scale, offset)
        torch.testing.assert_close(outputs[:, t], h, **PRECISE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("drops", [0, 3])
@pytest.mark.parametrize("backend", SCANS)
def test_gradcheck(backend: str, kind: str, drops: int) -> None:
    case = Case(2, 3, 2, 2, "float64", layer_norm=kind, mask=True, recurrent_dropouts=drops, input_dropouts=drops)
    arguments = make_arguments(case)
    leaves = {name: value.clone().requires_grad_() for name, value in differentiated(arguments).items()}
    assert "scale" in leaves

    def function(*values):
        given = arguments | dict(zip(leaves, values, strict=True))
        return gru(**given | {"layer_norm": LayerNorm(kind, given.pop("scale"), 1e-3)}, backend=backend)

    assert torch.autograd.gradcheck(function, tuple(leaves.values()))
    assert torch.autograd.gradgradcheck(function, tuple(leaves.values()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_alone_has_scales_of_one(kind: str) -> None:
    arguments = make_arguments(Case(dtype="float64"))
    ones = torch.ones((2, 27) if kind == "separate" else 27, dtype=F64)
    torch.testing.assert_close(gru(**arguments, layer_norm=kind), gru(**arguments, layer_norm=LayerNorm(kind, ones)))


def test_torch_s_own_says_why_not() -> None:
    with pytest.raises(UnsupportedError, match="layer_norm='joint'"):
        gru(**make_arguments(Case(layer_norm="joint")), backend="aten")


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_that_the_kernels_fail_keeps_its_norm(monkeypatch, kind: str) -> None:
    pytest.importorskip("triton.experimental.gluon", reason="needs Triton 3.4")
    from tritongru.backends.triton import families

    def refuse(*arguments):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(families, "run_scan", refuse)
    for case in (Case(3, 5, 2, 4, mask=True, recurrent_dropouts=3), Case(3, 5, 2, 4, resets=True, layout="torch")):
        call = check(as_arguments(make_arguments(replace(case, layer_norm=kind))))
        (inputs, variant), results = canonicalize(call.arguments, call.signature.variant), []
        weights = torch.randn(5, 3, 4)
        for backend in ("auto", "eager"):
            leaves = [t.clone().requires_grad_() if t is not None and t.is_floating_point() else t for t in inputs]
            wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", tritongru.FallbackWarning)
                out, last, *_ = torch.ops.tritongru.scan(*leaves, *variant, "ieee", "gates", backend)
                loss = (out * weights).sum() + last.sum()
                results.append((out, last, *torch.autograd.grad(loss, wanted, materialize_grads=True)))
        faults.forget()
        torch.testing.assert_close(*results)


BAD = [
    ("batch", ValueError, "`layer_norm` must be one of 'separate', 'joint', got 'batch'"),
    (3, TypeError, "`layer_norm` must be None, a name or a tritongru.LayerNorm, got int"),
    (LayerNorm("separate", torch.ones(27)), ValueError, r"`layer_norm.scale` must have shape \(2, 27\) .*got \(27,\)"),
    (LayerNorm("joint", torch.ones(2, 27)), ValueError, r"`layer_norm.scale` must have shape \(27,\)"),
    (LayerNorm("joint", [1.0]), TypeError, "`layer_norm.scale` must be a torch.Tensor, got list"),
    (LayerNorm("joint", None, 0.0), ValueError, "`layer_norm.epsilon` must be a positive number, got 0.0"),
]


@pytest.mark.parametrize("value, error, text", BAD)
def test_bad_input_is_named(value, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        gru(**make_arguments(Case()), layer_norm=value)


def test_it_needs_the_reset_after_the_product() -> None:
    with pytest.raises(ValueError, match="`layer_norm`='joint' needs reset_after=True"):
        gru(**make_arguments(Case(reset_after=False)), layer_norm="joint")


@pytest.mark.parametrize("kind", KINDS)
def test_the_keras_layer_cell_and_stream(kind: str) -> None:
    layer = GRU(4, input_size=3, return_sequences=True, layer_norm=kind, dtype=F64)
    assert list(layer.state_dict()) == ["kernel", "recurrent_kernel", "bias", "layer_norm_scale"]
    assert torch.equal(layer.layer_norm_scale, torch.ones((2, 12) if kind == "separate" else 12, dtype=F64))
    with torch.no_grad():
        layer.layer_norm_scale.uniform_(0.5, 1.5)
        layer.bias.uniform_(-0.5, 0.5)
    x = torch.randn(2, 5, 3, dtype=F64)
    outputs = layer(x)
    norm = LayerNorm(kind, layer.layer_norm_scale)
    right, _ = gru(x, layer.kernel, layer.recurrent_kernel, layer.bias, layer_norm=norm, backend="reference")
    torch.testing.assert_close(outputs, right, **PRECISE)
    outputs.sum().backward()
    assert layer.layer_norm_scale.grad.abs().min() > 0

    stream = Stream(layer)
    torch.testing.assert_close(torch.stack([stream.step(x[:, t]) for t in range(5)], 1), right, **PRECISE)
    cell, state = GRUCell(4, input_size=3, layer_norm=kind, dtype=F64), torch.zeros(2, 4, dtype=F64)
    cell.load_state_dict(layer.state_dict())
    for t in range(5):
        _, state = cell(x[:, t], state)
    torch.testing.assert_close(state, right[:, -1], **PRECISE)

    again = GRU.from_config(layer.get_config())
    again.build(3)
    again.set_weights(layer.get_weights())
    torch.testing.assert_close(again(x), right, **PRECISE)
    lazy = GRU(4, layer_norm=kind, dtype=F64)
    lazy.load_state_dict(layer.state_dict())
    assert torch.equal(lazy.layer_norm_scale, layer.layer_norm_scale)
    both = tritongru.Bidirectional(layer)
    both(x)
    assert both.backward_layer.layer_norm_scale.shape == layer.layer_norm_scale.shape
    layer.reset_parameters()
    assert (layer.layer_norm_scale == 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_torch_layer(kind: str) -> None:
    layer = compat.GRU(3, 4, 2, bidirectional=True, batch_first=True, layer_norm=kind, dtype=F64)
    plain = compat.GRU(3, 4, 2, bidirectional=True, batch_first=True)
    assert set(layer.state_dict()) - set(plain.state_dict()) == {
        "layer_norm_scale_l0",
        "layer_norm_scale_l0_reverse",
        "layer_norm_scale_l1",
        "layer_norm_scale_l1_reverse",
    }
    assert f"layer_norm='{kind}'" in repr(layer)
    with torch.no_grad():
        layer.layer_norm_scale_l0.uniform_(0.5, 1.5)
    x = torch.randn(2, 5, 3, dtype=F64)
    single = compat.GRU(3, 4, batch_first=True, layer_norm=kind, dtype=F64)
    single.load_state_dict({name: value for name, value in layer.state_dict().items() if name.endswith("_l0")})
    right, _ = gru(
        x, single.weight_ih_l0, single.weight_hh_l0, (single.bias_ih_l0, single.bias_hh_l0), layout="torch",
        layer_norm=LayerNorm(kind, single.layer_norm_scale_l0), backend="reference",
    )  # fmt: skip
    torch.testing.assert_close(single(x)[0], right, **PRECISE)
    layer(x)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    layer.reset_parameters()
    assert (layer.layer_norm_scale_l0 == 1).all() and not (layer.weight_hh_l0 == 1).any()


@pytest.mark.parametrize(
    "make",
    [lambda **o: GRU(4, **o), lambda **o: GRUCell(4, **o), lambda **o: compat.GRU(3, 4, **o)],
    ids=["keras", "cell", "torch"],
)
def test_bad_names_are_refused_by_the_layers(make) -> None:
    with pytest.raises(ValueError, match="`layer_norm` must be one of .*, got 'batch'"):
        make(layer_norm="batch")


def test_the_keras_layer_needs_the_reset_after_the_product() -> None:
    with pytest.raises(ValueError, match="needs reset_after=True"):
        GRU(4, layer_norm="joint", reset_after=False)


@pytest.mark.parametrize("kind", KINDS)
def test_tracing_and_autocast(kind: str) -> None:
    given = make_arguments(Case(layer_norm=kind, lengths=True))
    traced = torch.compile(lambda x: gru(**{**given, "x": x}), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(traced(given["x"]), gru(**given, backend="eager"))
    with torch.autocast("cpu", torch.bfloat16):
        assert gru(**given)[0].dtype == torch.bfloat16
    T, B, U = 3, 2, 4

    def leaf(*shape):
        return torch.randn(*shape, dtype=F64).requires_grad_()

    arguments = (leaf(T, B, 3), leaf(3, 3 * U), None, leaf(U, 3 * U), None, leaf(B, U), *[None] * 5, leaf(3 * U),
                 "tanh", "sigmoid", True, False, False, False, None, kind, 1e-5, "ieee", "gates", "eager")  # fmt: skip
    torch.library.opcheck(torch.ops.tritongru.scan, arguments, test_utils=("test_schema", "test_faketensor"))


def test_files_that_cannot_hold_it_say_so(tmp_path) -> None:
    from tritongru.tools.weight_files import convert

    layer = GRU(4, input_size=3, layer_norm="joint")
    with pytest.raises(ValueError, match="layer_norm='joint'"):
        convert.save_keras(layer, tmp_path / "layer.h5")
    with pytest.raises(ValueError, match="layer_norm='joint'"):
        convert.to_torch(layer)
    with pytest.raises(ValueError, match="layer_norm='joint'"):
        convert.from_torch(compat.GRU(3, 4, layer_norm="joint"))
    assert not list(tmp_path.iterdir())
