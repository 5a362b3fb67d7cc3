"""Where Keras 3 means something else than Keras 2.9, and so than this package: each test is a row in docs/keras.md."""

import keras_pairs
import pytest
import torch
from keras_pairs import B, I, T, U, assert_same, draw, make_pair

import tritongru
from tritongru.keras import GRU, Bidirectional

keras = keras_pairs.keras
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


def test_hard_sigmoid():
    x = torch.linspace(-4, 4, 33, dtype=torch.float64)
    theirs = keras.activations.hard_sigmoid(x)
    assert_same(theirs, torch.nn.functional.hardsigmoid(x))
    assert not torch.allclose(theirs, tritongru.activations.hard_sigmoid(x), atol=0.05)
    # A layer of Keras 3 is matched by its own formula.
    layer, ours = make_pair(recurrent_activation="hard_sigmoid")
    ours.recurrent_activation = torch.nn.functional.hardsigmoid
    x = draw(B, T, I)
    assert_same(layer(x), ours(x))


def test_initial_state_of_a_stateful_layer():
    theirs, ours = make_pair(stateful=True)
    x, h = draw(B, T, I), draw(B, U)
    first, again = theirs(x), theirs(x, initial_state=h)
    assert_same(first, ours(x))
    with pytest.warns(UserWarning, match="ignored"):
        assert_same(ours(x, initial_state=h), make_continuation(ours, x, first))
    ours.reset_states()
    assert_same(again, ours(x, initial_state=h))


def make_continuation(layer, x, state):
    free = GRU(U, input_size=I, dtype="float64")
    free.set_weights(layer.get_weights())
    return free(x, initial_state=state)


def test_arguments_and_errors():
    x = draw(B, T, I)
    for unknown in ({"time_major": True}, {"weights": []}, {"input_length": 3}):
        with pytest.raises(ValueError, match="Unrecognized keyword"):
            keras.layers.GRU(U, **unknown)
    for unknown in ({"seed": 1}, {"use_cudnn": "auto"}):
        with pytest.raises(TypeError, match=next(iter(unknown))):
            GRU(U, **unknown)
    keras.layers.GRU(U).reset_states()
    with pytest.raises(AttributeError, match="stateful"):
        GRU(U).reset_states()
    theirs, ours = make_pair()
    # Keras 3 takes these, by broadcasting or by dropping what is too much.
    assert theirs(x, initial_state=torch.zeros(1, U)).shape == theirs(x, initial_state=[torch.zeros(B, U)] * 2).shape
    for bad in (torch.zeros(1, U), [torch.zeros(B, U)] * 2):
        with pytest.raises(ValueError, match="`initial_state`"):
            ours(x, initial_state=bad)
    whole = torch.ones(B, T, I, dtype=torch.int64)
    assert theirs(whole).dtype == torch.float64
    with pytest.raises(TypeError, match="floating"):
        ours(whole)


def test_direction_of_the_backward_layer():
    with pytest.raises(ValueError, match="go_backwards"):
        keras.layers.Bidirectional(keras.layers.GRU(U, go_backwards=True))
    assert not Bidirectional(GRU(U, go_backwards=True)).backward_layer.go_backwards


def test_dropout_of_everything():
    theirs, ours = make_pair(dropout=1.0)
    x = draw(B, T, I)
    assert_same(theirs(x, training=True), theirs(torch.zeros_like(x)))
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        ours(x, training=True)


def test_default_of_training():
    theirs, ours = make_pair(dropout=0.5)
    x = draw(B, T, I)
    assert_same(theirs(x), ours(x))
    assert not torch.allclose(ours.train()(x), theirs(x))


@pytest.mark.parametrize(
    "arguments, call, error",
    [
        ({"dropout": 0.5, "implementation": 1}, {"training": True}, RuntimeError),
        ({"unroll": True, "go_backwards": True}, {"mask": torch.ones(B, T, dtype=torch.bool)}, AttributeError),
    ],
    ids=str,
)
def test_where_keras_3_fails(arguments, call, error):
    theirs, ours = make_pair(**arguments)
    x = draw(B, T, I)
    # When a later version of Keras repairs this, the row in docs/keras.md goes.
    try:
        theirs(x, **call)
    except error:
        pass
    assert ours(x, **call).shape == (B, U)
