"""Conversions: round trips through files laid out as Keras and torch lay them out, and files meant to do harm."""

import argparse
import io
import json
import os
import pickle
import struct
import warnings
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from tritongru import compat
from tritongru.keras import GRU, Bidirectional
from tritongru.layouts import keras_to_torch, torch_to_keras
from tritongru.tools.weight_files import convert

h5py = pytest.importorskip("h5py")
pytest.importorskip("safetensors")

KERAS_SUFFIXES = [".h5", ".hdf5", ".weights.h5", ".keras"]
STATE_SUFFIXES = [".pt", ".pth", ".safetensors"]


def make_layer(input_size=3, units=5, **options):
    layer = GRU(units, input_size=input_size, **options)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def make_arrays(input_size=3, units=5, rows=2):
    rng = np.random.default_rng(0)
    shapes = [(input_size, 3 * units), (units, 3 * units)]
    shapes += {0: [], 1: [(3 * units,)], 2: [(2, 3 * units)]}[rows]
    return [rng.normal(size=shape).astype("float32") for shape in shapes]


def write_legacy(path, layers, config=None, group="", version="2.9.0"):
    """Write `layers`, {layer: {weight name: array}}, as Keras 2.9 does; in `group` if it is a whole model."""
    with h5py.File(path, "w") as root:
        top = root.create_group(group) if group else root
        top.attrs["layer_names"] = np.array([name.encode() for name in layers])
        top.attrs["keras_version"] = version
        if config is not None:
            root.attrs["model_config"] = json.dumps(config)
            root.attrs["keras_version"] = version
        for layer, weights in layers.items():
            inner = top.create_group(layer)
            inner.attrs["weight_names"] = np.array([name.encode() for name in weights])
            for name, array in weights.items():
                inner.create_dataset(name, data=array)
    return path


def name_weights(arrays, cell="gru/gru_cell"):
    return dict(zip((f"{cell}/kernel:0", f"{cell}/recurrent_kernel:0", f"{cell}/bias:0"), arrays, strict=False))


def write_v3(file, cells):
    """Write `cells`, {path: arrays}, as Keras 3 does."""
    with h5py.File(file, "w") as root:
        root.create_group("vars")
        for path, arrays in cells.items():
            root.create_group(f"{path}/vars").attrs["name"] = path.rpartition("/")[2] + "_name"
            for number, array in enumerate(arrays):
                root.create_dataset(f"{path}/cell/vars/{number}", data=array)
    return file


def write_zip(path, weights, config=None, extra=None):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
        archive.writestr("config.json", json.dumps(config or {}))
        archive.writestr("model.weights.h5", weights)
        for name, data in (extra or {}).items():
            archive.writestr(name, data)
    return path


def assert_same_weights(layer, arrays):
    for found, expected in zip(layer.get_weights(), arrays, strict=True):
        np.testing.assert_array_equal(found, expected)


# -- layouts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_layouts_invert_each_other_and_order_the_gates(bias):
    z, r, h = (torch.full((1, 2), float(v)) for v in (1, 2, 3))
    kernel, recurrent = torch.cat((z, r, h), 1), torch.randn(2, 6)
    both = torch.randn(2, 6) if bias else None
    packed = keras_to_torch(kernel, recurrent, both)
    assert packed.weight_ih.flatten().tolist() == [2, 2, 1, 1, 3, 3]
    for found, expected in zip(torch_to_keras(*packed), (kernel, recurrent, both), strict=True):
        assert found is expected is None or torch.equal(found, expected)


def test_layouts_refuse_shapes_that_do_not_fit():
    good = [torch.zeros(s) for s in ((3, 6), (2, 6), (2, 6))]
    for index, name, shape in ((0, "kernel", (3, 5)), (1, "recurrent_kernel", (2, 5)), (2, "bias", (3, 6))):
        bad = [torch.zeros(shape) if i == index else w for i, w in enumerate(good)]
        with pytest.raises(ValueError, match=f"`{name}` has shape \\({shape[0]}, {shape[1]}\\)"):
            keras_to_torch(*bad)
    with pytest.raises(ValueError, match="reset_after=False"):
        keras_to_torch(*good[:2], torch.zeros(6))
    with pytest.raises(ValueError, match="b_hh"):
        torch_to_keras(torch.zeros(6, 3), torch.zeros(6, 2), torch.zeros(6))


# -- torch modules ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_torch_module_and_back_compute_the_same(num_layers, bidirectional, bias, batch_first):
    module = nn.GRU(3, 5, num_layers, bias, batch_first, 0.0, bidirectional, dtype=torch.float64)
    layers = convert.from_torch(module)
    assert isinstance(layers, list) == (num_layers == 2)
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    y = x
    for layer in layers if isinstance(layers, list) else [layers]:
        assert isinstance(layer, Bidirectional if bidirectional else GRU)
        y = layer(y)
    torch.testing.assert_close(y, module(x)[0])
    again = convert.to_torch(layers)
    assert again.state_dict().keys() == module.state_dict().keys() and again.batch_first == batch_first
    for name, weight in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name


def test_from_torch_says_what_it_leaves_out():
    with pytest.warns(UserWarning, match="dropout=0.5"):
        convert.from_torch(nn.GRU(3, 5, 2, dropout=0.5))
    with pytest.raises(TypeError, match="LSTM"):
        convert.from_torch(nn.LSTM(3, 5))
    with pytest.warns(UserWarning, match="recurrent_dropout=0.5"):
        convert.from_torch(compat.GRU(3, 5, recurrent_dropout=0.5))
    assert convert.from_torch(nn.GRU(3, 5), return_state=True).return_state


def test_zoneout_is_kept_or_refused(tmp_path):
    module = compat.GRU(3, 5, zoneout=0.25, gradient_clip=1.0).eval()
    layer, x = convert.from_torch(module).eval(), torch.randn(4, 2, 3)
    assert (layer.zoneout, layer.gradient_clip) == (0.25, 1.0)
    torch.testing.assert_close(layer(x), module(x)[0])
    for one in (layer, Bidirectional(layer)):
        with pytest.raises(ValueError, match="zoneout=0.25, which no file of Keras can hold"):
            convert.save_keras(one, tmp_path / "layer.keras")
    assert not list(tmp_path.iterdir())


SETTINGS = {"zoneout": 0.25, "gradient_clip": 0.0, "dropout": 0.5, "recurrent_dropout": 0.125}


@pytest.mark.parametrize("both", [False, True])
def test_safetensors_hold_what_keras_has_not(tmp_path, both):
    layer = make_layer(name="one", backend="eager", **SETTINGS)
    layer = Bidirectional(layer) if both else layer
    convert.save_layers(layer, tmp_path / "layer.safetensors")
    (again,) = convert.load_layers(tmp_path / "layer.safetensors")
    for half in again._parts:
        assert {name: getattr(half, name) for name in SETTINGS} == SETTINGS
        assert half.backend == "auto"  # the choice of a machine
    for ours, theirs in zip(layer.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ValueError, match="zoneout=0.25.*save as .safetensors"):
        convert.save_layers(layer, tmp_path / "layer.pt", layout="keras")


@pytest.mark.parametrize("both", [False, True])
def test_a_bound_of_the_gradient_is_left_out_with_a_warning(tmp_path, both):
    layer = make_layer(gradient_clip=1.0, backend="eager")
    layer = Bidirectional(layer) if both else layer
    for name in ("layer.h5", "layer.keras"):
        with pytest.warns(UserWarning, match="`gradient_clip=1.0` of the layer .* is left out"):
            convert.save_keras(layer, tmp_path / name)
        again = convert.load_keras(tmp_path / name)
        assert all((half.gradient_clip, half.backend) == (None, "auto") for half in again._parts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # files of weights alone hold no settings
        for name in ("layer.weights.h5", "layer.pt"):
            convert.save_layers(layer, tmp_path / name)


@pytest.mark.parametrize("name", ["dropout", "recurrent_dropout", "gradient_clip"])
def test_to_torch_warns_of_what_it_leaves_out(name):
    layer = make_layer(**{name: SETTINGS[name]})
    for one in (layer, Bidirectional(layer), [layer]):
        with pytest.warns(UserWarning, match=f"`{name}={SETTINGS[name]}` of .*gru is left out"):
            convert.to_torch(one)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reset_after": False}, "reset_after=False"),
        ({"activation": "relu"}, "activation='relu'"),
        ({"recurrent_activation": "hard_sigmoid"}, "recurrent_activation='hard_sigmoid'"),
        ({"go_backwards": True}, "go_backwards=True"),
        ({"zoneout": 0.25}, "zoneout=0.25"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_to_torch_names_what_torch_cannot_compute(options, message):
    with pytest.raises(ValueError, match=message):
        convert.to_torch(make_layer(**options))


def test_a_suffix_that_is_not_written_is_told_of_all_that_are(tmp_path):
    for name in ("layer.ckpt", "layer"):
        with pytest.raises(
            ValueError, match=r"names no format that is written: .pt, .*.safetensors, .keras, .weights.h5"
        ):
            convert.save_layers(make_layer(), tmp_path / name)


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_a_name_with_a_slash_keeps_both_directions_together(tmp_path, suffix):
    layer = Bidirectional(make_layer(name="a/b"), name="c/d")
    convert.save_layers(layer, tmp_path / f"layer{suffix}")
    (again,) = convert.load_layers(tmp_path / f"layer{suffix}")
    for ours, theirs in zip(layer.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_to_torch_refuses_stacks_that_do_not_fit():
    with pytest.raises(ValueError, match=r"layers\[1\].*input_size=3"):
        convert.to_torch([make_layer(), make_layer()])
    with pytest.raises(ValueError, match="empty"):
        convert.to_torch([])
    with pytest.raises(ValueError, match="not built"):
        convert.to_torch(GRU(3))
    with pytest.raises(TypeError, match="Linear"):
        convert.to_torch(nn.Linear(2, 2))


# -- Keras files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1, 2])
@pytest.mark.parametrize("group", ["", "model_weights"])
def test_load_legacy_h5(tmp_path, group, rows):
    arrays = make_arrays(rows=rows)
    dense = {"dense/kernel:0": np.zeros((5, 1)), "dense/bias:0": np.zeros(1)}
    path = write_legacy(tmp_path / "m.h5", {"gru": name_weights(arrays), "dense": dense, "drop": {}}, group=group)
    layer = convert.load_keras(path)
    assert_same_weights(layer, arrays)
    assert layer.use_bias == (rows > 0) and layer.reset_after == (rows != 1)


def test_load_legacy_bidirectional_takes_its_config(tmp_path):
    forward, backward = make_arrays(), [-w for w in make_arrays()]
    weights = name_weights(forward, "both/forward_gru/gru_cell") | name_weights(backward, "both/backward_gru/gru_cell")
    inner = {"class_name": "GRU", "config": {"name": "gru", "units": 5, "activation": "relu", "go_backwards": False}}
    model = {"config": {"layers": [{"class_name": "Bidirectional", "config": {"name": "both", "layer": inner}}]}}
    path = write_legacy(tmp_path / "m.h5", {"both": weights}, model, "model_weights")
    for name, arrays, backwards in (("forward_gru", forward, False), ("both/backward_gru", backward, True)):
        layer = convert.load_keras(path, name)
        assert_same_weights(layer, arrays)
        assert layer.go_backwards == backwards and layer.get_config()["activation"] == "relu"


def test_load_legacy_reads_split_name_lists(tmp_path):
    path = write_legacy(tmp_path / "m.h5", {"gru": name_weights(make_arrays())})
    with h5py.File(path, "a") as root:
        names = root["gru"].attrs.pop("weight_names")
        root["gru"].attrs["weight_names0"], root["gru"].attrs["weight_names1"] = names[:2], names[2:]
    assert_same_weights(convert.load_keras(path), make_arrays())


def test_load_v3_weights_by_name_or_path(tmp_path):
    cells = {"layers/gru": make_arrays(3), "layers/gru_1": make_arrays(5)}
    cells["layers/lstm"] = [np.zeros((3, 20)), np.zeros((5, 20)), np.zeros(20)]
    cells["layers/bidirectional/backward_layer"] = make_arrays(4)
    path = write_v3(tmp_path / "m.weights.h5", cells)
    assert_same_weights(convert.load_keras(path, "gru_1"), make_arrays(5))
    assert_same_weights(convert.load_keras(path, "gru_1_name"), make_arrays(5))
    assert convert.load_keras(path, "bidirectional/backward_layer").go_backwards
    with pytest.raises(ValueError, match=r"m\.weights\.h5: `layer='lstm'` .* 'gru_name', 'gru_1_name'"):
        convert.load_keras(path, "lstm")
    with pytest.raises(ValueError, match="must name one"):
        convert.load_keras(path)


def test_keras_3_config_keeps_keras_3_meaning(tmp_path):
    config = {
        "name": "gru_name",
        "units": 5,
        "recurrent_activation": "hard_sigmoid",
        "activation": {"module": "builtins", "class_name": "function", "config": "relu", "registered_name": "function"},
        "dtype": {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "float32"}},
        "kernel_initializer": {"class_name": "HeNormal", "config": {"seed": None, "input_axes": None}},
        "seed": None,
    }
    model = {"config": {"layers": [{"class_name": "GRU", "config": config}]}}
    weights = write_v3(io.BytesIO(), {"layers/gru": make_arrays()}).getvalue()
    layer = convert.load_keras(write_zip(tmp_path / "m.keras", weights, model))
    assert layer.recurrent_activation is nn.functional.hardsigmoid
    assert layer.get_config()["activation"] == "relu"
    assert layer.get_config()["kernel_initializer"]["class_name"] == "HeNormal"
    convert.save_keras(layer, tmp_path / "again.keras")
    assert convert.load_keras(tmp_path / "again.keras").recurrent_activation is nn.functional.hardsigmoid


@pytest.mark.parametrize("suffix", KERAS_SUFFIXES + STATE_SUFFIXES)
@pytest.mark.parametrize("count", [1, 2])
def test_save_and_load_every_format(tmp_path, suffix, count):
    layers = [make_layer(3, name="first", return_sequences=True), make_layer(5, name="second")][:count]
    path = tmp_path / f"model{suffix}"
    convert.save_layers(layers, path)
    again = convert.load_layers(path)
    for layer, copy in zip(layers, again, strict=True):
        assert_same_weights(copy, layer.get_weights())
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".h5", ".keras", ".safetensors"])
def test_config_survives(tmp_path, suffix):
    layer = make_layer(
        name="mine", reset_after=False, dropout=0.25, return_sequences=True, activation="elu", kernel_regularizer="l1",
        bias_constraint="unit_norm", recurrent_initializer="identity", zero_output_for_mask=True, trainable=False,
        dtype="float64", activity_regularizer="l2",
    )  # fmt: skip
    convert.save_layers([layer], tmp_path / f"m{suffix}")
    (again,) = convert.load_layers(tmp_path / f"m{suffix}")
    assert again.get_config() == layer.get_config()
    assert_same_weights(again, layer.get_weights())


@pytest.mark.parametrize("suffix", STATE_SUFFIXES)
@pytest.mark.parametrize("layout", ["torch", "keras"])
def test_state_files_in_both_layouts(tmp_path, suffix, layout):
    layers = [make_layer(3, dtype="bfloat16"), make_layer(5, dtype="bfloat16")]
    path = tmp_path / f"m{suffix}"
    convert.save_layers(layers, path, layout)
    for layer, copy in zip(layers, convert.load_layers(path), strict=True):
        assert copy.variable_dtype == torch.bfloat16
        assert_same_weights(copy, layer.get_weights())


def test_state_dict_of_a_whole_model(tmp_path):
    model = nn.ModuleDict({"embed": nn.Linear(2, 3), "rnn": nn.GRU(3, 5, bidirectional=True)})
    torch.save({"state_dict": model.state_dict()}, tmp_path / "m.pt")
    (both,) = convert.load_layers(tmp_path / "m.pt")
    assert isinstance(both, Bidirectional) and both.name == "rnn_l0" and both.return_sequences
    x = torch.randn(2, 4, 3)
    torch.testing.assert_close(both(x), model["rnn"](x.transpose(0, 1))[0].transpose(0, 1))
    assert convert.load_layers(tmp_path / "m.pt", "rnn_l0_reverse")[0].go_backwards


def test_load_into_a_layer(tmp_path):
    path = write_v3(tmp_path / "m.weights.h5", {"layers/gru": make_arrays()})
    layer = GRU(5)
    assert convert.load_keras(path, layer) is layer
    assert_same_weights(layer, make_arrays())
    with pytest.raises(ValueError, match="units=5, `layer` 4"):
        convert.load_keras(path, GRU(4))


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(3, 15), (5, 14)], "`recurrent_kernel` has shape"),
        ([(3, 14), (5, 15)], "`kernel` has shape"),
        ([(3, 15), (5, 15), (3, 15)], "`bias` has shape"),
        ([(3, 15)], "1 arrays"),
        ([(0, 15), (5, 15)], "`kernel` has shape"),
    ],
)
def test_wrong_shapes_are_named(tmp_path, shapes, message):
    arrays = [np.zeros(shape, "float32") for shape in shapes]
    path = write_v3(tmp_path / "m.weights.h5", {"layers/gru": arrays})
    with pytest.raises(ValueError, match=f"m.weights.h5: the layer 'gru_name': .*{message}"):
        convert.load_keras(path)


def test_missing_arrays_and_groups_are_named(tmp_path):
    path = write_legacy(tmp_path / "m.h5", {"gru": name_weights(make_arrays())})
    with h5py.File(path, "a") as root:
        del root["gru/gru/gru_cell/bias:0"]
    with pytest.raises(ValueError, match="m.h5: .*bias:0 is missing"):
        convert.load_keras(path)
    with h5py.File(path, "a") as root:
        del root["gru"]
    with pytest.raises(ValueError, match="m.h5: /gru is missing"):
        convert.load_keras(path)
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    with pytest.raises(ValueError, match="layer_names"):
        convert.load_keras(tmp_path / "empty.h5")


def hostile_cells():
    huge = (1 << 20, 3 << 20)
    return {
        "external_link": (lambda v: v.__setitem__("0", h5py.ExternalLink("/etc/passwd", "/x")), "link"),
        "soft_link": (lambda v: v.__setitem__("0", h5py.SoftLink("/vars")), "link"),
        "absurd_size": (lambda v: v.create_dataset("0", huge, "f4", chunks=(64, 64)), "claims|`kernel`"),
        "external_storage": (
            lambda v: v.create_dataset("0", (3, 15), "f4", external=[("/etc/passwd", 0, 180)]),
            "another file",
        ),
        "strings": (lambda v: v.create_dataset("0", (3, 15), h5py.string_dtype()), "dtype"),
        "integers": (lambda v: v.create_dataset("0", (3, 15), "i4"), "dtype"),
        "a_group": (lambda v: v.create_group("0"), "`kernel`"),
    }


@pytest.mark.parametrize("kind", hostile_cells())
def test_hostile_arrays(tmp_path, kind):
    change, message = hostile_cells()[kind]
    path = write_v3(tmp_path / "m.weights.h5", {"layers/gru": make_arrays()})
    with h5py.File(path, "a") as root:
        del root["layers/gru/cell/vars/0"]
        change(root["layers/gru/cell/vars"])
    with pytest.raises(ValueError, match=f"m.weights.h5: .*({message})"):
        convert.load_keras(path)


def test_an_absurd_size_is_refused_before_it_is_read(tmp_path):
    units = 1 << 20
    with h5py.File(tmp_path / "m.weights.h5", "w") as root:
        cell = root.create_group("layers/gru/cell/vars")
        cell.create_dataset("0", (1, 3 * units), "f4", chunks=(1, 64))
        cell.create_dataset("1", (units, 3 * units), "f4", chunks=(64, 64))
    with pytest.raises(ValueError, match="claims 12582912 bytes in a file of"):
        convert.load_keras(tmp_path / "m.weights.h5")


@pytest.mark.parametrize("zipped", [False, True])
def test_a_heap_that_libhdf5_would_walk_for_ever(tmp_path, zipped):
    data = bytearray(write_v3(io.BytesIO(), {"layers/gru": make_arrays()}).getvalue())
    place = data.index(b"GCOL") + 16
    # An entry 0 (free space) of no bytes.
    data[place : place + 16] = bytes(16)
    path = tmp_path / ("m.keras" if zipped else "m.weights.h5")
    write_zip(path, bytes(data)) if zipped else path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{path.name}: the global heap .* entry of 0 bytes"):
        convert.load_keras(path)


def test_a_group_inside_itself_ends(tmp_path):
    path = write_v3(tmp_path / "m.weights.h5", {"layers/gru": make_arrays()})
    with h5py.File(path, "a") as root:
        root["layers/loop"] = root["layers"]
    with pytest.raises(ValueError, match="deep"):
        convert.load_keras(path)


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "..\\evil", "C:\\evil"])
def test_climbing_zip_paths(tmp_path, name):
    weights = write_v3(io.BytesIO(), {"layers/gru": make_arrays()}).getvalue()
    path = write_zip(tmp_path / "m.keras", weights, extra={name: b"x"})
    with pytest.raises(ValueError, match="m.keras: the zip member .* points out"):
        convert.load_keras(path)
    assert os.listdir(tmp_path) == ["m.keras"]


def test_zip_bombs_and_missing_members(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", bytes(1 << 25))
    with pytest.raises(ValueError, match="bomb.keras: .*claims 33554432 bytes"):
        convert.load_keras(tmp_path / "bomb.keras")
    with zipfile.ZipFile(tmp_path / "none.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(ValueError, match="'model.weights.h5' is missing"):
        convert.load_keras(tmp_path / "none.keras")
    with pytest.raises(ValueError, match="config.json is not JSON|nested too deeply"):
        weights = write_v3(io.BytesIO(), {"layers/gru": make_arrays()}).getvalue()
        with zipfile.ZipFile(tmp_path / "deep.keras", "w") as archive:
            archive.writestr("config.json", "[" * 200_000)
            archive.writestr("model.weights.h5", weights)
        convert.load_keras(tmp_path / "deep.keras")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"units": 7}, "units=7"),
        ({"use_bias": False}, "use_bias=False"),
        ({"reset_after": False}, "reset_after=False"),
        ({"return_sequences": "yes"}, "return_sequences='yes'"),
        ({"activation": "nope"}, "nope"),
        ({"activation": {"class_name": "__lambda__", "config": {"code": "4wEAAAA="}}}, "__lambda__"),
        ({"kernel_initializer": {"class_name": "Orthogonal", "config": {"evil": 1}}}, "evil"),
        ({"dropout": "much"}, "much"),
        ({"dtype": "object"}, "object"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_configs_that_make_no_sense(tmp_path, change, message):
    model = {"config": {"layers": [{"class_name": "GRU", "config": {"name": "gru"} | change}]}}
    path = write_legacy(tmp_path / "m.h5", {"gru": name_weights(make_arrays())}, model, "model_weights")
    with pytest.raises(ValueError, match=f"m.h5: .*{message}"):
        convert.load_keras(path)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_pickled_objects_are_never_built(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight_ih_l0": Evil()}, "m.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil()))
    for name in ("m.pt", "plain.pt"):
        with pytest.raises(ValueError, match=f"{name}: "):
            convert.load_layers(name)
    assert not (tmp_path / "evil").exists()


def test_hostile_state_files(tmp_path):
    path = tmp_path / "m.pt"
    torch.save({"weight_ih_l0": torch.zeros(1).expand(3 << 20, 1 << 20), "weight_hh_l0": torch.zeros(3, 1)}, path)
    with pytest.raises(ValueError, match="claims shape"):
        convert.load_layers(path)
    torch.save(nn.LSTM(3, 5).state_dict(), path)
    with pytest.raises(ValueError, match="m.pt: .*`weight_ih` has shape"):
        convert.load_layers(path)
    torch.save({"kernel": torch.zeros(3, 15, dtype=torch.int32), "recurrent_kernel": torch.zeros(5, 15)}, path)
    with pytest.raises(ValueError, match="int32"):
        convert.load_layers(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="list"):
        convert.load_layers(path)
    header = json.dumps({"kernel": {"dtype": "F32", "shape": [1 << 40, 15], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(ValueError, match="m.safetensors: "):
        convert.load_layers(tmp_path / "m.safetensors")


@pytest.mark.parametrize("suffix", KERAS_SUFFIXES + STATE_SUFFIXES)
def test_damaged_files_raise_value_errors_only(tmp_path, suffix):
    good, bad = tmp_path / f"good{suffix}", tmp_path / f"bad{suffix}"
    convert.save_layers([make_layer()], good)
    data = good.read_bytes()
    for size in np.linspace(0, len(data) - 1, 12, dtype=int):
        bad.write_bytes(data[:size])
        with pytest.raises(ValueError, match="bad"):
            convert.load_layers(bad)
    rng = np.random.default_rng(1)
    for _ in range(40):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 8):
            damaged[place] ^= int(rng.integers(1, 256))
        bad.write_bytes(damaged)
        try:
            convert.load_layers(bad)
        except ValueError as error:
            assert "bad" in str(error)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.h5"):
        convert.load_keras(tmp_path / "none.h5")
    with pytest.raises(ValueError, match="plain file"):
        convert.load_keras(tmp_path)
    with pytest.raises(FileNotFoundError, match="folder"):
        convert.save_keras(make_layer(), tmp_path / "no" / "m.h5")


@pytest.mark.parametrize("suffix", KERAS_SUFFIXES + STATE_SUFFIXES)
def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"m{suffix}"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        convert.save_layers([make_layer()], path)
    assert os.listdir(tmp_path) == [path.name] and path.read_bytes() == b"old"


def test_what_a_format_cannot_hold_is_said(tmp_path):
    with pytest.raises(ValueError, match="time_major=True"):
        convert.save_keras(make_layer(time_major=True), tmp_path / "m.keras")
    with pytest.raises(ValueError, match="hard_sigmoid"):
        convert.save_keras(make_layer(recurrent_activation="hard_sigmoid"), tmp_path / "m.keras")
    with pytest.raises(ValueError, match="JSON"):
        convert.save_keras(make_layer(activation=lambda x: x), tmp_path / "m.h5")
    with pytest.raises(ValueError, match="'.onnx'"):
        convert.save_keras(make_layer(), tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="not built"):
        convert.save_keras(GRU(3), tmp_path / "m.h5")
    with pytest.raises(ValueError, match="empty"):
        convert.save_keras([], tmp_path / "m.h5")
    with pytest.raises(ValueError, match="layout='torch'"):
        convert.save_layers([make_layer()], tmp_path / "m.h5", "torch")
    with pytest.raises(ValueError, match="not a state_dict|cannot be read"):
        (tmp_path / "m.pt").write_bytes(b"x")
        convert.load_layers(tmp_path / "m.pt")
    assert os.listdir(tmp_path) == ["m.pt"]


def test_command_line(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    convert.add_arguments(parser)
    source, target = str(tmp_path / "m.h5"), str(tmp_path / "m.safetensors")
    layer = make_layer(name="mine")
    convert.save_keras(layer, source)
    assert convert.main(parser.parse_args([source, target])) == 0
    assert "mine: input_size=3, units=5" in capsys.readouterr().out
    assert_same_weights(convert.load_layers(target)[0], layer.get_weights())
    assert convert.main(parser.parse_args([source, target, "--layer", "nope"])) == 1
    assert "m.h5: `layer='nope'`" in capsys.readouterr().err
    assert convert.main(parser.parse_args([str(tmp_path / "none.h5"), target])) == 1
