"""Files between this package and Keras 3, both ways, with the outputs of both as the judge."""

import io
import zipfile

import keras_pairs
import numpy as np
import pytest
import torch
from keras_pairs import B, I, T, U, assert_same, mask_of

import tritongru
from tritongru.keras import GRU, Bidirectional
from tritongru.keras.initializers import constant
from tritongru.tools.weight_files import convert

h5py = pytest.importorskip("h5py")
keras = keras_pairs.keras
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
SUFFIXES = [".keras", ".weights.h5", ".h5"]
VARIANTS = [
    {},
    {"reset_after": False, "use_bias": True, "activation": "relu"},
    {"use_bias": False, "go_backwards": True, "recurrent_activation": "softsign"},
    {"kernel_regularizer": "l2", "recurrent_constraint": "unit_norm", "dropout": 0.2, "zero_output_for_mask": True},
]


def write_keras(model, path):
    model.save_weights(path) if path.name.endswith(".weights.h5") else model.save(path)


def read_keras(path, build):
    """The model that Keras finds in a file; of a file of weights alone, `build()` filled with them."""
    if not path.name.endswith(".weights.h5"):
        return keras.models.load_model(path, compile=False)
    model = build()
    model.load_weights(path)
    return model


def in_model(*layers, size=I):
    return keras.Sequential([keras.Input((T, size)), *layers])


def assert_same_layer(model, ours):
    x = torch.randn(B, T, model.input_shape[-1])
    for mask in (None, mask_of("holes and an empty row")):
        assert_same(model.layers[0](x, mask=mask), ours.eval()(x, mask=mask))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
def test_a_layer(tmp_path, suffix, arguments):
    path = tmp_path / f"theirs{suffix}"
    make = {"return_sequences": True, "bias_initializer": "glorot_uniform", **arguments}
    model = in_model(keras.layers.GRU(U, **make))
    write_keras(model, path)
    ours = convert.load_keras(path, GRU(U, **make) if suffix == ".weights.h5" else None)
    assert_same_layer(model, ours)

    path = tmp_path / f"ours{suffix}"
    ours = GRU(U, input_size=I, **make)
    convert.save_keras(ours, path)
    model = read_keras(path, lambda: in_model(keras.layers.GRU(U, **make)))
    assert_same_layer(model, ours)
    config = model.layers[0].get_config()
    for name in (*arguments, "return_sequences"):
        expected = keras.layers.GRU(U, **make).get_config()[name]
        if name == "kernel_regularizer":
            expected["config"]["l2"] = pytest.approx(expected["config"]["l2"])
        assert config[name] == expected, name


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("mode", ["concat", "mul", None])
@pytest.mark.parametrize("own", [None, {"activation": "relu"}], ids=str)
def test_a_bidirectional(tmp_path, suffix, mode, own):
    make = {"return_sequences": True, "return_state": True, "bias_initializer": "glorot_uniform"}

    def build(module, **more):
        layers = module.layers if module is keras else tritongru
        backward = None if own is None else layers.GRU(U, **make, **own, **more, go_backwards=True, name="mine")
        return layers.Bidirectional(layers.GRU(U, **make, **more), merge_mode=mode, backward_layer=backward)

    inputs = keras.Input((T, I))

    def model_of(layer):
        return keras.Model(inputs, layer(inputs))

    theirs = build(keras)
    write_keras(model_of(theirs), tmp_path / f"theirs{suffix}")
    ours = convert.load_keras(
        tmp_path / f"theirs{suffix}", build(None, input_size=I) if suffix == ".weights.h5" else None
    )
    assert isinstance(ours, Bidirectional)
    x = torch.randn(B, T, I)
    assert_same(theirs(x), ours.eval()(x))

    ours = build(None, input_size=I).eval()
    path = tmp_path / f"ours{suffix}"
    convert.save_keras(ours, path)
    if suffix == ".weights.h5":
        theirs = build(keras)
        keras.Sequential([keras.Input((T, I)), theirs]).load_weights(path)
    else:
        theirs = keras.models.load_model(path, compile=False).layers[0]
    assert_same(theirs(x), ours(x))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_stack_within_a_model(tmp_path, suffix):
    L = keras.layers
    model = keras.Sequential([
        keras.Input((T,)), L.Embedding(9, I), L.Bidirectional(L.GRU(U, return_sequences=True), name="both"),
        L.Dropout(0.1), L.GRU(3, return_sequences=True), L.LSTM(4, return_sequences=True), L.GRU(2, name="last"),
        L.Dense(1),
    ])  # fmt: skip
    path = tmp_path / f"m{suffix}"
    write_keras(model, path)
    found = convert.load_layers(path)
    assert sorted(type(layer).__name__ for layer in found) == ["Bidirectional", "GRU", "GRU"]
    x = torch.randn(B, T, 4)
    assert_same(model.get_layer("last")(x), convert.load_keras(path, "last").eval()(x))
    both = convert.load_keras(path, "both")
    x = torch.randn(B, T, I)
    if suffix != ".weights.h5":
        assert_same(model.get_layer("both")(x), both.eval()(x))
    # Ours as a stack, which Keras reads as a Sequential.
    stack = [
        Bidirectional(GRU(U, input_size=I, return_sequences=True)),
        GRU(3, input_size=2 * U, return_sequences=True),
    ]
    convert.save_keras(stack, path)
    again = read_keras(
        path, lambda: in_model(L.Bidirectional(L.GRU(U, return_sequences=True)), L.GRU(3, return_sequences=True))
    )
    assert_same(again(x), stack[1].eval()(stack[0].eval()(x)))


def test_hard_sigmoid_keeps_the_formula_of_the_file(tmp_path):
    model = in_model(keras.layers.GRU(U, recurrent_activation="hard_sigmoid", return_sequences=True))
    for suffix in (".keras", ".h5"):
        write_keras(model, tmp_path / f"m{suffix}")
        assert_same_layer(model, convert.load_keras(tmp_path / f"m{suffix}"))


def both_of(forward=None, **backward):
    options = {"input_size": I, "return_sequences": True}
    own = GRU(U, **options, **backward) if backward else None
    return Bidirectional(GRU(U, **options, **(forward or {})), backward_layer=own, name="c/d")


WRITTEN = {
    "names": lambda: both_of({"name": "a/b"}),
    "own names": lambda: both_of({"name": "a/b"}, name="x/y", go_backwards=True, activation="relu"),
    "backwards": lambda: both_of({"go_backwards": True}),
    "both backwards": lambda: both_of({"go_backwards": True}, activation="relu"),
    "array": lambda: GRU(U, input_size=I, bias_initializer=constant(np.arange(6.0 * U).reshape(2, 3 * U) / 20)),
    "tensor": lambda: both_of({"bias_initializer": constant(torch.ones(2, 3 * U))}),
    "number": lambda: GRU(U, input_size=I, bias_initializer=constant(np.float32(0.5))),
}


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("kind", WRITTEN)
def test_what_is_written_opens_in_keras(tmp_path, suffix, kind):
    ours, path = WRITTEN[kind](), tmp_path / f"m{suffix}"
    convert.save_keras(ours, path)
    model = keras.models.load_model(path, compile=False)
    assert_same_layer(model, ours)
    (again,) = convert.load_layers(path)
    assert_same_layer(model, again)
    if not isinstance(ours, Bidirectional):
        fresh = GRU.from_config(again.get_config())
        fresh.build(I)
        assert torch.equal(fresh.bias, ours.bias)


def strip_names(path):
    """Take the names from a `.keras`, which Keras before 3.6 did not write."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    file = io.BytesIO(members["model.weights.h5"])
    with h5py.File(file, "a") as root:
        root.visititems(lambda _, group: group.attrs.pop("name", None) and None)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (members | {"model.weights.h5": file.getvalue()}).items():
            archive.writestr(name, data)


@pytest.mark.parametrize("kind", ["names", "no names", "h5"])
def test_each_layer_has_its_own_configuration(tmp_path, kind):
    L, every = keras.layers, {"return_sequences": True, "bias_initializer": "glorot_uniform"}
    inner, start = every | {"name": "gru_1"}, {"bias_initializer": "glorot_uniform"}
    model = in_model(
        keras.Sequential([keras.Input((T, I)), L.GRU(U, activation="relu", **inner)], name="a"),
        keras.Sequential([keras.Input((T, U)), L.GRU(U, activation="softsign", go_backwards=True, **inner)], name="b"),
        L.Bidirectional(L.RNN(L.GRUCell(U, activation="elu", **start), return_sequences=True), merge_mode="sum"),
        L.RNN(L.GRUCell(U, reset_after=False, **start), return_sequences=True, go_backwards=True),
        L.GRU(U, activation="selu", name="gru"),
    )
    path = tmp_path / ("m.h5" if kind == "h5" else "m.keras")
    write_keras(model, path)
    if kind == "no names":
        strip_names(path)
    x = y = torch.randn(B, T, I)
    for layer in convert.load_layers(path):
        y = layer.eval()(y)
    assert_same(model(x), y)
    y = model.get_layer("a")(x)
    assert_same(model.get_layer("b")(y), convert.load_keras(path, "b/gru_1").eval()(y))
