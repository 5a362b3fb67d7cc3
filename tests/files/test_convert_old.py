"""Old Keras files: what they leave unsaid, and the layout of CuDNNGRU."""

import io

import numpy as np
import pytest
import torch
from test_convert import assert_same_weights, make_arrays, name_weights, write_legacy, write_v3, write_zip
from torch import nn

from tritongru.keras import GRU, Bidirectional
from tritongru.tools.weight_files import convert

h5py = pytest.importorskip("h5py")

I, U = 3, 5
X = torch.randn(2, 6, I, generator=torch.Generator().manual_seed(0))


def model_of(*layers, **more):
    """The JSON of a Keras 2 model of (class name, config)."""
    return {"class_name": "Sequential", "config": [{"class_name": n, "config": c} for n, c in layers], **more}


def config_of(**more):
    return {"name": "gru", "units": U, "use_bias": False, "recurrent_activation": "hard_sigmoid", **more}


def write(path, arrays, config, version, cell="gru", **more):
    """A whole model of one GRU; without a version, neither root nor weights tell one."""
    model = model_of(("GRU", config), **more)
    write_legacy(path, {"gru": name_weights(arrays, cell)}, model, "model_weights", version or "none")
    if version is None:
        with h5py.File(path, "a") as root:
            del root.attrs["keras_version"], root["model_weights"].attrs["keras_version"]
    return path


def assert_computes(layer, arrays, **options):
    right = GRU(U, input_size=I, **options)
    right.set_weights(arrays)
    torch.testing.assert_close(layer(X), right(X))
    wrong = GRU(U, input_size=I, **options | {"reset_after": not options["reset_after"]})
    wrong.set_weights(arrays)
    assert (wrong(X) - right(X)).abs().max() > 0.01, "the two formulas differ on these weights"


STANDALONE = ["2.0.8", "2.1.2", "2.2.4", "2.3.1", "2.1.6-tf"]
TENSORFLOW_2 = ["2.2.4-tf", "2.3.0-tf", "2.4.0", "2.9.0", "2.15.0", "3.5.0"]


@pytest.mark.parametrize("version", STANDALONE + TENSORFLOW_2)
@pytest.mark.parametrize("both", [False, True], ids=["GRU", "Bidirectional"])
def test_a_config_without_reset_after_means_what_its_keras_meant(tmp_path, version, both):
    arrays = make_arrays(rows=0)
    config = config_of(recurrent_activation="sigmoid")
    options = {"use_bias": False, "reset_after": version in TENSORFLOW_2}
    if not both:
        assert_computes(convert.load_keras(write(tmp_path / "m.h5", arrays, config, version)), arrays, **options)
        return
    wrapper = {"name": "both", "merge_mode": "sum", "layer": {"class_name": "GRU", "config": config}}
    weights = name_weights(arrays, "both/forward_gru") | name_weights([-w for w in arrays], "both/backward_gru")
    path = write_legacy(tmp_path / "m.h5", {"both": weights}, model_of(("Bidirectional", wrapper)), "", version)
    layer = convert.load_keras(path)
    assert isinstance(layer, Bidirectional) and layer.merge_mode == "sum"
    assert layer.backward_layer.reset_after is layer.forward_layer.reset_after is options["reset_after"]
    assert_computes(layer.forward_layer, arrays, **options)
    assert_same_weights(layer.backward_layer, [-w for w in arrays])


@pytest.mark.parametrize("said", [True, False])
def test_what_a_config_says_stands(tmp_path, said):
    arrays = make_arrays(rows=0)
    for version in ("2.2.4", "2.9.0", None):
        config = config_of(reset_after=said, recurrent_activation="sigmoid")
        layer = convert.load_keras(write(tmp_path / "m.h5", arrays, config, version))
        assert_computes(layer, arrays, use_bias=False, reset_after=said)


@pytest.mark.parametrize(("more", "expected"), [
    ({"keras_version": "2.2.4"}, False), ({"keras_version": "2.9.0"}, True), ({"module": "keras"}, True),
])  # fmt: skip
def test_the_model_itself_may_tell_the_version(tmp_path, more, expected):
    layer = convert.load_keras(write(tmp_path / "m.h5", make_arrays(rows=0), config_of(), None, **more))
    assert layer.reset_after is expected


@pytest.mark.parametrize("version", [None, "unknown", "1.2.2"])
def test_what_cannot_be_told_is_refused(tmp_path, version):
    arrays = make_arrays(rows=0)
    path = write(tmp_path / "m.h5", arrays, config_of(), version)
    with pytest.raises(ValueError, match=r"m\.h5: the layer 'gru' has no bias, .*`reset_after`.*load the weights into"):
        convert.load_keras(path)
    # The way that the error names.
    for reset_after in (True, False):
        layer = convert.load_keras(path, GRU(U, use_bias=False, reset_after=reset_after))
        assert_computes(layer, arrays, use_bias=False, reset_after=reset_after)
    # With a bias there is nothing to tell.
    for rows in (1, 2):
        config = {"name": "gru", "units": U}
        assert convert.load_keras(write(tmp_path / "b.h5", make_arrays(rows=rows), config, version)).use_bias


def test_a_layer_of_the_other_formula_is_not_filled(tmp_path):
    path = write(tmp_path / "m.h5", make_arrays(rows=0), config_of(), "2.2.4")
    layer = GRU(U, input_size=I, use_bias=False)
    before = layer.get_weights()
    with pytest.raises(ValueError, match="'gru' has reset_after=False, `layer` True"):
        convert.load_keras(path, layer)
    assert_same_weights(layer, before)


@pytest.mark.parametrize(("version", "rows", "reset_after", "gates"), [
    ("2.2.4", 0, False, "hard_sigmoid"), ("2.2.4", 1, False, "hard_sigmoid"), ("2.2.4", 2, True, "sigmoid"),
    ("2.1.6-tf", 1, False, "hard_sigmoid"), ("2.3.1", 1, False, "sigmoid"), ("2.9.0", 0, True, "sigmoid"),
])  # fmt: skip
def test_weights_alone_have_the_defaults_of_their_keras(tmp_path, version, rows, reset_after, gates):
    path = write_legacy(tmp_path / "m.h5", {"gru": name_weights(make_arrays(rows=rows))}, version=version)
    layer = convert.load_keras(path)
    assert layer.reset_after is reset_after and layer.get_config()["recurrent_activation"] == gates
    if rows == 0:
        # It is an assumption, which a layer may overrule.
        assert convert.load_keras(path, GRU(U, use_bias=False, reset_after=not reset_after)).built


def test_names_without_the_cell(tmp_path):
    """Keras before 2.3 gave the cell no scope of its own."""
    forward, backward = make_arrays(), [-w for w in make_arrays()]
    weights = name_weights(forward, "both_1/forward_gru_1") | name_weights(backward, "both_1/backward_gru_1")
    plain = {"gru_2": name_weights(make_arrays(4), "gru_2")}
    path = write_legacy(tmp_path / "m.h5", {"both_1": weights, **plain})
    both, gru = convert.load_layers(path)
    assert_same_weights(both, [*forward, *backward])
    assert_same_weights(gru, make_arrays(4))
    assert_same_weights(convert.load_keras(path, "backward_gru_1"), backward)


# -- CuDNNGRU ---------------------------------------------------------------------------------------------------------


def make_cudnn(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype("float32") for shape in ((I, 3 * U), (U, 3 * U), (6 * U,))]


def torch_of(arrays):
    """What cuDNN computes with the arrays of a CuDNNGRU: it reads each gate's memory as a matrix of U rows."""
    kernel, recurrent, bias = arrays
    module = nn.GRU(I, U, batch_first=True)

    def gates(matrix):
        z, r, h = (np.ascontiguousarray(gate).reshape(-1).reshape(U, -1) for gate in np.split(matrix, 3, axis=1))
        return torch.from_numpy(np.concatenate([r, z, h]))

    def rows(vector):
        z, r, h = np.split(vector, 3)
        return torch.from_numpy(np.concatenate([r, z, h]))

    with torch.no_grad():
        module.weight_ih_l0.copy_(gates(kernel))
        module.weight_hh_l0.copy_(gates(recurrent))
        module.bias_ih_l0.copy_(rows(bias[: 3 * U]))
        module.bias_hh_l0.copy_(rows(bias[3 * U :]))
    return module


SCALED = {"scale": 1.0, "mode": "fan_avg", "distribution": "uniform", "seed": None}
CUDNN = {
    "name": "cu_dnngru_1",
    "units": U,
    "return_sequences": True,
    "kernel_initializer": {"class_name": "VarianceScaling", "config": SCALED},
}


@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize("version", ["2.2.4", "2.1.6-tf", "2.2.4-tf"])
def test_a_cudnn_gru_is_converted(tmp_path, version, with_config):
    arrays = make_cudnn()
    model = model_of(("CuDNNGRU", CUDNN)) if with_config else None
    weights = {"cu_dnngru_1": name_weights(arrays, "cu_dnngru_1")}
    layer = convert.load_keras(write_legacy(tmp_path / "m.h5", weights, model, "model_weights", version))
    assert layer.name == "cu_dnngru_1" and layer.return_sequences is with_config and layer.reset_after
    assert layer.get_config()["recurrent_activation"] == "sigmoid"
    expected = torch_of(arrays)(X)[0]
    torch.testing.assert_close(layer(X), expected if with_config else expected[:, -1])
    into = convert.load_keras(tmp_path / "m.h5", GRU(U))
    torch.testing.assert_close(into(X), expected[:, -1])


def test_a_bidirectional_cudnn_gru(tmp_path):
    forward, backward = make_cudnn(0), make_cudnn(1)
    weights = name_weights(forward, "b/forward_cu_dnngru_1") | name_weights(backward, "b/backward_cu_dnngru_1")
    wrapper = {"name": "b", "merge_mode": "concat", "layer": {"class_name": "CuDNNGRU", "config": CUDNN}}
    path = write_legacy(tmp_path / "m.h5", {"b": weights}, model_of(("Bidirectional", wrapper)), "", "2.2.4")
    layer = convert.load_keras(path)
    assert isinstance(layer, Bidirectional)
    expected = torch.cat([torch_of(forward)(X)[0], torch_of(backward)(X.flip(1))[0].flip(1)], -1)
    torch.testing.assert_close(layer(X), expected)
    half = convert.load_keras(path, "backward_cu_dnngru_1")
    assert half.go_backwards
    torch.testing.assert_close(half(X), torch_of(backward)(X.flip(1))[0])


def test_a_cudnn_gru_of_other_arrays_is_named(tmp_path):
    weights = {"cu_dnngru_1": name_weights(make_arrays(), "cu_dnngru_1")}
    path = write_legacy(tmp_path / "m.h5", weights, model_of(("CuDNNGRU", CUDNN)), "", "2.2.4")
    with pytest.raises(ValueError, match=r"'cu_dnngru_1'.*CuDNNGRU.*\(6 \* units,\)"):
        convert.load_keras(path)


# -- other recurrent layers -------------------------------------------------------------------------------------------

LSTM = [np.zeros((I, 4 * U)), np.zeros((U, 4 * U)), np.zeros(4 * U)]
SIMPLE = [np.zeros((I, U)), np.zeros((U, U)), np.zeros(U)]


@pytest.mark.parametrize("kind", ["h5", "weights.h5", "keras"])
def test_a_file_with_other_recurrent_layers(tmp_path, kind):
    path = tmp_path / f"m.{kind}"
    if kind == "h5":
        others = {"lstm": name_weights(LSTM, "lstm/lstm_cell"), "rnn": name_weights(SIMPLE, "rnn/simple_rnn_cell")}
        pair = name_weights(LSTM, "b/forward_lstm/lstm_cell") | name_weights(LSTM, "b/backward_lstm/lstm_cell")
        write_legacy(path, {**others, "b": pair, "gru": name_weights(make_arrays())})
    else:
        cells = {"layers/lstm": LSTM, "layers/simple_rnn": SIMPLE, "layers/gru": make_arrays(),
                 "layers/b/forward_layer": LSTM, "layers/b/backward_layer": LSTM}  # fmt: skip
        if kind == "keras":
            layers = [
                {"class_name": "LSTM", "config": {"name": "lstm_name"}},
                {"class_name": "GRU", "config": {"name": "gru_name"}},
            ]
            write_zip(path, write_v3(io.BytesIO(), cells).getvalue(), {"config": {"layers": layers}})
        else:
            write_v3(path, cells)
    assert_same_weights(convert.load_keras(path), make_arrays())
    assert len(convert.load_layers(path)) == 1
    with pytest.raises(ValueError, match=r"`layer='nope'`.*'gru.*\(LSTM\).*\(SimpleRNN\)|\(SimpleRNN\).*\(LSTM\)"):
        convert.load_keras(path, "nope")


def test_a_file_without_a_gru_lists_what_it_has(tmp_path):
    path = write_legacy(tmp_path / "m.h5", {"lstm": name_weights(LSTM, "lstm/lstm_cell")})
    for load in (convert.load_keras, convert.load_layers):
        with pytest.raises(ValueError, match=r"m\.h5: there is no GRU layer in the file; it has: 'lstm' \(LSTM\)"):
            load(path)
