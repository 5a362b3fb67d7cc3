"""A stream of steps against one call over the sequence, and the jagged form against the padded one."""

import copy
import pickle

import pytest
import torch
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

import tritongru
from tritongru.keras import GRU
from tritongru.keras import jagged as ragged
from tritongru.stream import Stream

B, T, I, U = 3, 6, 2, 5


@pytest.mark.parametrize(
    "arguments",
    [{}, {"reset_after": False}, {"use_bias": False}, {"activation": "gelu"}, {"dtype": "float64"},
     {"dtype": "mixed_bfloat16"}, {"time_major": True}],
    ids=str,
)  # fmt: skip
def test_steps_equal_the_sequence(arguments):
    layer = GRU(U, input_size=I, return_sequences=True, bias_initializer="glorot_uniform", **arguments)
    x = torch.randn(B, T, I)
    stream = Stream(layer)
    steps = torch.stack([stream.step(x[:, t]) for t in range(T)], dim=1)
    whole = layer(x.transpose(0, 1)).transpose(0, 1) if layer.time_major else layer(x)
    assert steps.dtype == whole.dtype
    # In half precision the scan keeps its state in float32 between steps; a stream rounds it.
    tolerance = 2e-2 if whole.dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(steps, whole, rtol=tolerance, atol=tolerance)


def test_gradients_through_steps_and_detach():
    layer = GRU(U, input_size=I, dtype="float64")
    x = torch.randn(B, T, I, dtype=torch.float64, requires_grad=True)
    layer(x).square().sum().backward()
    expected, x.grad = x.grad.clone(), None
    stream = Stream(layer)
    for t in range(T):
        y = stream.step(x[:, t])
    y.square().sum().backward()
    torch.testing.assert_close(x.grad, expected)

    x.grad = None
    stream.reset()
    for t in range(T):
        if t == 4:
            stream.detach()
        y = stream.step(x[:, t])
    y.square().sum().backward()
    assert not x.grad[:, :4].any() and x.grad[:, 4:].all()


@pytest.mark.parametrize("rows", [[1], torch.tensor([False, True, False])], ids=["indices", "bool"])
def test_reset_of_rows(rows):
    layer = GRU(U, input_size=I)
    x, stream = torch.randn(B, 2, I), Stream(layer)
    stream.step(x[:, 0])
    before = stream.state.clone()
    stream.reset(rows)
    assert not stream.state[1].any() and torch.equal(stream.state[[0, 2]], before[[0, 2]])
    y = stream.step(x[:, 1])
    torch.testing.assert_close(y[1:2], layer(x[1:2, 1:]))
    stream.reset()
    assert stream.state is None


@pytest.mark.parametrize("training", [False, True])
def test_what_is_written_into_an_output_stays_there(training):
    layer, x = GRU(U, input_size=I), torch.randn(B, T, I)
    stream, plain = Stream(layer), Stream(layer)
    with torch.set_grad_enabled(training):
        for t in range(T):
            output, expected = stream.step(x[:, t]), plain.step(x[:, t])
            torch.testing.assert_close(output, expected)
            output.relu_().mul_(3)
    if training:
        loss = stream.step(x[:, 0]).neg_().sum()
        loss.backward()
        found = layer.kernel.grad.clone()
        layer.zero_grad()
        (-plain.step(x[:, 0])).sum().backward()
        torch.testing.assert_close(layer.kernel.grad, found)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda stream: pickle.loads(pickle.dumps(stream))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_a_copy_goes_on_by_itself(copied, dtype):
    layer = GRU(U, input_size=I, dropout=0.5, recurrent_dropout=0.5, dtype=dtype)
    x, stream = torch.randn(B, 3, I), Stream(layer)
    assert copied(stream).state is None
    stream.step(x[:, 0])
    twin = copied(stream)
    assert stream.state.requires_grad and not twin.state.requires_grad
    # The masks of the dropout are those of the stream.
    torch.testing.assert_close(twin.step(x[:, 1]), stream.step(x[:, 1]))
    twin.step(x[:, 2]).sum().backward()
    assert twin.layer.kernel.grad.any() and layer.kernel.grad is None
    state = stream.state.clone()
    twin.reset()
    assert torch.equal(stream.state, state)


@pytest.mark.filterwarnings("ignore")
def test_what_would_lose_the_state_is_refused():
    layer, x = GRU(U, input_size=I), torch.randn(B, I, requires_grad=True)
    stream = Stream(layer)

    class Model(torch.nn.Module):
        def forward(self, x):
            return stream.step(x)

    for run in (
        lambda: torch.export.export(Model(), (x,), strict=False),
        lambda: torch.jit.trace(Model(), (x,)),
        lambda: torch.func.grad(lambda x: stream.step(x).sum())(x),
        lambda: torch.func.vmap(stream.step)(x[None]),
        lambda: checkpoint(Stream(layer).step, x, use_reentrant=False).sum().backward(),
    ):
        with pytest.raises(RuntimeError, match=r"`output, state = cell\(x, state\)`"):
            run()
        assert stream.state is None


def test_a_step_that_fails_or_gives_shapes_alone_keeps_nothing():
    layer = GRU(U, input_size=I, dropout=0.5, activation="gelu", backend="eager")
    stream = Stream(layer)
    with pytest.raises(tritongru.UnsupportedError):
        stream.step(torch.randn(B, I))
    assert stream.state is None
    layer.backend = "reference"
    assert stream.step(torch.randn(B + 1, I)).shape == (B + 1, U)

    stream = Stream(GRU(U, input_size=I, device="meta"))
    assert stream.step(torch.empty(B, I, device="meta")).is_meta
    stream.layer.to_empty(device="cpu").reset_parameters()
    assert stream.step(torch.randn(B + 1, I)).shape == (B + 1, U)


def test_dropout_masks_are_kept_until_reset():
    layer = GRU(U, input_size=I, dropout=0.5, recurrent_dropout=0.5)
    stream = Stream(layer)
    stream.step(torch.randn(B, I))
    first = stream._masks
    stream.step(torch.randn(B, I))
    assert stream._masks is first
    stream.reset()
    assert stream._masks is None
    layer.eval()
    x = torch.randn(B, I)
    torch.testing.assert_close(stream.step(x), layer(x[:, None]))


@pytest.mark.bits
def test_a_captured_step_keeps_the_state_in_its_place(monkeypatch):
    """What a CUDA graph needs, without a GPU: a replay reads and writes the addresses of the capture."""
    layer = GRU(U, input_size=I)
    x, stream, plain = torch.randn(B, T, I), Stream(layer), Stream(layer)
    monkeypatch.setattr("tritongru.stream.is_capturing", lambda x: True)
    with torch.no_grad(), pytest.raises(RuntimeError, match="before the first step"):
        stream.step(x[:, 0])
    monkeypatch.undo()
    with torch.no_grad():
        expected = [plain.step(x[:, t]) for t in range(T)]
        found = [stream.step(x[:, 0])]
        monkeypatch.setattr("tritongru.stream.is_capturing", lambda x: True)
        place = stream.state.data_ptr()
        found[0] = found[0].clone()
        found += [stream.step(x[:, t]) for t in range(1, T)]
        assert stream.state.data_ptr() == place
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        stream.reset([1])
        assert stream.state.data_ptr() == place and not stream.state[1].any() and stream.state[0].all()
        stream.reset()
        assert stream.state.data_ptr() == place and not stream.state.any()
    with pytest.raises(RuntimeError, match="with gradients"):
        stream.step(x[:, 0])


def test_errors():
    with pytest.raises(TypeError, match="layer.*Linear"):
        Stream(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="go_backwards=True"):
        Stream(GRU(U, go_backwards=True))
    stream = Stream(GRU(U))
    with pytest.raises(ValueError, match=r"`x` must be a tensor \(B,I\)"):
        stream.step(torch.zeros(B, T, I))
    stream.step(torch.zeros(B, I))
    with pytest.raises(ValueError, match="batch 3.*got 2"):
        stream.step(torch.zeros(2, I))
    with pytest.raises(ValueError, match="2 features, got 4"):
        stream.step(torch.zeros(B, 4))


@pytest.mark.parametrize("lengths", [[3, 1, 4], [2, 0, 1], [0, 0], [5]], ids=str)
def test_jagged_round_trip(lengths):
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    values = torch.randn(sum(lengths), I, requires_grad=True)
    x = torch.nested.nested_tensor_from_jagged(values, offsets)
    padded, rows = ragged.to_padded(x)
    assert padded.shape == (len(lengths), max(lengths), I)
    assert rows.lengths.tolist() == lengths
    back = ragged.from_padded(padded, rows)
    assert torch.equal(back.values(), values) and torch.equal(back.offsets(), offsets)
    reversed_rows = ragged.reverse_rows(x).values()
    expected = [values[a:b].flip(0) for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    assert torch.equal(reversed_rows, torch.cat(expected))
    back.values().sum().backward()
    assert torch.equal(values.grad, torch.ones_like(values))


def test_jagged_errors():
    with pytest.raises(ValueError, match="torch.jagged"):
        ragged.to_padded(torch.nested.nested_tensor([torch.zeros(2, 3)]))


def write_by_data(layer):
    layer.kernel.data.zero_(), layer.recurrent_kernel.data.zero_()


def write_in_place(layer):
    for parameter in layer.parameters():
        parameter.mul_(-3)


CHANGED = {
    "half precision, by .data": ({"dtype": "mixed_bfloat16", "use_bias": False}, lambda layer: None, write_by_data),
    "pruned": ({}, lambda layer: prune.l1_unstructured(layer, "kernel", 0.3), write_in_place),
    "weight_norm": ({}, lambda layer: torch.nn.utils.weight_norm(layer, "kernel"), write_in_place),
    "spectral_norm": ({}, lambda layer: torch.nn.utils.spectral_norm(layer.eval(), "kernel"), write_in_place),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("what", CHANGED)
def test_changed_weights_count_in_the_next_step(what):
    arguments, prepare, write = CHANGED[what]
    layer = GRU(16, input_size=4, **arguments)
    prepare(layer)
    stream, x = Stream(layer), torch.randn(B, 4)
    with torch.no_grad():
        for _ in range(3):
            stream.step(x)
            write(layer)
            state = stream.state.clone()
            torch.testing.assert_close(stream.step(x), layer(x[:, None], initial_state=state))


def test_a_half_precision_layer_of_inference_mode():
    with torch.inference_mode():
        layer = GRU(4, input_size=2, dtype="mixed_bfloat16")
        stream = Stream(layer)
        assert all(stream.step(torch.randn(B, 2)).dtype == torch.bfloat16 for _ in range(3))


def test_dropout_masks_follow_the_dtype_of_the_layer():
    layer = GRU(U, input_size=I, dropout=0.5, recurrent_dropout=0.5).train()
    stream = Stream(layer)
    stream.step(torch.randn(B, I))
    layer.double()
    assert stream.step(torch.randn(B, I).double()).dtype == torch.float64
