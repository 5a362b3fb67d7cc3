"""A Bidirectional in files: read as one layer, by its name or by those of its halves, and written again."""

import numpy as np
import pytest
import torch
from test_convert import (
    KERAS_SUFFIXES,
    STATE_SUFFIXES,
    assert_same_weights,
    make_arrays,
    make_layer,
    name_weights,
    write_legacy,
    write_v3,
)

from tritongru.keras import GRU, Bidirectional
from tritongru.tools.weight_files import convert

X = torch.randn(2, 4, 3)


def make_bidirectional(mode="concat", own=None, **options):
    arguments = {"return_sequences": True, "bias_initializer": "glorot_uniform", **options}
    layer = GRU(5, input_size=3, **arguments)
    backward = None if own is None else GRU(5, input_size=3, **arguments, **own, go_backwards=True, name="mine")
    return Bidirectional(layer, mode, backward, name="both").eval()


@pytest.mark.parametrize("suffix", [".h5", ".keras", ".safetensors"])
@pytest.mark.parametrize("mode", ["sum", None])
@pytest.mark.parametrize("own", [None, {"activation": "relu"}], ids=str)
def test_everything_survives(tmp_path, suffix, mode, own):
    both = make_bidirectional(mode, own, reset_after=False, kernel_regularizer="l1")
    path = tmp_path / f"m{suffix}"
    convert.save_layers(both, path)
    (again,) = convert.load_layers(path)
    assert again.get_config() == both.get_config()
    for expected, found in zip(both.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(expected, found)
    # The weights may lie otherwise in memory, and a vendor's product sum in another order.
    for expected, found in zip(both(X), again.eval()(X), strict=True):
        torch.testing.assert_close(expected, found)


@pytest.mark.parametrize("suffix", KERAS_SUFFIXES + STATE_SUFFIXES)
def test_stacks_in_every_format(tmp_path, suffix):
    stack = [make_bidirectional(), make_bidirectional()]
    stack[1] = Bidirectional(GRU(5, input_size=10, return_sequences=True))
    path = tmp_path / f"m{suffix}"
    convert.save_layers(stack, path)
    again = convert.load_layers(path)
    assert [type(layer) for layer in again] == [Bidirectional] * 2
    for layer, copy in zip(stack, again, strict=True):
        assert_same_weights(copy, layer.get_weights())


def test_a_mixed_stack(tmp_path):
    stack = [make_layer(3, name="a"), Bidirectional(GRU(2, input_size=5), name="b"), make_layer(4, name="c")]
    for suffix in KERAS_SUFFIXES:
        path = tmp_path / f"m{suffix}"
        convert.save_layers(stack, path)
        if suffix == ".weights.h5":
            with pytest.warns(UserWarning, match="does not tell the order"):
                assert sorted(layer.name for layer in convert.load_layers(path)) == ["a", "b", "c"]
        else:
            assert [layer.name for layer in convert.load_layers(path)] == ["a", "b", "c"]
        for layer in stack:
            assert_same_weights(convert.load_keras(path, layer.name), layer.get_weights())


def test_halves_of_a_legacy_file_without_a_config(tmp_path):
    forward, backward = make_arrays(), [-w for w in make_arrays()]
    weights = name_weights(forward, "both/forward_gru/gru_cell") | name_weights(backward, "both/backward_gru/gru_cell")
    path = write_legacy(tmp_path / "m.h5", {"both": weights})
    both = convert.load_keras(path)
    assert isinstance(both, Bidirectional) and both.name == "both" and both.merge_mode == "concat"
    assert_same_weights(both, [*forward, *backward])
    assert convert.load_keras(path, "backward_gru").go_backwards
    assert_same_weights(convert.load_keras(path, "both/forward_gru"), forward)


def test_two_layers_of_a_nested_model_are_not_a_pair(tmp_path):
    weights = name_weights(make_arrays(), "gru/gru_cell") | name_weights(make_arrays(), "gru_1/gru_cell_1")
    path = write_legacy(tmp_path / "m.h5", {"model": weights})
    assert [layer.name for layer in convert.load_layers(path)] == ["model/gru", "model/gru_1"]


def test_loading_into_a_layer(tmp_path):
    cells = {f"layers/bidirectional/{side}_layer": make_arrays() for side in ("forward", "backward")}
    path = write_v3(tmp_path / "m.weights.h5", cells)
    both = Bidirectional(GRU(5), "sum")
    assert convert.load_keras(path, both) is both
    assert_same_weights(both, make_arrays() * 2)
    with pytest.raises(ValueError, match="m.weights.h5: the layer 'bidirectional' is a Bidirectional, `layer` a GRU"):
        convert.load_keras(path, GRU(5))
    with pytest.raises(ValueError, match="units=5, `layer` 4"):
        convert.load_keras(path, Bidirectional(GRU(4)))
    path = write_v3(tmp_path / "one.weights.h5", {"layers/gru": make_arrays()})
    with pytest.raises(ValueError, match="is a GRU, `layer` a Bidirectional"):
        convert.load_keras(path, both)


def test_a_damaged_half_is_named(tmp_path):
    cells = {f"layers/bidirectional/{side}_layer": make_arrays() for side in ("forward", "backward")}
    cells["layers/bidirectional/backward_layer"][2] = np.zeros((3, 15), "float32")
    path = write_v3(tmp_path / "m.weights.h5", cells)
    with pytest.raises(ValueError, match="m.weights.h5: the layer 'bidirectional': .*`bias` has shape"):
        convert.load_keras(path)


@pytest.mark.parametrize(
    "change, message",
    [({"merge_mode": "twist"}, "merge_mode"), ({"layer": {"class_name": "GRU", "config": {"units": 7}}}, "units=7")],
    ids=str,
)
def test_configs_that_make_no_sense(tmp_path, change, message):
    weights = {}
    for side in ("forward", "backward"):
        weights |= name_weights(make_arrays(), f"both/{side}_gru/gru_cell")
    inner = {"class_name": "GRU", "config": {"name": "gru", "units": 5}}
    model = {
        "config": {"layers": [{"class_name": "Bidirectional", "config": {"name": "both", "layer": inner} | change}]}
    }
    path = write_legacy(tmp_path / "m.h5", {"both": weights}, model, "model_weights")
    with pytest.raises(ValueError, match=f"m.h5: .*{message}"):
        convert.load_keras(path)
