"""The oracle judged by implementations that share nothing with it: onnxruntime's GRU operator, Keras's cell."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from tritongru import gru
from tritongru.tools.oracle.cases import Case, in_dtype, make_arguments, moved_arguments
from tritongru.tools.oracle.tolerance import check

CASES = [
    Case(3, 7, 5, 9, use_bias=bias, go_backwards=back, lengths=lengths, zero_output_for_mask=lengths, reset_after=after)
    for after in (True, False)
    for bias, back, lengths in ((True, False, False), (True, True, True), (False, True, False), (True, False, True))
]
ACTIVATIONS = [("tanh", "sigmoid"), ("relu", "hard_sigmoid"), ("softsign", "sigmoid"), ("linear", "tanh")]
BACKENDS = ("reference", "eager", "auto")


def run_onnxruntime(arguments: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Return outputs (B,T,U) at the time index of the input and the state (B,U), from a model of one GRU node."""
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    names = {"tanh": "Tanh", "sigmoid": "Sigmoid", "relu": "Relu", "softsign": "Softsign",
             "hard_sigmoid": "HardSigmoid", "linear": "Affine"}  # fmt: skip
    alphas, betas = {"hard_sigmoid": 0.2, "linear": 1.0}, {"hard_sigmoid": 0.5, "linear": 0.0}
    chosen = [arguments["recurrent_activation"], arguments["activation"]]
    x, units = arguments["x"], arguments["recurrent_kernel"].shape[0]
    B, T, _ = x.shape
    bias, both = arguments["bias"], torch.zeros(2, 3 * units)
    if bias is not None:
        both = bias if arguments["reset_after"] else torch.stack((bias, both[0]))
    lengths = arguments.get("lengths")
    feeds = {
        "X": x.transpose(0, 1),
        "W": arguments["kernel"].t()[None],
        "R": arguments["recurrent_kernel"].t()[None],
        "B": both.reshape(1, -1),
        "H": arguments["initial_state"][None],
        "L": torch.full((B,), T) if lengths is None else lengths,
    }
    helper, kinds = onnx.helper, onnx.TensorProto
    parameters = {
        "activation_alpha": [alphas[name] for name in chosen if name in alphas],
        "activation_beta": [betas[name] for name in chosen if name in betas],
    }
    node = helper.make_node(
        "GRU",
        ["X", "W", "R", "B", "L", "H"],
        ["Y", "Y_h"],
        hidden_size=units,
        direction="reverse" if arguments["go_backwards"] else "forward",
        linear_before_reset=int(arguments["reset_after"]),
        activations=[names[name] for name in chosen],
        # The helper cannot tell the type of an empty list.
        **{name: values for name, values in parameters.items() if values},
    )
    inputs = [
        helper.make_tensor_value_info(name, kinds.INT32 if name == "L" else kinds.FLOAT, list(value.shape))
        for name, value in feeds.items()
    ]
    outputs = [
        helper.make_tensor_value_info("Y", kinds.FLOAT, [T, 1, B, units]),
        helper.make_tensor_value_info("Y_h", kinds.FLOAT, [1, B, units]),
    ]
    graph = helper.make_graph([node], "gru", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given = {
        name: np.ascontiguousarray(value.numpy().astype(np.int32 if name == "L" else np.float32))
        for name, value in feeds.items()
    }
    y, last = session.run(None, given)
    return torch.from_numpy(y)[:, 0].transpose(0, 1), torch.from_numpy(last)[0]


def assert_agree(arguments: dict, outputs: torch.Tensor, state: torch.Tensor) -> None:
    """Assert that the other's float32 results and each backend's are within the tolerance of the same truth."""
    truth, oracle = (
        gru(**in_dtype(arguments, torch.float64), backend="reference"),
        gru(**arguments, backend="reference"),
    )
    if arguments["go_backwards"]:
        outputs = outputs.flip(1)
    moved = [gru(**given, backend="reference") for given in moved_arguments(arguments)]
    results = {"theirs": (outputs, state)} | {name: gru(**arguments, backend=name) for name in BACKENDS}
    for number, name in enumerate(("outputs", "state")):
        others = [result[number] for result in moved]
        for which, found in results.items():
            check(f"{which}: {name}", found[number], oracle[number], truth[number], moved=others)


@pytest.mark.bits
@pytest.mark.parametrize("case", CASES, ids=str)
def test_onnxruntime(case: Case) -> None:
    arguments = make_arguments(case)
    if case.lengths:
        # For a row without a step its state is zero and ours the initial state, as Keras's is.
        assert not run_onnxruntime(arguments)[1][0].any()
        arguments["lengths"] = arguments["lengths"].clamp(min=1)
    assert_agree(arguments, *run_onnxruntime(arguments))


@pytest.mark.bits
@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("activation, recurrent_activation", ACTIVATIONS)
def test_onnxruntime_activations(activation: str, recurrent_activation: str, reset_after: bool) -> None:
    case = Case(2, 5, 4, 6, activation=activation, recurrent_activation=recurrent_activation, reset_after=reset_after)
    arguments = make_arguments(case)
    assert_agree(arguments, *run_onnxruntime(arguments))


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "mask"])
def test_keras_cell(monkeypatch, reset_after: bool, masked: bool) -> None:
    """Keras 3's cell, step by step; a masked step keeps the state, which is Keras's rule for its layers."""
    monkeypatch.setenv("KERAS_BACKEND", os.environ.get("KERAS_BACKEND", "torch"))
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "torch":
        pytest.skip("Keras runs on another backend here")
    arguments = make_arguments(replace(Case(3, 6, 5, 9), reset_after=reset_after, mask=masked))
    cell = keras.layers.GRUCell(9, reset_after=reset_after)
    cell.build((3, 5))
    cell.set_weights([arguments[name].numpy() for name in ("kernel", "recurrent_kernel", "bias")])
    h, y, outputs = arguments["initial_state"], torch.zeros(3, 9), []
    with torch.no_grad():
        for t in range(6):
            new = cell(arguments["x"][:, t], [h])[0].cpu()
            keep = arguments["mask"][:, t, None] if masked else torch.ones(3, 1, dtype=torch.bool)
            h, y = torch.where(keep, new, h), torch.where(keep, new, y)
            outputs.append(y)
    assert_agree(arguments, torch.stack(outputs, dim=1), h)
