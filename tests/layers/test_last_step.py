"""A step that is like the last one is not checked again: nothing may be traded for it."""

import copy
import pickle

import pytest
import torch
from torch.nn.utils import parametrizations, parametrize

from tritongru import GRU, GRUCell, Stream

B, I, U = 2, 3, 4


def cell_step(owner, x, state):
    return owner(x, state)[0]


def layer_step(owner, x, state):
    return owner(x.unsqueeze(1), initial_state=state)


@pytest.fixture(params=[GRUCell, GRU], ids=["cell", "layer"])
def made(request):
    """An owner of weights that has made a step already, and the function that makes one more."""
    owner = request.param(U, input_size=I)
    step = cell_step if request.param is GRUCell else layer_step
    with torch.no_grad():
        step(owner, torch.randn(B, I), torch.randn(B, U))
        assert owner._last_step.known is not None
        yield owner, step


def expected(owner, x, state):
    """The same step by the oracle."""
    bias = None if owner.bias is None else owner.bias
    from tritongru import gru

    return gru(x[:, None], owner.kernel, owner.recurrent_kernel, bias, state, backend="reference")[1]


def assert_right(owner, step) -> None:
    x, state = torch.randn(B, I), torch.randn(B, U)
    torch.testing.assert_close(step(owner, x, state), expected(owner, x, state))


def test_the_same_step_again(made):
    owner, step = made
    known = owner._last_step.known
    for _ in range(3):
        assert_right(owner, step)
    assert owner._last_step.known is known


CHANGES = {
    "in place": lambda owner: owner.kernel.mul_(2),
    "data": lambda owner: owner.recurrent_kernel.data.mul_(2),
    "data replaced": lambda owner: setattr(owner.bias, "data", torch.randn(2, 3 * U)),
    "parameter replaced": lambda owner: setattr(owner, "kernel", torch.nn.Parameter(torch.randn(I, 3 * U))),
    "state_dict": lambda owner: owner.load_state_dict({k: v * 2 for k, v in owner.state_dict().items()}),
    "parametrization": lambda owner: parametrizations.weight_norm(owner, "kernel"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_weights_take_effect_at_once(made, change):
    owner, step = made
    change(owner)
    assert_right(owner, step)
    assert_right(owner, step)


def test_a_parametrization_that_is_taken_away(made):
    owner, step = made
    parametrizations.weight_norm(owner, "kernel")
    assert_right(owner, step)
    parametrize.remove_parametrizations(owner, "kernel")
    assert_right(owner, step)


def test_another_dtype(made):
    owner, step = made
    owner.to(torch.float64)
    x, state = torch.randn(B, I, dtype=torch.float64), torch.randn(B, U, dtype=torch.float64)
    assert step(owner, x, state).dtype == torch.float64
    torch.testing.assert_close(step(owner, x, state), expected(owner, x, state))


@pytest.mark.parametrize(
    "x, state, error",
    [
        (torch.randn(B, I + 1), torch.randn(B, U), ValueError),
        (torch.randn(B, I), torch.randn(B, U + 1), ValueError),
        (torch.randn(B, I), torch.randn(B + 1, U), ValueError),
        (torch.ones(B, I, dtype=torch.int64), torch.randn(B, U), TypeError),
    ],
)
def test_a_wrong_argument_is_refused_as_in_the_first_step(made, x, state, error):
    owner, step = made
    for _ in range(2):
        with pytest.raises(error):
            step(owner, x, state)
        assert_right(owner, step)


def test_a_weight_of_a_wrong_shape_is_refused(made):
    owner, step = made
    owner.recurrent_kernel.data = torch.randn(U + 1, 3 * (U + 1))
    for _ in range(2):
        with pytest.raises((ValueError, RuntimeError), match="shape|must have"):
            step(owner, torch.randn(B, I), torch.randn(B, U))


def test_gradients_go_the_whole_way(made):
    owner, step = made
    x, state = torch.randn(B, I), torch.randn(B, U, requires_grad=True)
    with torch.enable_grad():
        step(owner, x, state).sum().backward()
    assert state.grad is not None and owner.kernel.grad is not None


def test_another_activation(made):
    owner, step = made
    owner.activation = torch.relu
    x, state = torch.randn(B, I), torch.randn(B, U)
    weights = owner.kernel, owner.recurrent_kernel, owner.bias
    from tritongru import gru

    right = gru(x[:, None], *weights, state, activation="relu", backend="reference")[1]
    for _ in range(2):
        torch.testing.assert_close(step(owner, x, state), right)


def test_copies_remember_nothing(made):
    owner, step = made
    for twin in (copy.deepcopy(owner), pickle.loads(pickle.dumps(owner))):
        assert twin._last_step.known is None
        assert_right(twin, step)


@torch.no_grad()
def test_dropout_is_drawn_at_each_call_of_a_layer():
    layer = GRU(U, dropout=0.5, input_size=I)
    x = torch.randn(B, 1, I)
    layer.eval()
    layer(x)
    still = layer(x)
    layer.train()
    assert any(not torch.equal(layer(x), still) for _ in range(20))


@torch.no_grad()
def test_a_masked_step_after_a_plain_one():
    layer = GRU(U, input_size=I)
    x, state = torch.randn(B, 1, I), torch.randn(B, U)
    layer(x, initial_state=state)
    masked = layer(x, initial_state=state, mask=torch.zeros(B, 1, dtype=torch.bool))
    assert torch.equal(masked, torch.zeros(B, U)), "a masked step repeats the output before it, of which there is none"


@torch.no_grad()
def test_a_stream_is_the_layer_step_by_step():
    layer = GRU(U, input_size=I, return_sequences=True)
    x, stream = torch.randn(B, 6, I), Stream(layer)
    steps = torch.stack([stream.step(x[:, t]) for t in range(6)], 1)
    assert stream._last_step.known is not None
    torch.testing.assert_close(steps, layer(x))


@pytest.mark.parametrize("batch", [B, 256])
def test_a_repeated_step_has_the_same_bits(batch):
    pytest.importorskip("numba")
    layer = GRU(128, input_size=8, backend="numba")
    x, h = torch.randn(batch, 1, 8), torch.randn(batch, 128)
    with torch.no_grad():
        first = layer(x, initial_state=h)
        for _ in range(3):
            assert torch.equal(layer(x, initial_state=h), first)


def test_the_last_decision_is_that_of_the_last_call():
    layer, x = GRU(U, input_size=I), torch.randn(B, 1, I)
    with torch.no_grad():
        layer(x), layer(x)
        plain = layer.last_decision
        layer(x, mask=torch.ones(B, 1).bool())
        assert layer.last_decision is not plain
        layer(x)
        assert layer.last_decision == plain
