"""`tritongru.keras3.GRU` beside `keras.layers.GRU`: outputs, states, gradients, dropout, policies, training losses."""

import itertools

import keras3_pairs
import pytest
import torch
from keras3_pairs import MASKS, B, I, T, U, assert_same, fit, make_pair, mask_of, run_with_gradients, tagger

from tritongru.keras3 import GRU

keras = keras3_pairs.keras
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

DROPOUT = {"none": {}, "input": {"dropout": 0.4}, "both": {"dropout": 0.3, "recurrent_dropout": 0.4}}


@pytest.mark.parametrize("dropout", DROPOUT)
@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("mask", MASKS)
def test_outputs_states_and_gradients(mask, reset_after, dropout):
    x, h = torch.randn(B, T, I), torch.randn(B, U)
    for backwards, sequences, zero, state in itertools.product([True, False], repeat=4):
        pair = make_pair(
            reset_after=reset_after,
            go_backwards=backwards,
            return_sequences=sequences,
            return_state=state,
            zero_output_for_mask=zero,
            **DROPOUT[dropout],
        )
        for training in (False, True):
            theirs, ours = (run_with_gradients(layer, [x, h], mask=mask_of(mask), training=training) for layer in pair)
            assert_same(theirs, ours, (backwards, sequences, zero, state, training))


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("dropout", [0.0, 0.4, 1.0])
def test_few_steps(steps, dropout):
    pair = make_pair((B, steps, I), dropout=dropout, return_sequences=True, return_state=True)
    for training in (True, False):
        assert_same(*(run_with_gradients(layer, [X[:, :steps]], training=training) for layer in pair))


X = torch.randn(B, T, I, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("mask", ["none", "holes and an empty row"])
@pytest.mark.parametrize(
    "arguments",
    [{"use_bias": False}, {"use_bias": False, "reset_after": False}, {"unroll": True}, {"use_cudnn": False},
     {"use_cudnn": False, "dropout": 1.0}, {"implementation": 1}, {"implementation": 0, "dropout": 0.2},
     {"recurrent_dropout": 1.0}, {"dropout": 1.0}, {"dtype": "float64"}],
    ids=str,
)  # fmt: skip
def test_arguments(arguments, mask):
    pair = make_pair(return_sequences=True, return_state=True, **arguments)
    assert_same(*(run_with_gradients(layer, [X], mask=mask_of(mask), training=True) for layer in pair))


NAMES = [name for name in vars(keras.activations) if not name.startswith("_")]
ACTIVATIONS = [name for name in NAMES if name not in ("get", "serialize", "deserialize", "glu", "threshold")]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_of_keras(name):
    # Gates that are not between 0 and 1 let a state grow, and its rounding with it: small numbers and few steps.
    for arguments, x in (({"activation": name}, X), ({"recurrent_activation": name}, 0.2 * X[:, :3])):
        for mask in ("none", "holes and an empty row"):
            steps = None if mask == "none" else mask_of(mask)[:, : x.shape[1]]
            pair = make_pair(**arguments)
            assert_same(*(run_with_gradients(layer, [x], mask=steps) for layer in pair), (arguments, mask))


def test_there_are_activations():
    assert {"tanh", "hard_sigmoid", "relu6", "gelu", "softmax", "mish"} <= set(ACTIVATIONS)


def test_an_activation_that_is_a_callable_or_a_layer():
    for activation in (lambda x: torch.sin(x), keras.layers.LeakyReLU(0.3)):
        assert_same(*(run_with_gradients(layer, [X]) for layer in make_pair(activation=activation)))


def test_keras_hard_sigmoid_has_a_fast_scan():
    ours = make_pair(recurrent_activation="hard_sigmoid", activation="hard_sigmoid")[1]
    ours.backend = "eager"  # Refuses functions whose derivative it does not know.
    ours(X)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16"])
@pytest.mark.parametrize("mask", ["none", "holes and an empty row"])
def test_policies_of_half_precision(policy, mask):
    theirs, ours = make_pair(
        dtype=policy, return_sequences=True, return_state=True, recurrent_initializer="glorot_uniform"
    )
    # Keras rounds the state at every step; three units of rounding of a number below one.
    unit = torch.finfo(torch.bfloat16 if "bfloat16" in policy else torch.float16).eps
    for expected, actual in zip(theirs(X, mask=mask_of(mask)), ours(X, mask=mask_of(mask)), strict=True):
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual, expected, rtol=0, atol=3 * unit)
    assert [w.dtype for w in ours.weights] == [w.dtype for w in theirs.weights]


def test_masks_in_every_form():
    theirs, ours = make_pair()
    mask = mask_of("holes and an empty row")
    for form in (mask, mask[..., None], mask.float(), mask.int(), mask.numpy(), [mask]):
        assert_same(theirs(X, mask=mask), ours(X, mask=form))
    with pytest.raises(ValueError, match="mask"):
        ours(X, mask=mask[:, :4])


def test_other_inputs():
    theirs, ours = make_pair(return_state=True)
    assert_same(theirs(X.numpy()), ours(X.numpy()))
    assert_same(theirs(torch.ones(B, T, I, dtype=torch.int64)), ours(torch.ones(B, T, I, dtype=torch.int64)))
    one = torch.randn(1, U)
    assert_same(theirs(X, initial_state=one), ours(X, initial_state=one))
    two = [torch.randn(B, U)] * 2
    assert_same(theirs(X, initial_state=two), ours(X, initial_state=two))


@pytest.mark.parametrize("mask", ["none", "holes and an empty row"])
def test_stateful_calls(mask):
    pair = make_pair(stateful=True, return_sequences=True)
    for _ in range(3):
        x = torch.randn(B, T, I)
        assert_same(*(layer(x, mask=mask_of(mask)) for layer in pair))
        assert_same(*(layer.states[0].value for layer in pair))
    assert_same(*(layer(X, initial_state=torch.ones(B, U)) for layer in pair))
    for layer in pair:
        layer.reset_state()
    assert_same(*(layer(X) for layer in pair))
    with pytest.raises(ValueError, match="batch size"):
        pair[1](X[:2])


def test_a_stateful_layer_trains_where_keras_fails_without_a_mask():
    layers = [keras.layers.Input((T, I), batch_size=B), GRU(U, stateful=True), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.compile("adam", "mse")
    x = torch.randn(2 * B, T, I).numpy()
    losses = model.fit(x, x[:, 0, :1], batch_size=B, epochs=5, shuffle=False, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("dropout", DROPOUT)
@pytest.mark.parametrize("reset_after", [True, False])
def test_losses_of_training(reset_after, dropout):
    arguments = {
        "reset_after": reset_after,
        "kernel_regularizer": "l2",
        "activity_regularizer": "l1",
        "recurrent_constraint": "max_norm",
        **DROPOUT[dropout],
    }
    theirs, ours = tagger(keras.layers.GRU, **arguments), tagger(GRU, **arguments)
    assert_same(fit(theirs), fit(ours))
    assert_same(*(model.predict(keras3_pairs.TOKENS, verbose=0) for model in (theirs, ours)))
    assert_same(*(model.get_weights() for model in (theirs, ours)), rtol=1e-4, atol=1e-4)


def test_losses_of_training_with_a_kept_state():
    theirs, ours = tagger(keras.layers.GRU, stateful=True), tagger(GRU, stateful=True)
    assert_same(fit(theirs), fit(ours))


def test_losses_of_training_under_a_mixed_policy():
    theirs, ours = tagger(keras.layers.GRU, dtype="mixed_bfloat16"), tagger(GRU, dtype="mixed_bfloat16")
    assert_same(fit(theirs), fit(ours), rtol=0.02, atol=0.02)
