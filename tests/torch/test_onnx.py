"""ONNX: onnxruntime's GRU as a third opinion on the oracle, and exported layers and models against their originals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import tritongru
from tritongru import activations, compat
from tritongru.backends import onnx_gru
from tritongru.reference import gru_reference

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from tritongru.tools.onnx import exporter as export_tool  # noqa: E402
from tritongru.tools.onnx import scan_node as onnx_scan  # noqa: E402
from tritongru.tools.onnx import translate as onnx_translate  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*axis name.*will not be used.*:UserWarning"),
]
# float32: two libraries add in another order. 1e-5 is about 100 roundings of a state of size 1.
CLOSE = dict(rtol=1e-5, atol=1e-5)


def run(model, **inputs: Tensor) -> list[Tensor]:
    """Return the outputs of an ONNX model (bytes or path) for named inputs, from onnxruntime on a CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    values = {name: value.detach().numpy() for name, value in inputs.items()}
    return [torch.from_numpy(np.array(value)) for value in session.run(None, values)]


def kinds(path) -> list[str]:
    """Return the operators of a model's main graph."""
    return [node.op_type for node in onnx.load(path).graph.node]


# The GRU of onnxruntime, described with onnx alone: (directions,3U,I) weights with gates z, r, h.
def run_their_gru(x, w, u, bias, h0, lengths, direction, reset_after, named):
    floats = onnx.TensorProto.FLOAT
    arrays = {"W": w, "R": u} | ({} if bias is None else {"B": bias})
    attributes = {
        "hidden_size": u.shape[-1],
        "direction": direction,
        "linear_before_reset": int(reset_after),
        "activations": [name for name, _, _ in named],
        "activation_alpha": [value for _, alpha, _ in named for value in alpha],
        "activation_beta": [value for _, _, beta in named for value in beta],
    }
    attributes = {name: value for name, value in attributes.items() if value != []}
    names = ["x", "W", "R", "B" if bias is not None else "", "lengths" if lengths is not None else "", "h0"]
    node = onnx.helper.make_node("GRU", names, ["y", "h"], **attributes)
    inputs = [onnx.helper.make_tensor_value_info(name, floats, None) for name in ("x", "h0")]
    given = {"x": x, "h0": h0}
    if lengths is not None:
        inputs.append(onnx.helper.make_tensor_value_info("lengths", onnx.TensorProto.INT32, None))
        given["lengths"] = lengths.to(torch.int32)
    outputs = [onnx.helper.make_tensor_value_info(name, floats, None) for name in ("y", "h")]
    constants = [onnx.numpy_helper.from_array(value.numpy(), name) for name, value in arrays.items()]
    graph = onnx.helper.make_graph([node], "gru", inputs, outputs, constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    return run(model.SerializeToString(), **given)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("reset_after", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("lengths", [None, [4, 1, 6]], ids=["full", "lengths"])
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no-bias"])
def test_the_oracle_agrees_with_onnxruntime(direction, reset_after, lengths, with_bias):
    compare_with_onnxruntime(direction, reset_after, lengths, with_bias, "tanh", "sigmoid")


@pytest.mark.parametrize("reset_after", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("recurrent_activation", ["sigmoid", "hard_sigmoid"])
@pytest.mark.parametrize("activation", sorted(onnx_translate.ACTIVATIONS))
def test_the_oracle_agrees_with_onnxruntime_on_activations(activation, recurrent_activation, reset_after):
    compare_with_onnxruntime("forward", reset_after, None, True, activation, recurrent_activation)


def compare_with_onnxruntime(direction, reset_after, lengths, with_bias, activation, recurrent_activation):
    D, T, B, I, U = (2 if direction == "bidirectional" else 1), 6, 3, 4, 5
    x, h0 = torch.randn(T, B, I), torch.randn(D, B, U)
    w, u = 0.5 * torch.randn(D, 3 * U, I), 0.5 * torch.randn(D, 3 * U, U)
    bias = torch.randn(D, 6 * U) if with_bias else None
    lengths = None if lengths is None else torch.tensor(lengths)
    named = [onnx_translate.ACTIVATIONS[name] for name in (recurrent_activation, activation)] * D
    y, h = run_their_gru(x, w, u, bias, h0, lengths, direction, reset_after, named)
    for d in range(D):
        b = None
        if bias is not None:
            b = bias[d].view(2, 3 * U)
            b = b if reset_after else b.sum(0)
        backwards = direction == "reverse" or d == 1
        outputs, last = gru_reference(
            x, w[d].t(), u[d].t(), b, h0[d], activation=activation, recurrent_activation=recurrent_activation,
            reset_after=reset_after, lengths=lengths, go_backwards=backwards, zero_output_for_mask=True,
            time_major=True,
        )  # fmt: skip
        torch.testing.assert_close(outputs.flip(0) if backwards else outputs, y[:, d], **CLOSE)
        torch.testing.assert_close(last, h[d], **CLOSE)


def test_every_activation_of_the_scan_has_an_onnx_form():
    assert onnx_scan.ACTIVATIONS.keys() == {n for n, a in activations.TABLE.items() if a.derivative is not None}
    assert onnx_translate.ACTIVATIONS.keys() <= onnx_scan.ACTIVATIONS.keys()


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (dict(num_layers=2, bidirectional=True, batch_first=True, dropout=0.5), dict(lengths=True, initial_state=True)),
        (dict(bias=False), dict()),
    ],
    ids=["everything", "plain"],
)
def test_export_of_the_torch_layer(arguments, options, tmp_path):
    layer = compat.GRU(3, 5, **arguments).eval()
    path = tmp_path / "gru.onnx"
    export_tool.export(layer, path, **options)
    onnx.checker.check_model(str(path), full_check=True)
    graph = onnx.load(path).graph
    gru = [node for node in graph.node if node.op_type == "GRU"]
    depth = layer.num_layers * (1 + layer.bidirectional)
    assert len(gru) == depth and "Scan" not in kinds(path)
    attributes = [{a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} for node in gru]
    assert all(a["linear_before_reset"] == 1 for a in attributes)
    assert {a["direction"] for a in attributes} == {b"forward", b"reverse"} if layer.bidirectional else {b"forward"}
    # The weights are constants in the operator's order, and lengths and states reach it as such.
    constants = {tensor.name for tensor in graph.initializer}
    assert all({node.input[1], node.input[2]} <= constants for node in gru)
    assert all(bool(node.input[4]) == options.get("lengths", False) for node in gru)
    assert [i.name for i in graph.input] == ["x", *options] and [o.name for o in graph.output] == ["output", "h_n"]
    assert not any(node.metadata_props or node.doc_string for node in graph.node), "a path may be in them"
    for B, T in ((4, 7), (1, 1), (3, 12)):
        x = torch.randn((B, T, 3) if layer.batch_first else (T, B, 3))
        inputs, call = {"x": x}, {}
        if options:
            call = {"lengths": torch.randint(0, T + 1, (B,)), "hx": torch.randn(depth, B, 5)}
            call["lengths"][0] = 0
            inputs |= {"lengths": call["lengths"], "initial_state": call["hx"]}
        torch.testing.assert_close(run(path, **inputs), list(layer(x, **call)), **CLOSE)


@pytest.mark.parametrize("zero_output_for_mask", [False, True])
def test_export_of_the_keras_layer(zero_output_for_mask, tmp_path):
    layer = tritongru.GRU(
        5, "relu", "hard_sigmoid", reset_after=False, return_sequences=True, return_state=True, input_size=3,
        bias_initializer="glorot_uniform", zero_output_for_mask=zero_output_for_mask, time_major=zero_output_for_mask,
    )  # fmt: skip
    path = tmp_path / "gru.onnx"
    export_tool.export(layer, path, lengths=True, initial_state=True)
    assert kinds(path).count("GRU") == 1 and "Scan" not in kinds(path)
    x, lengths, state = torch.randn(4, 6, 3), torch.tensor([0, 6, 3, 1]), torch.randn(4, 5)
    mask = torch.arange(6) < lengths[:, None]
    x, mask = (x.transpose(0, 1), mask.t()) if layer.time_major else (x, mask)
    found = run(path, x=x, lengths=lengths, initial_state=state)
    torch.testing.assert_close(found, list(layer(x, mask=mask, initial_state=state)), **CLOSE)


def test_export_of_the_bidirectional_layer(tmp_path):
    layer = tritongru.Bidirectional(tritongru.GRU(5, input_size=3, return_sequences=True, return_state=True), "ave")
    path = tmp_path / "gru.onnx"
    export_tool.export(layer, path, lengths=True, initial_state=True, opset_version=20)
    assert onnx.load(path).opset_import[0].version == 20 and kinds(path).count("GRU") == 2
    x, lengths, states = torch.randn(4, 6, 3), torch.tensor([0, 6, 3, 1]), torch.randn(2, 4, 5)
    found = run(path, x=x, lengths=lengths, initial_state_forward=states[0], initial_state_backward=states[1])
    expected = layer(x, mask=torch.arange(6) < lengths[:, None], initial_state=list(states))
    torch.testing.assert_close(found, list(expected), **CLOSE)


class Variants(nn.Module):
    """Calls that the GRU operator cannot express, a layer that it can, and a mask it could not trust."""

    def __init__(self):
        super().__init__()
        I, U = 3, 5

        def weight(*shape):
            return nn.Parameter(0.5 * torch.randn(*shape))

        self.kernel, self.recurrent, self.bias = weight(I, 3 * U), weight(U, 3 * U), weight(2, 3 * U)
        self.rnn = compat.GRU(I, U, batch_first=True)

    def forward(self, x, mask, resets, lengths, fresh, drops):
        def gru(x=x, **options):
            weights = [w.to(x.dtype) for w in (self.kernel, self.recurrent, self.bias)]
            if options.get("layout") == "torch":
                weights = [weights[0].t(), weights[1].t(), tuple(weights[2])]
            elif not options.get("reset_after", True):
                weights[2] = weights[2][0]
            return tritongru.gru(x, *weights, **options)

        input_drops = [drops[i][:, None, :3] for i in range(3)]
        calls = {
            "holes": gru(mask=mask),
            "holes, zero, backwards": gru(mask=mask, zero_output_for_mask=True, go_backwards=True),
            "mask and lengths": gru(mask=mask, lengths=lengths, reset_after=False),
            "resets": gru(resets=resets),
            "resets, own states": gru(resets=resets, reset_state=fresh, mask=mask, go_backwards=True),
            "resets, rows": gru(resets=resets, reset_state=fresh[:, 0], reset_after=False),
            "recurrent dropout": gru(recurrent_dropout=drops[0]),
            "recurrent dropouts": gru(recurrent_dropout=list(drops), reset_after=False),
            "input dropouts": gru(input_dropout=input_drops, recurrent_dropout=list(drops), layout="torch"),
            "selu": gru(activation="selu"),
            "exponential": gru(0.1 * x, activation="elu", recurrent_activation="exponential"),
            "elu": gru(activation="elu", recurrent_activation="hard_sigmoid", initial_state=fresh[:, 0]),
            "float64": gru(x.double(), lengths=lengths),
            "float16": gru(x.half(), lengths=lengths),
            "float16, resets": gru(x.half(), resets=resets, reset_state=fresh.half()),
            "layer": self.rnn(x, lengths=lengths),
        }
        return [value for pair in calls.values() for value in pair]


def test_export_of_a_larger_model(tmp_path):
    model, path = Variants().eval(), tmp_path / "model.onnx"
    B, T = torch.export.Dim("B"), torch.export.Dim("T")

    def inputs(B, T):
        return {
            "x": torch.randn(B, T, 3),
            "mask": torch.rand(B, T) < 0.7,
            "resets": torch.rand(B, T) < 0.3,
            "lengths": torch.randint(0, T + 1, (B,)),
            "fresh": torch.randn(B, T, 5),
            "drops": (torch.rand(3, B, 5) < 0.5) * 2.0,
        }

    rows = {0: B, 1: T}
    torch.onnx.export(
        model, tuple(inputs(2, 3).values()), path, dynamo=True, verbose=False, input_names=list(inputs(2, 3)),
        custom_translation_table=export_tool.translation_table(),
        dynamic_shapes={"x": rows, "mask": rows, "resets": rows, "lengths": {0: B}, "fresh": rows, "drops": {1: B}},
    )  # fmt: skip
    onnx.checker.check_model(str(path))
    assert kinds(path).count("Scan") == 13 and kinds(path).count("GRU") == 3
    for B, T in ((4, 6), (1, 2)):
        given = inputs(B, T)
        for found, expected in zip(run(path, **given), model(*given.values()), strict=True):
            assert found.dtype == expected.dtype
            # A float16 output keeps 11 bits; torch multiplies in half precision, the file in float32.
            close = dict(rtol=1e-2, atol=1e-2) if expected.dtype == torch.float16 else CLOSE
            torch.testing.assert_close(found, expected, **close)


class Headed(nn.Module):
    """A model whose exporter knows nothing of this package."""

    def __init__(self, gru: nn.Module):
        super().__init__()
        self.gru, self.head = gru, nn.Linear(10, 2)

    def forward(self, x, hx):
        output, h_n = self.gru(x, hx)
        return self.head(output), h_n


class Packed(nn.Module):
    """The same with packed sequences."""

    def __init__(self, gru: nn.Module):
        super().__init__()
        self.gru = gru

    def forward(self, x, lengths):
        output, h_n = self.gru(pack_padded_sequence(x, lengths, batch_first=True))
        return pad_packed_sequence(output, batch_first=True)[0], h_n


def torch_pair(**arguments) -> tuple[nn.GRU, compat.GRU]:
    """Return a torch.nn.GRU and this package's with the same weights."""
    theirs, ours = nn.GRU(3, 5, **arguments), compat.GRU(3, 5, **arguments)
    ours.load_state_dict(theirs.state_dict())
    return theirs.eval(), ours.eval()


@pytest.mark.skipif(not onnx_gru.can_record(), reason="this torch cannot name an ONNX operator")
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_export_without_the_table(bias, tmp_path):
    theirs, ours = torch_pair(num_layers=2, bidirectional=True, bias=bias, batch_first=True)
    judge = Headed(theirs)
    model = Headed(ours)
    model.load_state_dict(judge.state_dict())
    B, T = torch.export.Dim("B"), torch.export.Dim("T")
    path = tmp_path / "model.onnx"
    example = (torch.randn(2, 6, 3), torch.randn(4, 2, 5))
    shapes = {"x": {0: B, 1: T}, "hx": {1: B}}
    torch.onnx.export(model, example, path, dynamo=True, verbose=False, dynamic_shapes=shapes)
    assert kinds(path).count("GRU") == 4 and "Scan" not in kinds(path)
    for b, t in ((3, 9), (1, 1)):
        inputs = dict(x=torch.randn(b, t, 3), hx=torch.randn(4, b, 5))
        torch.testing.assert_close(run(path, **inputs), list(judge(*inputs.values())), **CLOSE)


@pytest.mark.skipif(not onnx_gru.can_record(), reason="this torch cannot name an ONNX operator")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_export_of_the_keras_layer_without_the_table(dtype, tmp_path):
    layer = tritongru.GRU(
        5, input_size=3, return_sequences=True, bias_initializer="glorot_uniform", go_backwards=True, dtype=dtype
    )
    path = tmp_path / "model.onnx"
    axes = {0: torch.export.Dim("B"), 1: torch.export.Dim("T")}
    example = torch.randn(2, 6, 3, dtype=dtype)
    torch.onnx.export(
        layer.eval(), (example,), path, dynamo=True, verbose=False, input_names=["x"], dynamic_shapes=(axes,)
    )
    assert kinds(path).count("GRU") == 1 and "Scan" not in kinds(path)
    for B, T in ((2, 6), (3, 9)):
        x = torch.randn(B, T, 3, dtype=dtype)
        close = dict(rtol=1e-2, atol=1e-2) if dtype == torch.float16 else CLOSE
        torch.testing.assert_close(run(path, x=x), [layer(x)], **close)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("with_hx", [False, True], ids=["x", "x-hx"])
def test_export_of_the_torch_layer_as_the_root_through_torchscript(with_hx, tmp_path):
    theirs, ours = torch_pair(num_layers=2, bidirectional=True, batch_first=True)
    path = str(tmp_path / "model.onnx")
    example = (torch.randn(2, 6, 3), torch.randn(4, 2, 5))[: 1 + with_hx]
    torch.onnx.export(
        ours, example, path, dynamo=False, opset_version=11, input_names=["x", "hx"][: 1 + with_hx],
        dynamic_axes={"x": [0, 1], "hx": [1]},
    )  # fmt: skip
    assert onnx.load(path).opset_import[0].version == 11 and kinds(path).count("GRU") == 2
    for B, T in ((2, 6), (3, 9)):
        inputs = dict(x=torch.randn(B, T, 3), hx=torch.randn(4, B, 5))
        inputs = inputs if with_hx else {"x": inputs["x"]}
        torch.testing.assert_close(run(path, **inputs), list(theirs(*inputs.values())), **CLOSE)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_export_of_packed_sequences_through_torchscript(tmp_path):
    theirs, ours = torch_pair(num_layers=2, bidirectional=True, batch_first=True)
    path = str(tmp_path / "model.onnx")
    torch.onnx.export(
        Packed(ours), (torch.randn(4, 6, 3), torch.tensor([6, 4, 2, 1])), path, dynamo=False, opset_version=17,
        input_names=["x", "lengths"], dynamic_axes={"x": [0, 1], "lengths": [0]},
    )  # fmt: skip
    for lengths in ([6, 4, 2, 1], [5, 3]):
        inputs = dict(x=torch.randn(len(lengths), max(lengths), 3), lengths=torch.tensor(lengths))
        torch.testing.assert_close(run(path, **inputs), list(Packed(theirs)(*inputs.values())), **CLOSE)


@pytest.mark.parametrize("opset", [11, 17, True, "18"])
def test_an_opset_that_cannot_be_written_is_refused(opset, tmp_path):
    with pytest.raises(ValueError, match=f"`opset_version` must be an integer from 18 on, got {opset!r}"):
        export_tool.export(compat.GRU(3, 5), tmp_path / "gru.onnx", opset_version=opset)
    assert not list(tmp_path.iterdir())


def test_zoneout_in_evaluation_becomes_a_scan(tmp_path):
    layer = compat.GRU(3, 5, bidirectional=True, zoneout=0.3, gradient_clip=1.0).eval()
    path = tmp_path / "gru.onnx"
    export_tool.export(layer, path, lengths=True)
    assert kinds(path).count("Scan") == 2 and "GRU" not in kinds(path)
    x, lengths = torch.randn(6, 4, 3), torch.tensor([0, 6, 3, 1])
    torch.testing.assert_close(run(path, x=x, lengths=lengths), list(layer(x, lengths=lengths)), **CLOSE)


def test_what_cannot_be_exported_is_named(tmp_path):
    cases = [
        (nn.Linear(2, 2), TypeError, "Linear"),
        (nn.GRU(2, 2), TypeError, "got GRU"),
        (tritongru.GRU(3), ValueError, "input_size"),
        (tritongru.GRU(3, input_size=2, stateful=True), ValueError, "stateful=True"),
        (tritongru.GRU(3, input_size=2, dropout=0.5), ValueError, r"call `eval\(\)`"),
        (tritongru.GRU(3, "gelu", input_size=2), ValueError, "activation='gelu'"),
        (tritongru.GRU(3, input_size=2, zoneout=0.5), ValueError, r"call `eval\(\)`"),
        (compat.GRU(3, 2, recurrent_dropout=0.5), ValueError, r"call `layer.eval\(\)`"),
        (compat.GRU(3, 2, zoneout=0.5), ValueError, r"call `layer.eval\(\)`"),
        (tritongru.Bidirectional(tritongru.GRU(3)), ValueError, "no weights yet"),
    ]
    for layer, kind, message in cases:
        with pytest.raises(kind, match=message):
            export_tool.export(layer, tmp_path / "gru.onnx")
    assert not list(tmp_path.iterdir())
