"""Checkpoints of torch: a state_dict under a key, Lightning's files, GRUCell, and layers that are no GRU."""

import argparse
import pathlib

import pytest
import torch
from torch import nn

from tritongru.keras import GRU, Bidirectional, GRUCell
from tritongru.tools.weight_files import convert

pytest.importorskip("safetensors")

I, U = 3, 5
X = torch.randn(2, 6, I, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(2, I)
        self.gru = nn.GRU(I, U, num_layers=2, batch_first=True)
        self.lstm = nn.LSTM(U, 4, num_layers=2, bidirectional=True)
        self.rnn = nn.RNN(U, 4)
        self.projected = nn.LSTM(U, 6, proj_size=2)
        self.step = nn.LSTMCell(U, 3)


def assert_equals(layers, model):
    x = X
    for layer in layers:
        x = layer(x)
    torch.testing.assert_close(x, model.gru(X)[0])


def optimizer_state(model):
    optimizer = torch.optim.Adam(model.parameters())
    model.gru(X)[0].sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def wrap(model, key):
    state = {"epoch": 3, "optimizer": optimizer_state(model), "loss": 0.5, "names": ["a"]}
    return state | {key: model.state_dict()}


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net", "ema", "anything"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin"])
def test_a_state_dict_under_a_key(tmp_path, key, suffix):
    model, path = Model(), tmp_path / f"m{suffix}"
    torch.save(wrap(model, key), path)
    layers = convert.load_layers(path)
    assert [layer.name for layer in layers] == ["gru_l0", "gru_l1"]
    assert_equals(layers, model)
    for name in ("gru_l1", f"{key}.gru_l1"):
        (layer,) = convert.load_layers(path, name)
        assert layer.name == "gru_l1" and layer.input_size == U
    assert_equals(convert.load_layers(path, key), model)


def test_a_state_dict_deeper_down(tmp_path):
    model, path = Model(), tmp_path / "m.pt"
    torch.save({"checkpoint": {"best": {"weights": model.state_dict()}}}, path)
    assert_equals(convert.load_layers(path), model)
    assert_equals(convert.load_layers(path, "checkpoint.best.weights"), model)


def test_several_state_dicts(tmp_path):
    first, second, path = Model(), Model(), tmp_path / "m.pt"
    torch.save({"ema": second.state_dict(), "model": first.state_dict()}, path)
    assert_equals(convert.load_layers(path), first)
    assert_equals(convert.load_layers(path, "ema"), second)
    torch.save({"student": first.state_dict(), "teacher": second.state_dict()}, path)
    with pytest.raises(ValueError, match=r"m\.pt: `layer` must name one of .*'student', 'teacher'.*`layer='student'`"):
        convert.load_layers(path)
    assert_equals(convert.load_layers(path, "teacher"), second)
    assert convert.load_layers(path, "student.gru_l0")[0].input_size == I
    with pytest.raises(ValueError, match=r"`layer='nope'`.*'gru_l0', 'gru_l1', .*'lstm_l0' \(LSTM"):
        convert.load_layers(path, "teacher.nope")


def lightning(model, **more):
    """What Lightning 2 writes."""
    return {
        "epoch": 1, "global_step": 20, "pytorch-lightning_version": "2.5.0",
        "state_dict": {f"model.{name}": value for name, value in model.state_dict().items()},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}, "current": {"ready": 1}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_path": "a.ckpt", "best_k_models": {}}},
        "optimizer_states": [optimizer_state(model)], "lr_schedulers": [], "hparams_name": "kwargs",
        "hyper_parameters": {"units": U, "rate": 0.1}, **more,
    }  # fmt: skip


def test_a_lightning_checkpoint(tmp_path):
    model, path = Model(), tmp_path / "epoch=1.ckpt"
    torch.save(lightning(model), path)
    assert [layer.name for layer in convert.load_layers(path)] == ["model.gru_l0", "model.gru_l1"]
    assert_equals(convert.load_layers(path), model)
    assert convert.load_layers(path, "model.gru_l1")[0].input_size == U


@pytest.mark.parametrize("value", [argparse.Namespace(units=U), pathlib.PurePosixPath("/data")], ids=type)
def test_objects_in_a_checkpoint_are_not_built(tmp_path, value):
    path = tmp_path / "m.ckpt"
    torch.save(lightning(Model(), hyper_parameters=value), path)
    with pytest.raises(ValueError, match=r"m\.ckpt: .*(argparse|pathlib).*save its state_dict by itself"):
        convert.load_layers(path)


def test_a_mapping_that_holds_itself(tmp_path):
    state = {"model": {}}
    for number in range(300):
        state["model"][f"again{number}"] = state
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"there is no GRU layer in the file; its keys are: 'model'"):
        convert.load_layers(tmp_path / "m.pt")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "decoder.cell."])
def test_a_cell(tmp_path, bias, suffix, prefix):
    cell, path = nn.GRUCell(I, U, bias=bias), tmp_path / f"m{suffix}"
    tensors = {prefix + name: value for name, value in cell.state_dict().items()}
    if suffix == ".pt":
        torch.save(tensors, path)
    else:
        from safetensors.torch import save_file

        save_file(tensors, path)
    (layer,) = convert.load_layers(path)
    assert isinstance(layer, GRU) and layer.name == (prefix.removesuffix(".") or "gru")
    state, outputs = torch.zeros(2, U), []
    for x in X.unbind(1):
        state = cell(x, state)
        outputs.append(state)
    torch.testing.assert_close(layer(X), torch.stack(outputs, 1))
    ours = GRUCell(U, input_size=I, use_bias=bias)
    ours.set_weights(layer.get_weights())
    torch.testing.assert_close(ours(X[:, 0], torch.zeros(2, U))[0], outputs[0])


def test_layers_that_are_no_gru(tmp_path):
    path = tmp_path / "m.pt"
    both = nn.ModuleDict({"a": nn.LSTM(I, U), "b": nn.GRU(I, U, bidirectional=True), "c": nn.LSTMCell(I, U)})
    torch.save(both.state_dict(), path)
    (layer,) = convert.load_layers(path)
    assert isinstance(layer, Bidirectional) and layer.name == "b_l0"
    with pytest.raises(ValueError, match=r"`layer='a_l0'` is no GRU layer of the file; it has: 'b_l0', 'a_l0' \(LSTM"):
        convert.load_layers(path, "a_l0")
    del both["b"]
    torch.save(both.state_dict(), path)
    with pytest.raises(ValueError, match=r"no GRU layer in the file; it has: .*'a_l0' \(LSTM.*'c' \(LSTM") as caught:
        convert.load_layers(path)
    assert "'c'" in str(caught.value)
    torch.save(nn.Linear(2, 3).state_dict(), path)
    with pytest.raises(ValueError, match=r"no GRU layer in the file; its keys are: 'weight', 'bias'"):
        convert.load_layers(path)
    torch.save({}, path)
    with pytest.raises(ValueError, match="its keys are: none"):
        convert.load_layers(path)


def test_our_own_weights_without_a_bias_do_not_tell_the_formula(tmp_path):
    layer = GRU(U, input_size=I, use_bias=False, reset_after=False)
    torch.save(layer.state_dict(), tmp_path / "m.pt")
    with pytest.raises(ValueError, match="'gru' has no bias.*`reset_after`"):
        convert.load_layers(tmp_path / "m.pt")
    convert.save_layers(layer, tmp_path / "m.safetensors")
    assert convert.load_layers(tmp_path / "m.safetensors")[0].reset_after is False


def test_the_command_line_takes_a_key(tmp_path, capsys):
    model, path, target = Model(), tmp_path / "m.ckpt", tmp_path / "out.pt"
    torch.save({"student": Model().state_dict(), "teacher": model.state_dict()}, path)
    parser = argparse.ArgumentParser()
    convert.add_arguments(parser)
    assert convert.main(parser.parse_args([str(path), str(target)])) == 1
    assert "'student', 'teacher'" in capsys.readouterr().err and not target.exists()
    assert convert.main(parser.parse_args([str(path), str(target), "--layer", "teacher"])) == 0
    assert_equals(convert.load_layers(target), model)
    assert convert.main(parser.parse_args([str(target), str(tmp_path / "out.ckpt")])) == 1
    assert ".ckpt" in capsys.readouterr().err and not (tmp_path / "out.ckpt").exists()
