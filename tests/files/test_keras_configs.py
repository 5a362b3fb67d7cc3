"""Which configuration belongs to which weights: places, names, classes and the order of a Keras model's layers."""

import argparse
import io
import json

import numpy as np
import pytest
import torch
from test_convert import h5py, make_arrays, name_weights, write_legacy, write_zip

from tritongru.keras import GRU, Bidirectional
from tritongru.tools.weight_files import convert
from tritongru.tools.weight_files.keras_config import DescribedModel, to_snake_case

U = 5


def layer_of(kind, name, **config):
    """A layer in a config of Keras 3."""
    return {"module": "keras.layers", "class_name": kind, "config": {"name": name, **config}, "registered_name": None}


def model_of(*layers, name="model"):
    return layer_of("Sequential", name, layers=list(layers))


def gru(name, **config):
    return layer_of("GRU", name, units=U, **config)


def rnn(name, cell, **config):
    return layer_of("RNN", name, cell=cell, **config)


def cell(kind="GRUCell", **config):
    return layer_of(kind, "cell", units=U, **config)


def custom(layer, name):
    return {**layer, "class_name": name, "module": None, "registered_name": f"mine>{name}"}


def write_unnamed(file, cells):
    """Write {place: arrays} as Keras 3.0 to 3.5 does, which names nothing."""
    with h5py.File(file, "w") as root:
        root.create_group("vars")
        for place, arrays in cells.items():
            root.create_group(f"{place}/vars")
            for number, array in enumerate(arrays):
                root.create_dataset(f"{place}/cell/vars/{number}", data=array)
    return file


def write_keras(path, model, cells):
    return write_zip(path, write_unnamed(io.BytesIO(), cells).getvalue(), model)


def write_h5(path, model, layers):
    weights = {layer: {k: v for cell in cells for k, v in cell.items()} for layer, cells in layers.items()}
    return write_legacy(path, weights, model, "model_weights", "3.15.1")


def read(path, *names):
    """Activations by the name of the layer, in the order of the file."""
    layers = convert.load_layers(path) if not names else [convert.load_keras(path, name) for name in names]
    return [(layer.name, layer._parts[0].get_config()["activation"]) for layer in layers]


# -- places -----------------------------------------------------------------------------------------------------------


def test_files_without_names_take_configs_by_place(tmp_path):
    """As Keras 3.3.3 writes them: the place is the class and its number, whatever the layers are called."""
    model = model_of(
        layer_of("InputLayer", "in"), gru("gru_1", activation="relu", return_sequences=True), layer_of("Dropout", "d"),
        gru("gru", activation="softsign", go_backwards=True),
    )  # fmt: skip
    path = write_keras(tmp_path / "m.keras", model, {"layers/gru": make_arrays(), "layers/gru_1": make_arrays(U)})
    assert read(path) == [("gru_1", "relu"), ("gru", "softsign")]
    first, second = convert.load_layers(path)
    assert first.return_sequences and second.go_backwards
    assert (first.input_size, second.input_size) == (3, U)
    assert convert.load_keras(path, "gru").input_size == U


def test_places_are_counted_as_keras_counts_them():
    inner = model_of(gru("a"), layer_of("Bidirectional", "b", layer=gru("c")))
    listed = {"layers": [gru("d"), gru("e"), [gru("f")]], "own": custom(gru("g"), "MyGRU")}
    model = model_of(
        inner, model_of(gru("h")), layer_of("TimeDistributed", "t", layer=gru("i")), layer_of("X", "x", **listed)
    )
    places = {layer.path: layer.place for layer in DescribedModel(model).layers if layer.may_hold_cell}
    assert places == {
        "model/a": "layers/sequential/layers/gru",
        "model/b/forward_c": "layers/sequential/layers/bidirectional/forward_layer",
        "model/b/backward_c": "layers/sequential/layers/bidirectional/backward_layer",
        "model/h": "layers/sequential_1/layers/gru",
        "t/i": "layers/time_distributed/layer",
        "x/d": "layers/x/layers/gru",
        "x/e": "layers/x/layers/gru_1",
        "x/f": "layers/x/layers/container/gru",
        "x/g": "layers/x/own",
    }
    assert [to_snake_case(name) for name in ("GRU", "MyGRU", "ConvLSTM2D", "mine>Gru2")] == [
        "gru", "my_gru", "conv_lstm2d", "gru2"
    ]  # fmt: skip


def test_a_configuration_nested_without_end_is_refused(tmp_path):
    deep = gru("g")
    for _ in range(40):
        deep = model_of(deep)
    for model in (deep, layer_of("Mine", "m", lists=json.loads("[" * 40 + "]" * 40))):
        with pytest.raises(ValueError, match=r"m\.keras: .* of the configuration is nested more than 32 deep"):
            convert.load_keras(write_keras(tmp_path / "m.keras", model, {"layers/gru": make_arrays()}))


def test_the_places_of_keras_2_15(tmp_path):
    """It lists a layer with weights twice, so that the second GRU has the number 2."""
    model = model_of(gru("first", activation="relu"), gru("second", activation="softsign"))
    cells = {"_layer_checkpoint_dependencies/gru": make_arrays(), "_layer_checkpoint_dependencies/gru_2": make_arrays()}
    assert read(write_keras(tmp_path / "m.keras", model, cells)) == [("first", "relu"), ("second", "softsign")]


def test_weights_without_a_config_fill_a_layer_and_make_none(tmp_path):
    path = write_keras(tmp_path / "m.keras", model_of(), {"encoder": make_arrays()})
    for load in (convert.load_keras, convert.load_layers):
        with pytest.raises(
            ValueError, match=r"m\.keras: the layer 'encoder': .*config.*`load_keras\(path, layer\)` fills"
        ):
            load(path)
    assert convert.load_keras(path, GRU(U, activation="relu")).built
    path = write_h5(tmp_path / "m.h5", model_of(), {"encoder": [name_weights(make_arrays())]})
    with pytest.raises(ValueError, match=r"m\.h5: the layer 'encoder': .*config"):
        convert.load_keras(path)


def test_a_name_decides_where_a_place_is_another_layers(tmp_path):
    """A model of a user's own may keep its layers under other attributes than its config does."""
    model = custom(layer_of("Functional", "m", one=gru("b", activation="relu"), two=gru("a", activation="elu")), "Mine")
    with h5py.File(write_unnamed(io.BytesIO(), {"one": make_arrays()}), "a") as root:
        root["one/vars"].attrs["name"] = "a"
        root.flush()
        data = root.id.get_file_image()
    assert read(write_zip(tmp_path / "m.keras", data, model)) == [("a", "elu")]


# -- classes ----------------------------------------------------------------------------------------------------------

RNN = rnn("r", cell(activation="relu"), return_sequences=True)
BOTH = layer_of("Bidirectional", "both", layer=rnn("forward_r", cell(activation="relu")), merge_mode="sum")


@pytest.mark.parametrize("kind", ["keras", "h5"])
def test_an_rnn_around_a_gru_cell_is_a_gru(tmp_path, kind):
    path = tmp_path / f"m.{kind}"
    if kind == "keras":
        write_keras(path, model_of(RNN), {"layers/rnn": make_arrays()})
    else:
        write_h5(path, model_of(RNN), {"r": [name_weights(make_arrays(), "sequential/r/gru_cell")]})
    layer = convert.load_keras(path)
    assert (layer.name, layer.get_config()["activation"], layer.return_sequences) == ("r", "relu", True)


@pytest.mark.parametrize("kind", ["keras", "h5"])
def test_both_directions_of_an_rnn_around_a_gru_cell(tmp_path, kind):
    path = tmp_path / f"m.{kind}"
    if kind == "keras":
        places = [f"layers/bidirectional/{side}_layer" for side in ("forward", "backward")]
        write_keras(path, model_of(BOTH), dict.fromkeys(places, make_arrays()))
    else:
        cells = [name_weights(make_arrays(), f"s/both/{side}_r/gru_cell_1") for side in ("forward", "backward")]
        write_h5(path, model_of(BOTH), {"both": cells})
    layer = convert.load_keras(path, "both")
    assert isinstance(layer, Bidirectional) and layer.merge_mode == "sum"
    assert [half.get_config()["activation"] for half in layer._parts] == ["relu", "relu"]


OTHERS = {
    "subclass": (custom(gru("s"), "MyGRU"), "its class is (mine>)?MyGRU", "my_gru"),
    "same name": (custom(gru("s"), "GRU"), "its class is (mine>)?GRU, which is not a layer of Keras", "gru"),
    "cell": (rnn("s", cell("TheirCell")), "RNN around TheirCell", "rnn"),
    "subclassed cell": (rnn("s", custom(cell(), "GRUCell")), "RNN around GRUCell", "rnn"),
    "dtypes": (
        rnn("s", cell(dtype="float64"), dtype="float32"),
        "dtype='float64' in an RNN with dtype='float32'",
        "rnn",
    ),
}


@pytest.mark.parametrize("kind", ["keras", "h5"])
@pytest.mark.parametrize("other", OTHERS)
def test_other_classes_of_equal_shapes_are_refused(tmp_path, kind, other):
    layer, message, place = OTHERS[other]
    path = tmp_path / f"m.{kind}"
    if kind == "keras":
        write_keras(path, model_of(layer), {f"layers/{place}": make_arrays()})
    else:
        write_h5(path, model_of(layer), {"s": [name_weights(make_arrays(), "sequential/s/their_cell")]})
    with pytest.raises(ValueError, match=rf"m\.{kind}: the layer 's': .*{message}.*`load_keras\(path, layer\)` fills"):
        convert.load_keras(path)
    assert convert.load_keras(path, GRU(U, name="s")).built


@pytest.mark.parametrize("kind", ["keras", "h5", "weights.h5"])
def test_stacked_cells_beside_a_gru_are_passed_over(tmp_path, kind):
    path = tmp_path / f"m.{kind}"
    stacked = rnn("st", layer_of("StackedRNNCells", "cells", cells=[cell(), cell()]))
    model = model_of(stacked, gru("g", activation="relu"))
    if kind == "h5":
        cells = [name_weights(make_arrays(), f"s/st/stacked_rnn_cells/gru_cell_{n}") for n in (2, 3)]
        write_h5(path, model, {"st": cells, "g": [name_weights(make_arrays(), "s/g/gru_cell")]})
    else:
        cells = io.BytesIO()
        with h5py.File(write_unnamed(cells, {"layers/gru": make_arrays()}), "a") as root:
            root.create_group("layers/rnn/cell/vars")
            for number, array in enumerate(make_arrays()):
                root[f"layers/rnn/cell/cells/gru_cell/vars/{number}"] = array
        path.write_bytes(cells.getvalue()) if kind == "weights.h5" else write_zip(path, cells.getvalue(), model)
    (layer,) = convert.load_layers(path)
    if kind != "weights.h5":
        assert read(path) == [("g", "relu")]
        assert convert.load_keras(path).name == "g"


def test_other_layers_with_a_cell_are_passed_over(tmp_path):
    model = model_of(layer_of("ConvLSTM2D", "c"), gru("g", activation="relu"))
    other = [np.zeros((2, 2, 2, 12), "float32"), np.zeros((2, 2, 3, 12), "float32"), np.zeros(12, "float32")]
    path = write_keras(tmp_path / "m.keras", model, {"layers/conv_lstm2d": other, "layers/gru": make_arrays()})
    assert read(path) == [("g", "relu")]
    with pytest.raises(ValueError, match=r"'g', 'c' \(ConvLSTM2D\)"):
        convert.load_keras(path, "nope")


# -- names and order --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["keras", "h5", "2.9.h5"])
def test_equal_names_in_nested_models(tmp_path, kind):
    a, b = model_of(gru("gru", activation="relu"), name="a"), model_of(gru("gru", activation="softsign"), name="b")
    path = tmp_path / f"m.{kind}"
    if kind == "keras":
        cells = {"layers/sequential/layers/gru": make_arrays(), "layers/sequential_1/layers/gru": make_arrays(U)}
        write_keras(path, model_of(a, b), cells)
    else:
        scopes = ("a/gru", "b/gru") if kind == "h5" else ("gru", "gru")
        cells = [name_weights(make_arrays(n), f"{scope}/gru_cell") for n, scope in zip((3, U), scopes, strict=True)]
        write_h5(path, model_of(a, b), {"a": cells[:1], "b": cells[1:]})
    assert read(path) == [("gru", "relu"), ("gru", "softsign")]
    assert read(path, "b/gru", "a/gru") == [("gru", "softsign"), ("gru", "relu")]
    assert convert.load_keras(path, "b/gru").input_size == U
    with pytest.raises(ValueError, match=r"`layer='gru'` is ambiguous; name it by its path: 'a/gru', 'b/gru'"):
        convert.load_keras(path, "gru")
    with pytest.raises(ValueError, match=r"it has: 'a/gru', 'b/gru'"):
        convert.load_keras(path, "nope")


def make_order(tmp_path):
    """A GRU, a Bidirectional and a GRU, the second before the others by the names of its places."""
    model = model_of(
        gru("first", return_sequences=True),
        layer_of("Bidirectional", "mid", layer=gru("gru", activation="relu", return_sequences=True)),
        gru("last", activation="softsign"),
    )
    cells = {f"layers/bidirectional/{side}_layer": make_arrays(U) for side in ("forward", "backward")}
    cells |= {"layers/gru": make_arrays(), "layers/gru_1": make_arrays(2 * U)}
    write_keras(tmp_path / "m.keras", model, cells)
    write_unnamed(tmp_path / "m.weights.h5", cells)


def test_layers_are_in_the_order_of_the_model(tmp_path):
    make_order(tmp_path)
    assert read(tmp_path / "m.keras") == [("first", "tanh"), ("mid", "relu"), ("last", "softsign")]


def test_an_order_that_is_not_known_is_told_and_not_written(tmp_path, capsys):
    make_order(tmp_path)
    source = tmp_path / "m.weights.h5"
    with pytest.warns(UserWarning, match=r"m\.weights\.h5: .*order of its layers 'bidirectional', 'gru', 'gru_1'"):
        convert.load_layers(source)
    parser = argparse.ArgumentParser()
    convert.add_arguments(parser)
    target = tmp_path / "m.h5"
    assert convert.main(parser.parse_args([str(source), str(target)])) == 1
    assert "does not tell the order" in capsys.readouterr().err and not target.exists()
    assert convert.main(parser.parse_args([str(source), str(target), "--layer", "gru_1"])) == 0
    assert json.loads(h5py.File(target).attrs["model_config"])["config"]["layers"][1]["config"]["name"] == "gru_1"


# -- values of Keras 3 ------------------------------------------------------------------------------------------------

ORTHOGONAL = {
    "module": "keras.initializers",
    "class_name": "OrthogonalInitializer",
    "config": {"seed": None, "gain": 2.0},
}
SEEDED = {"class_name": "SeedGenerator", "config": {"seed": 42, "name": "seed_generator"}, "module": "keras.random"}


def test_initializers_of_keras_3(tmp_path):
    seeded = {"class_name": "GlorotUniform", "config": {"seed": SEEDED, "input_axes": None}}
    model = model_of(gru("g", recurrent_initializer=ORTHOGONAL, kernel_initializer=seeded))
    config = convert.load_keras(write_keras(tmp_path / "m.keras", model, {"layers/gru": make_arrays()})).get_config()
    assert config["recurrent_initializer"] == {"class_name": "Orthogonal", "config": {"seed": None, "gain": 2.0}}
    assert config["kernel_initializer"] == {"class_name": "GlorotUniform", "config": {"seed": 42}}


@pytest.mark.parametrize(
    "activation",
    ["hard_tanh", {"module": "keras.layers", "class_name": "LeakyReLU", "config": {"negative_slope": 0.3}}],
)
def test_an_activation_that_is_not_known_fills_a_layer_of_the_users(tmp_path, activation):
    path = write_keras(tmp_path / "m.keras", model_of(gru("g", activation=activation)), {"layers/gru": make_arrays()})
    with pytest.raises(ValueError, match=r"the layer 'g': .*(hard_tanh|LeakyReLU).*`load_keras\(path, layer\)` fills"):
        convert.load_keras(path)
    assert convert.load_keras(path, GRU(U, activation="relu")).built


@pytest.mark.parametrize("kind", ["keras", "weights.h5"])
def test_bfloat16_is_read_as_such(tmp_path, kind):
    """HDF5 has no such floats: Keras 3 writes two bytes and says in an attribute what they are."""
    arrays = [torch.from_numpy(array).bfloat16() for array in make_arrays()]
    file = io.BytesIO()
    with h5py.File(write_unnamed(file, {"layers/gru": ()}), "a") as root:
        for number, array in enumerate(arrays):
            root[f"layers/gru/cell/vars/{number}"] = array.view(torch.int16).numpy().view("V2")
            root[f"layers/gru/cell/vars/{number}"].attrs["dtype"] = "bfloat16"
    path = tmp_path / f"m.{kind}"
    if kind == "keras":
        write_zip(path, file.getvalue(), model_of(gru("g", dtype="bfloat16")))
    else:
        path.write_bytes(file.getvalue())
    layer = convert.load_keras(path)
    for weight, array in zip((layer.kernel, layer.recurrent_kernel, layer.bias), arrays, strict=True):
        assert weight.dtype == torch.bfloat16 and torch.equal(weight, array)
    with h5py.File(file, "a") as root:
        root["layers/gru/cell/vars/1"].attrs["dtype"] = "float8"
    path = tmp_path / "other.weights.h5"
    path.write_bytes(file.getvalue())
    with pytest.raises(ValueError, match=r"has dtype \|V2, expected a float"):
        convert.load_keras(path)
