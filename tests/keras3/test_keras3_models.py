"""Our layer wherever Keras puts a layer: wrappers, functional and subclassed models, copies, compilation, export."""

import copy
import pickle

import keras3_pairs
import numpy as np
import pytest
import torch
from keras3_pairs import TOKENS, B, I, T, U, assert_same, fit, gru_layers, make_pair, tagger

from tritongru import UnsupportedError
from tritongru.keras3 import GRU

keras = keras3_pairs.keras
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


def test_it_is_a_keras_layer():
    layer = GRU(U)
    assert isinstance(layer, keras.layers.GRU) and layer.name.startswith("gru") and type(layer).__name__ == "GRU"
    assert not layer.built and layer.get_config() == keras.layers.GRU(U, name=layer.name).get_config()


@pytest.mark.parametrize("merge_mode", ["concat", "sum", None])
@pytest.mark.parametrize("mask", ["none", "holes and an empty row"])
def test_both_directions(mask, merge_mode):
    pair = []
    for cls in (keras.layers.GRU, GRU):
        keras.utils.set_random_seed(2)
        wrapper = keras.layers.Bidirectional(cls(U, return_sequences=True, return_state=True), merge_mode=merge_mode)
        wrapper.build((B, T, I))
        pair.append(wrapper)
    theirs, ours = pair
    assert type(ours.forward_layer) is GRU and type(ours.backward_layer) is GRU
    ours.set_weights(theirs.get_weights())
    x, states = torch.randn(B, T, I), [torch.randn(B, U), torch.randn(B, U)]
    assert_same(*(layer(x, mask=keras3_pairs.mask_of(mask), initial_state=states) for layer in pair))


def test_wrappers_keep_the_backend():
    layer = keras.layers.Bidirectional(GRU(U, backend="reference"))
    again = keras.layers.Bidirectional.from_config(layer.get_config())
    for wrapper in (layer, again):
        assert [half.backend for half in (wrapper.forward_layer, wrapper.backward_layer)] == ["reference"] * 2


def test_time_distributed_and_functional_with_any_length():
    inputs = keras.Input((None, T, I))
    outputs = keras.layers.TimeDistributed(GRU(U))(inputs)
    assert outputs.shape == (None, None, U)
    model = keras.Model(inputs, outputs)
    x = torch.randn(2, 3, T, I)
    gru = gru_layers(model)[0]
    assert_same(model(x)[:, 1], gru(x[:, 1]))


def test_a_symbolic_call_inside_a_layer_of_ones_own():
    class Twice(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.gru = GRU(U, return_sequences=True)

        def build(self, shape):
            self.gru.build(shape)

        def call(self, x):
            return 2 * self.gru(x)

    inputs = keras.Input((None, I))
    model = keras.Model(inputs, Twice()(inputs))
    assert model.output_shape == (None, None, U)
    assert model.predict(np.ones((2, 7, I)), verbose=0).shape == (2, 7, U)


def test_masks_of_a_masking_layer_reach_it():
    inputs = keras.Input((T, I))
    masked = keras.layers.Masking(9.0)(inputs)
    ours, theirs = GRU(U), keras.layers.GRU(U)
    model, other = keras.Model(inputs, ours(masked)), keras.Model(inputs, theirs(masked))
    theirs.set_weights(ours.get_weights())
    x = np.random.default_rng(0).normal(size=(B, T, I))
    x[:, 3:] = 9.0
    assert_same(other.predict(x, verbose=0), model.predict(x, verbose=0))
    assert_same(model.predict(x, verbose=0), ours(torch.tensor(x[:, :3], dtype=torch.float32)).detach())


def test_copies_stay_ours():
    model = tagger(GRU, backend="eager")
    clone = keras.models.clone_model(model)
    assert [type(layer) for layer in gru_layers(clone)] == [GRU] * 3
    layer = gru_layers(model)[-1]
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), GRU.from_config(layer.get_config())):
        assert type(twin) is GRU and twin.backend == "eager"
    assert_same(layer.get_weights(), pickle.loads(pickle.dumps(layer)).get_weights())


@pytest.mark.slow
def test_jit_compile():
    """Without dropout, which compiled code draws in its own way; one layer, since each takes ten seconds to trace."""

    def model():
        keras.utils.set_random_seed(11)
        layers = keras.layers.Embedding(9, 4, mask_zero=True), GRU(3), keras.layers.Dense(1)
        return keras.Sequential([keras.layers.Input((6,), dtype="int32"), *layers])

    assert_same(*(fit(model(), epochs=2, jit_compile=compiled) for compiled in (True, False)))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("form", ["torch", "onnx"])
def test_export(form, masked, tmp_path):
    if form == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    inputs = keras.Input((T, I))
    hidden = keras.layers.Masking()(inputs) if masked else inputs
    model = keras.Model(inputs, GRU(U)(hidden))
    x = np.random.default_rng(0).normal(size=(1, T, I)).astype("float32")
    x[:, 4:] = 0
    expected, path = model.predict(x, verbose=0), str(tmp_path / ("m.pt2" if form == "torch" else "m.onnx"))
    model.export(path, format=form, verbose=False)
    if form == "torch":
        program = torch.export.load(path)
        assert "tritongru" not in str(program.graph)
        found = program.module()(torch.tensor(x)).detach().numpy()
    else:
        session = onnxruntime.InferenceSession(path)
        (found,) = session.run(None, {session.get_inputs()[0].name: x})
    assert_same(expected, found)


def test_the_computation_is_ours(monkeypatch):
    calls = []
    module = __import__("tritongru.keras3.layer", fromlist=["gru"])
    monkeypatch.setattr(module, "gru", lambda *a, real=module.gru, **k: calls.append(k["backend"]) or real(*a, **k))
    model = tagger(GRU)
    model.predict(TOKENS, verbose=0)
    assert calls == ["auto"] * 3
    layer = make_pair((B, 2, I))[1]
    layer(torch.randn(B, 2, I))
    assert len(calls) == 3, "two steps without a mask are Keras's own"
    layer.backend = "eager"
    layer(torch.randn(B, 2, I))
    assert calls[3:] == ["eager"]


def test_bad_arguments():
    with pytest.raises(ValueError, match="use_cudnn"):
        GRU(U, use_cudnn=True)
    with pytest.raises(TypeError, match="backend"):
        GRU(U, backend=None)
    with pytest.raises(ValueError, match="backend.*cuda9"):
        GRU(U, backend="cuda9")
    with pytest.raises(UnsupportedError, match="reset_after"):
        GRU(U, reset_after=False, backend="aten")(torch.randn(B, T, I))
    with pytest.raises(ValueError, match="Unrecognized keyword"):
        GRU(U, time_major=True)

    class Cell(keras.layers.GRUCell):
        pass

    layer = GRU(U)
    layer.cell = Cell(U)
    with pytest.raises(TypeError, match="Cell"):
        layer(torch.randn(B, T, I))
