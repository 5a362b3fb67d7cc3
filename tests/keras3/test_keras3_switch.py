"""`accelerate` and `restore`: which layers of a model they switch, which they leave, and why."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import keras3_pairs
import pytest
import torch
from keras3_pairs import TOKENS, B, I, T, U, assert_same, fit, gru_layers, tagger

from tritongru.keras3 import GRU, accelerate, environment, restore

keras = keras3_pairs.keras
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


def test_a_model_is_switched_in_place_and_back():
    model = tagger(keras.layers.GRU)
    expected, weights = model.predict(TOKENS, verbose=0), model.weights
    outcomes = accelerate(model)
    assert [o.path.split("/")[-1] for o in outcomes] == [o.layer.name for o in outcomes]
    assert [str(o).endswith(": switched") for o in outcomes] == [True] * 3
    assert [type(layer) for layer in gru_layers(model)] == [GRU] * 3
    assert all(a is b for a, b in zip(weights, model.weights, strict=True))
    assert_same(expected, model.predict(TOKENS, verbose=0))
    again = accelerate(model)
    assert not any(o.switched for o in again) and all("already" in o.reason for o in again)
    assert len(restore(model)) == 3 and restore(model) == []
    assert [type(layer) for layer in gru_layers(model)] == [keras.layers.GRU] * 3
    assert [layer.use_cudnn for layer in gru_layers(model)] == ["auto"] * 3
    assert_same(expected, model.predict(TOKENS, verbose=0))


def test_training_goes_on_across_a_switch():
    theirs, ours = tagger(keras.layers.GRU, dropout=0.2), tagger(keras.layers.GRU, dropout=0.2)
    assert_same(fit(theirs), fit(ours))
    losses = []
    for model in (theirs, ours):
        if model is ours:
            accelerate(model)
        keras.utils.set_random_seed(3)
        history = model.fit(TOKENS, keras3_pairs.TARGETS, epochs=2, batch_size=4, shuffle=False, verbose=0)
        losses.append(history.history["loss"])
    assert_same(*losses)


def test_restore_forgets_the_backend():
    model = keras.Sequential([keras.layers.Input((T, I)), GRU(U, backend="reference")])
    restore(model)
    layer = model.layers[0]
    assert type(layer) is keras.layers.GRU and not hasattr(layer, "backend")
    accelerate(model)
    assert layer.backend == "auto"


def test_nested_models_lists_and_one_layer():
    inner = keras.Sequential([keras.layers.Input((T, I)), keras.layers.GRU(U, return_sequences=True)])

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner, self.stack = inner, [keras.layers.GRU(U, return_sequences=True), keras.layers.GRU(U)]
            self.heads = {"a": keras.layers.TimeDistributed(inner)}

        def call(self, x):
            for layer in (self.inner, *self.stack):
                x = layer(x)
            return x

    model = Model()
    outcomes = accelerate(model)
    assert sorted(o.reason[:15] for o in outcomes if not o.switched) == ["it is not built"] * 2
    x = torch.randn(B, T, I)
    restore(model)
    expected = model(x)
    assert [o.switched for o in accelerate(model)] == [True] * 3
    assert_same(expected, model(x))
    layer = keras.layers.GRU(U)
    layer.build((B, T, I))
    assert accelerate(layer)[0].layer is layer and type(layer) is GRU


def test_what_is_left_and_why():
    class Cell(keras.layers.GRUCell):
        pass

    class Layer(keras.layers.GRU):
        pass

    cell = keras.layers.GRU(U, return_sequences=True)
    cell.cell = Cell(U)
    cudnn = keras.layers.GRU(U, return_sequences=True, use_cudnn=True)
    around = keras.layers.RNN(keras.layers.GRUCell(U), return_sequences=True)
    own, other = Layer(U, return_sequences=True), keras.layers.LSTM(I, return_sequences=True)
    layers = {cell: "the cell is a Cell", cudnn: "use_cudnn=True", around: "around a GRU cell", own: "class Layer"}
    model = keras.Sequential([*layers, other])
    for layer in (*layers, other):
        layer.build((B, T, I if layer is cell else U))
    outcomes = {o.layer: o for o in accelerate(model)}
    assert set(outcomes) == set(layers)
    for layer, reason in layers.items():
        assert not outcomes[layer].switched and reason in str(outcomes[layer])
        assert type(layer) is not GRU


def test_bad_models():
    with pytest.raises(ValueError, match="'plain' has no keras.layers.GRU"):
        accelerate(keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)], name="plain"))
    with pytest.raises(ValueError, match="not built"):
        accelerate(keras.Sequential())
    for function in (accelerate, restore):
        with pytest.raises(TypeError, match="`model`.*GRU"):
            function(torch.nn.GRU(3, 4))


def test_two_threads_switch_each_layer_once():
    model = tagger(keras.layers.GRU)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: accelerate(model), range(16)))
    assert sum(outcome.switched for outcomes in results for outcome in outcomes) == 3


@pytest.mark.parametrize("version", ["3.4.1", "2.15.0", "1.0"])
def test_an_old_keras_is_refused(version, monkeypatch):
    monkeypatch.setattr(keras, "__version__", version)
    with pytest.raises(ImportError, match=f"3.5 or later, and Keras {version}"):
        environment.check_keras()


def test_another_backend_is_refused(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(ImportError, match="KERAS_BACKEND is 'jax'.*KERAS_BACKEND=torch"):
        environment.check_keras()


def test_a_backend_that_is_not_installed_is_refused():
    done = subprocess.run(
        [sys.executable, "-c", "import tritongru.keras3"],
        env=dict(os.environ, KERAS_BACKEND="tensorflow"),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 1 and "KERAS_BACKEND" in done.stderr.splitlines()[-1]


def test_without_keras(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(ImportError, match=r"tritongru\[keras\]"):
        environment.check_keras()
