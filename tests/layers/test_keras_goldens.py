"""The recorded cases of TensorFlow 2.9.3 / Keras 2.9.0: outputs, states, gradients, losses, updates, errors."""

import json
import pathlib
import warnings

import numpy as np
import pytest
import torch

import tritongru
from tritongru.environment import is_interpreted
from tritongru.keras import GRU, Bidirectional

FOLDER = pathlib.Path(__file__).parents[1] / "goldens"
DATA = json.loads((FOLDER / "keras_gru.json").read_text())
ARRAYS = np.load(FOLDER / "keras_gru.npz")
CASES = {case["id"]: case for case in DATA["cases"]}
# The interpreter has a process of its own, where only the kernels are judged.
BACKENDS = ("triton",) if is_interpreted() else ("reference", "eager", "aten")
# The gradients of a case sum more terms than its outputs; both sides round in float32.
GRADIENT_FACTOR = 5


def array(name):
    return torch.from_numpy(np.array(ARRAYS[name]))


def leaf(name, dtype=None):
    value = array(name)
    return value.to(dtype or value.dtype).requires_grad_()


def test_every_case_is_here():
    assert len(DATA["cases"]) == 102 and len(DATA["errors"]) == 15


def build_layer(case, backend):
    layer = GRU(**case["ctor"], backend=backend)
    wrapper = case["wrapper"]
    if wrapper is not None:
        assert wrapper["class"] == "Bidirectional"
        layer = Bidirectional(layer, merge_mode=wrapper["merge_mode"])
    layer.eval()
    first = array(case["steps"][0]["inputs"])
    layer.build(first.shape[-1])
    layer.set_weights([ARRAYS[name] for name in case["weights"].values()])
    return layer


def named_parameters(layer):
    if isinstance(layer, Bidirectional):
        pairs = (("forward", layer.forward_layer), ("backward", layer.backward_layer))
        return {f"{side}_{name}": p for side, one in pairs for name, p in one.named_parameters()}
    return dict(layer.named_parameters())


def feed_masks(layer, step, monkeypatch):
    """Make the layer use the recorded masks, which are (B,I) or, of the scope per_timestep, (B,T,I)."""
    recorded = step.get("dropout_masks")
    if recorded is None:
        return
    for key, method in (("input", "get_dropout_mask_for_cell"), ("recurrent", "get_recurrent_dropout_mask_for_cell")):
        names = recorded.get(key) or []
        names = names if isinstance(names, list) else [names]
        masks = [array(name) for name in names]
        if key == "input" and layer.implementation != 1:
            masks = masks[:1]
        monkeypatch.setattr(layer, method, lambda inputs, training, count=1, masks=masks: masks or None)


def make_inputs(step):
    values = leaf(step["inputs"])
    if "row_lengths" not in step:
        return values, values
    lengths = array(step["row_lengths"]).to(torch.int64)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return values, torch.nested.nested_tensor_from_jagged(values, offsets)


def close(actual, expected, tol, what):
    actual = actual.detach()
    assert tuple(actual.shape) == tuple(expected.shape), what
    torch.testing.assert_close(
        actual.to(torch.float64), expected.to(torch.float64), rtol=tol, atol=tol, msg=lambda m: f"{what}: {m}"
    )


def reasons_against(case, layer, backend):
    """Why `backend` may not run the case, asked of a layer that is free to choose."""
    free = build_layer(case, "auto")
    step = next(s for s in case["steps"] if s["op"] == "call")
    _, x = make_inputs(step)
    mask = None if step["mask"] is None else array(step["mask"])
    decision = free.explain(x, mask, training=bool(step["training"]))
    reasons = decision.rejected.get(backend, ())
    # Not a reason against naming it: "auto" only likes another better.
    return () if any("is preferred" in reason or "is for testing" in reason for reason in reasons) else reasons


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", list(CASES))
def test_case(name, backend, monkeypatch):
    case = CASES[name]
    tol = case["tol"]
    reasons = reasons_against(case, None, backend)
    if reasons:
        step = case["steps"][0]
        with pytest.raises(tritongru.UnsupportedError) as caught:
            mask = None if step["mask"] is None else array(step["mask"])
            build_layer(case, backend)(make_inputs(step)[1], mask=mask, training=bool(step["training"]))
        assert caught.value.rejected[backend] == tuple(reasons)
        pytest.skip("; ".join(reasons))
    layer = build_layer(case, backend)
    for step in case["steps"]:
        if step["op"] == "reset_states":
            layer.reset_states(None if step["states"] is None else [ARRAYS[s] for s in step["states"]])
            continue
        run_step(case, layer, step, tol, backend, monkeypatch)


def run_step(case, layer, step, tol, backend, monkeypatch):
    feed_masks(layer, step, monkeypatch)
    values, x = make_inputs(step)
    states = None if step["initial_state"] is None else [leaf(s) for s in step["initial_state"]]
    mask = None if step["mask"] is None else array(step["mask"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        result = layer(x, mask=mask, training=bool(step["training"]), initial_state=states)
    assert layer.last_decision.backend == backend
    outputs = result if isinstance(result, tuple) else (result,)
    assert len(outputs) == len(step["outputs"])
    flat = []
    for i, output in enumerate(outputs):
        assert output.is_nested == step["ragged_out"][i]
        assert str(output.dtype) == "torch." + step["output_dtypes"][i]
        flat.append(output.values() if output.is_nested else output)
        close(flat[-1], array(step["outputs"][i]), tol, f"output {i}")
    for kept, expected in zip(layer.states, step.get("states_after", ()), strict=False):
        close(kept, array(expected), tol, "state")
    if "losses" in step:
        torch.testing.assert_close(
            torch.stack(layer.losses).detach().double(), torch.tensor(step["losses"]).double(), rtol=tol, atol=tol
        )
    if "grads" not in step:
        return
    loss = sum((output * array(w)).sum() for output, w in zip(flat, step["loss_weights"], strict=True))
    if step.get("loss_includes_reg"):
        loss = loss + layer.regularization_loss()
    torch.testing.assert_close(loss.item(), step["loss"], rtol=10 * tol, atol=10 * tol)
    layer.zero_grad()
    loss.backward()
    sources = {"inputs": values, **named_parameters(layer)}
    sources |= {f"initial_state_{i}": state for i, state in enumerate(states or ())}
    for key, expected in step["grads"].items():
        if expected is None:
            assert sources[key].grad is None or not sources[key].grad.any(), key
            continue
        gradient = sources[key].grad
        gradient = torch.zeros_like(sources[key]) if gradient is None else gradient
        close(gradient, array(expected), GRADIENT_FACTOR * tol, f"gradient of {key}")
    if "sgd" in step:
        optimizer = torch.optim.SGD(layer.parameters(), lr=step["sgd"]["lr"])
        layer.apply_constraints_after(optimizer)
        optimizer.step()
        for key, expected in step["sgd"]["weights_after"].items():
            close(sources[key], array(expected), GRADIENT_FACTOR * tol, f"{key} after the update")


@pytest.mark.parametrize("name", list(CASES))
def test_configuration(name):
    case = CASES[name]
    layer = GRU(**case["ctor"])
    config = layer.get_config()
    got = {key: config[key] for key in case["config"]}
    assert got == case["config"]
    assert set(config) - set(case["config"]) <= {"name", "zero_output_for_mask"}
    assert GRU.from_config(config).get_config() == config


@pytest.mark.parametrize("name", list(CASES))
def test_output_shape(name):
    case = CASES[name]
    layer = build_layer(case, "auto")
    step = case["steps"][0]
    if "row_lengths" in step:
        lengths = array(step["row_lengths"])
        shape = (len(lengths), int(lengths.max()), array(step["inputs"]).shape[-1])
    else:
        shape = array(step["inputs"]).shape

    def plain(value):
        return [plain(v) if isinstance(v, (tuple, list)) else v for v in value]

    assert plain(layer.compute_output_shape(shape)) == case["compute_output_shape"]


def _stateful():
    layer = GRU(2, stateful=True)
    layer(torch.zeros(2, 5, 3))
    return layer


def _built(**arguments):
    layer = GRU(2, **arguments)
    layer(torch.zeros(2, 5, 3), training=False)
    return layer


def _jagged():
    return torch.nested.nested_tensor([torch.zeros(1, 3), torch.zeros(2, 3)], layout=torch.jagged)


ERRORS = {
    "units_negative": (lambda: GRU(-1), "units.*-1"),
    "input_2d": (lambda: GRU(2)(torch.zeros(5, 3)), r"expected ndim=3, found ndim=2.*\(5, 3\)"),
    "unknown_activation": (lambda: GRU(2, activation="abcd"), "Unknown activation function.*abcd"),
    "unknown_kwarg": (lambda: GRU(2, foo=3), "foo.*3"),
    "unknown_regularizer": (lambda: GRU(2, kernel_regularizer="nope"), "Unknown regularizer.*nope"),
    "reset_not_stateful": (lambda: GRU(2).reset_states(), "Layer must be stateful"),
    "reset_wrong_count": (lambda: _stateful().reset_states([np.zeros((2, 2))] * 2), "expects 1 states.*received 2"),
    "stateful_batch_change": (
        lambda: _stateful()(torch.zeros(3, 5, 3)), r"expected shape=\(2, None, 3\), found shape=\(3, 5, 3\)"),
    "init_two_states_built": (
        lambda: _built()(torch.zeros(2, 5, 3), initial_state=[torch.ones(2, 2)] * 2), "passed 2 initial states"),
    "ragged_mask": (lambda: GRU(2)(_jagged(), mask=torch.tensor([[True]])), "mask.*cannot be applied to jagged"),
    "dropout_one_training": (lambda: GRU(2, dropout=1.0)(torch.zeros(2, 5, 3), training=True), r"\[0, 1\).*1\.0"),
    "bidir_bad_merge": (lambda: Bidirectional(GRU(2), merge_mode="x"), "Invalid merge mode.*'x'"),
    "bidir_odd_states": (
        lambda: Bidirectional(GRU(2))(torch.zeros(2, 5, 3), initial_state=[torch.ones(2, 2)]), "should be a list"),
    "set_weights_shape": (
        lambda: _built().set_weights([np.zeros((3, 6)), np.zeros((2, 6)), np.zeros(6)]), r"\(2, 6\).*\(6,\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", [error["id"] for error in DATA["errors"]])
def test_error(name):
    recorded = next(error for error in DATA["errors"] if error["id"] == name)
    if name == "stateful_float64":
        # Keras fails inside TensorFlow here; the layer works.
        layer = GRU(2, stateful=True, dtype="float64")
        layer(torch.zeros(2, 5, 3, dtype=torch.float64))
        assert layer.states[0].dtype == torch.float64
        return
    call, message = ERRORS[name]
    kind = {"ValueError": ValueError, "TypeError": TypeError, "AttributeError": AttributeError}[recorded["error"]]
    with pytest.raises(kind, match=message):
        call()


def test_masks_per_time_step_through_the_function():
    case = CASES["drop_ra1"]
    step = case["steps"][0]
    assert step["dropout_masks"]["scope"] == "per_timestep"
    weights = [array(name) for name in case["weights"].values()]
    (mask, *_), ctor = step["dropout_masks"]["input"], case["ctor"]
    h0, steps = step["initial_state"], step["mask"]
    outputs, state = tritongru.gru(
        array(step["inputs"]),
        *weights,
        None if h0 is None else array(h0[0]),
        mask=None if steps is None else array(steps),
        input_dropout=array(mask),
    )
    expected = [array(name) for name in step["outputs"]]
    close(outputs if ctor.get("return_sequences") else state, expected[0], case["tol"], "output")
