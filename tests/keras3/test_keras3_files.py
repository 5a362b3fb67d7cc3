"""Files of models with our layer and with Keras's: each reads the other's, and so does a Keras without this package."""

import json
import os
import re
import subprocess
import sys
import zipfile

import keras3_pairs
import numpy as np
import pytest
from keras3_pairs import TOKENS, assert_same, gru_layers, tagger

from tritongru.keras3 import GRU, accelerate

keras = keras3_pairs.keras
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

ALONE = """
import sys, keras, numpy as np
model = keras.models.load_model(sys.argv[1], compile=False)
assert "tritongru" not in sys.modules
grus = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.GRU)]
assert [type(layer) is keras.layers.GRU for layer in grus] == [True] * 3
np.save(sys.argv[2], model.predict(np.load(sys.argv[3]), verbose=0))
"""


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_keras_without_this_package_reads_our_model(suffix, tmp_path):
    if suffix == ".h5":
        pytest.importorskip("h5py")
    model, path = tagger(GRU, dropout=0.1), str(tmp_path / f"model{suffix}")
    model.save(path)
    np.save(tmp_path / "x.npy", TOKENS)
    done = subprocess.run(
        [sys.executable, "-c", ALONE, path, str(tmp_path / "y.npy"), str(tmp_path / "x.npy")],
        env=dict(os.environ, KERAS_BACKEND="torch"),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(np.load(tmp_path / "y.npy"), model.predict(TOKENS, verbose=0))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("cls", [keras.layers.GRU, GRU], ids=["theirs", "ours"])
def test_a_loaded_model_is_accelerated(cls, suffix, tmp_path):
    model, path = tagger(cls), str(tmp_path / f"model{suffix}")
    model.save(path)
    loaded = keras.models.load_model(path, compile=False)
    assert [type(layer) for layer in gru_layers(loaded)] == [keras.layers.GRU] * 3
    assert [outcome.switched for outcome in accelerate(loaded)] == [True] * 3
    assert_same(model.predict(TOKENS, verbose=0), loaded.predict(TOKENS, verbose=0))
    loaded.save(path)
    assert_same(model.get_weights(), keras.models.load_model(path, compile=False).get_weights())


def test_a_file_says_the_same_with_our_layer_and_with_keras(tmp_path):
    texts = []
    for cls in (keras.layers.GRU, GRU):
        keras.backend.clear_session()
        tagger(cls).save(tmp_path / "m.keras")
        with zipfile.ZipFile(tmp_path / "m.keras") as archive:
            texts.append(
                re.sub(r'"shared_object_id": \d+', '"shared_object_id": 0', archive.read("config.json").decode())
            )
    assert texts[0] == texts[1].replace('"registered_name": "GRU"', '"registered_name": null')
    assert json.loads(texts[1])["config"]["layers"][3]["class_name"] == "GRU"


def test_weights_are_exchanged_both_ways(tmp_path):
    theirs, ours = tagger(keras.layers.GRU), tagger(GRU)
    path = str(tmp_path / "w.weights.h5")
    for source, target in ((theirs, ours), (ours, theirs)):
        source.set_weights([w + 0.1 for w in source.get_weights()])
        source.save_weights(path)
        target.load_weights(path)
        assert_same(source.get_weights(), target.get_weights(), rtol=0, atol=0)


def test_a_named_backend_is_in_the_file_and_needs_our_class(tmp_path):
    path = str(tmp_path / "m.keras")
    model = tagger(GRU, backend="eager")
    model.save(path)
    with pytest.raises((TypeError, ValueError), match="backend"):
        keras.models.load_model(path)
    loaded = keras.models.load_model(path, custom_objects={"GRU": GRU})
    assert [layer.backend for layer in gru_layers(loaded)] == ["eager"] * 3
    assert_same(model.predict(TOKENS, verbose=0), loaded.predict(TOKENS, verbose=0))


def test_a_class_of_ones_own_with_that_name_is_let_alone(tmp_path):
    class GRU(keras.layers.GRU):
        pass

    model = keras.Sequential([keras.layers.Input((6, 3)), GRU(2)])
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras", custom_objects={"GRU": GRU})
    assert type(loaded.layers[0]) is GRU
