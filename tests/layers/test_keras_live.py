"""Side by side with Keras 3 on its torch backend: one set of weights, and the same numbers wherever the meaning is one.

`test_keras_differences.py` holds what Keras 3 means otherwise.
"""

import math

import keras_pairs
import numpy as np
import pytest
import torch
from keras_pairs import MASKS, ROUNDING, B, I, T, U, assert_same, assert_same_gradients, draw, make_pair, mask_of

import tritongru
from tritongru.keras import GRU, Bidirectional, constraints, initializers, regularizers

keras = keras_pairs.keras
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("sequences", [True, False])
@pytest.mark.parametrize("backwards", [True, False])
@pytest.mark.parametrize("reset_after", [True, False])
def test_outputs_states_and_gradients(reset_after, backwards, sequences, mask):
    theirs, ours = make_pair(
        reset_after=reset_after, go_backwards=backwards, return_sequences=sequences, return_state=True
    )
    steps = mask_of(mask)
    assert_same_gradients(
        theirs,
        ours,
        lambda x, h: theirs(x, mask=steps, initial_state=h),
        lambda x, h: ours(x, mask=steps, initial_state=h),
        [draw(B, T, I), draw(B, U)],
    )


@pytest.mark.parametrize(
    "arguments",
    [{}, {"use_bias": False}, {"use_bias": False, "reset_after": False}, {"unroll": True, "return_sequences": True},
     {"implementation": 1}, {"return_sequences": True, "zero_output_for_mask": True}, {"zero_output_for_mask": True},
     {"zero_output_for_mask": True, "go_backwards": True, "return_sequences": True}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("mask", ["none", "holes and an empty row"])
def test_arguments(arguments, mask):
    theirs, ours = make_pair(**arguments)
    steps = mask_of(mask)
    assert_same_gradients(theirs, ours, lambda x: theirs(x, mask=steps), lambda x: ours(x, mask=steps), [draw(B, T, I)])


@pytest.mark.parametrize("name", [name for name in tritongru.activations.TABLE if name != "hard_sigmoid"])
def test_activations(name):
    x = torch.linspace(-7, 7, 57, dtype=torch.float64)
    assert_same(keras.activations.get(name)(x), tritongru.activations.get(name)(x))
    arguments = {"activation": name, "recurrent_activation": "sigmoid" if name == "exponential" else name}
    theirs, ours = make_pair(**arguments)
    assert_same_gradients(theirs, ours, theirs, ours, [draw(B, T, I)])


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_policies(policy):
    theirs, ours = make_pair(dtype=policy, return_state=True)
    x = draw(B, T, I)
    for expected, actual in zip(theirs(x), ours(x), strict=True):
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual, expected, rtol=0.02, atol=0.01)
    assert [str(v.dtype) for v in theirs.weights] == ["float32"] * 3 and ours.kernel.dtype == torch.float32


def test_stateful_calls():
    theirs, ours = make_pair(stateful=True, return_sequences=True)
    for steps in (None, mask_of("holes and an empty row"), None):
        x = draw(B, T, I)
        assert_same(theirs(x, mask=steps), ours(x, mask=steps))
        assert_same(theirs.states[0].value, ours.states[0])
    theirs.reset_states()
    ours.reset_states()
    assert_same(theirs(x), ours(x))


@pytest.mark.parametrize("mode", ["concat", "sum", "mul", "ave", None])
@pytest.mark.parametrize("sequences", [True, False])
@pytest.mark.parametrize("mask", ["none", "holes and an empty row"])
def test_bidirectional(mode, sequences, mask):
    arguments = {"return_sequences": sequences, "return_state": True, "bias_initializer": "glorot_uniform"}
    arguments |= {"dtype": "float64"}
    theirs = keras.layers.Bidirectional(keras.layers.GRU(U, **arguments), merge_mode=mode, dtype="float64")
    theirs.build((B, T, I))
    ours = Bidirectional(GRU(U, input_size=I, **arguments), merge_mode=mode).eval()
    ours.set_weights(theirs.get_weights())
    steps = mask_of(mask)
    assert_same_gradients(
        theirs,
        ours,
        lambda x, f, b: theirs(x, mask=steps, initial_state=[f, b]),
        lambda x, f, b: ours(x, mask=steps, initial_state=[f, b]),
        [draw(B, T, I), draw(B, U), draw(B, U)],
    )
    assert [tuple(s) for s in theirs.compute_output_shape((B, T, I))] == ours.compute_output_shape((B, T, I))


@pytest.mark.parametrize("reset_after", [True, False])
def test_cell(reset_after):
    theirs, ours = make_pair("GRUCell", (B, I), reset_after=reset_after)
    assert_same_gradients(theirs, ours, theirs, ours, [draw(B, I), draw(B, U)])


@pytest.mark.parametrize(
    "arguments",
    [
        {"dropout": 0.5},
        {"recurrent_dropout": 0.4},
        {"dropout": 0.3, "recurrent_dropout": 0.4},
        {"dropout": 0.3, "recurrent_dropout": 0.4, "reset_after": False},
    ],
    ids=str,
)
def test_dropout_with_the_same_masks(arguments, monkeypatch):
    theirs, ours = make_pair(return_sequences=True, **arguments)
    x = draw(B, T, I)
    y = ours(x, training=True)
    # Keras keeps a mask of one step, and forgets it at the end of a call.
    if ours.dropout:
        drawn = ours.get_dropout_mask_for_cell(x, True)
        drawn = [mask[:, 0] for mask in drawn] if isinstance(drawn, list) else drawn[:, 0]
        monkeypatch.setattr(theirs.cell, "get_dropout_mask", lambda step: drawn)
    if ours.recurrent_dropout:
        kept = ours.get_recurrent_dropout_mask_for_cell(x, True)
        monkeypatch.setattr(theirs.cell, "get_recurrent_dropout_mask", lambda step: kept)
    assert_same(theirs(x, training=True), y)
    assert not torch.allclose(ours(x, training=False), y)


def test_masks_of_keras_have_the_same_law():
    theirs, ours = make_pair(dropout=0.3, recurrent_dropout=0.4)
    x, h = draw(400, I), draw(400, U)
    for name, value, rate in (("dropout", x, 0.3), ("recurrent_dropout", h, 0.4)):
        for drawn in (
            getattr(theirs.cell, f"get_{name}_mask")(value),
            getattr(ours, f"get_{name}_mask_for_cell")(value, True, count=3),
        ):
            assert len(drawn) == 3
            for mask in drawn:
                assert mask.shape == value.shape
                assert mask.mean().item() == pytest.approx(1.0, abs=0.15)
                assert mask.unique().tolist() == pytest.approx([0.0, 1 / (1 - rate)])


TRAINING = {
    "kernel_regularizer": "l1",
    "recurrent_regularizer": {"class_name": "L2", "config": {"l2": 0.05}},
    "bias_regularizer": "l2",
    "activity_regularizer": "l2",
    "kernel_constraint": "non_neg",
    "recurrent_constraint": {"class_name": "MaxNorm", "config": {"max_value": 0.8, "axis": 0}},
    "bias_constraint": "unit_norm",
}


@pytest.mark.parametrize("returns", [{}, {"return_sequences": True}], ids=str)
def test_a_training_step_with_losses_and_constraints(returns):
    theirs, ours = make_pair(dtype="float32", **TRAINING, **returns)
    assert_same([loss.detach() for loss in theirs.losses], ours.losses, "loss before a call")
    x = torch.randn(B, T, I)
    y, z = theirs(x), ours(x)
    assert_same(theirs.losses, ours.losses, "loss")
    target = torch.randn_like(y)
    model = keras.Sequential([keras.Input(batch_shape=(B, T, I)), theirs])
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    model.train_on_batch(x, target)
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    ours.apply_constraints_after(optimizer)
    ((z - target).square().mean() + ours.regularization_loss()).backward()
    optimizer.step()
    for expected, actual in zip(theirs.get_weights(), ours.get_weights(), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize(
    "name, config",
    [("MaxNorm", {"max_value": 0.7, "axis": 0}), ("MaxNorm", {"max_value": 1.5, "axis": 1}), ("NonNeg", {}),
     ("UnitNorm", {"axis": 0}), ("UnitNorm", {"axis": [0, 1]}),
     ("MinMaxNorm", {"min_value": 0.5, "max_value": 1.0, "rate": 0.3, "axis": 0})],
    ids=str,
)  # fmt: skip
def test_constraints(name, config):
    w = torch.randn(4, 9)
    theirs, ours = getattr(keras.constraints, name)(**config), getattr(constraints, name)(**config)
    assert_same(theirs(w), ours(w))
    described = keras.constraints.serialize(theirs)
    assert constraints.get(described).get_config() == ours.get_config() == described["config"]


@pytest.mark.parametrize(
    "name, config",
    [
        ("L1", {"l1": 0.3}),
        ("L2", {"l2": 0.3}),
        ("L1L2", {"l1": 0.1, "l2": 0.3}),
        ("OrthogonalRegularizer", {"factor": 0.2, "mode": "rows"}),
        ("OrthogonalRegularizer", {"factor": 0.2, "mode": "columns"}),
    ],
    ids=str,
)
def test_regularizers(name, config):
    w = torch.randn(4, 9)
    theirs, ours = getattr(keras.regularizers, name)(**config), getattr(regularizers, name)(**config)
    assert_same(theirs(w), ours(w))
    again = regularizers.get(keras.regularizers.serialize(theirs)).get_config()
    assert again == ours.get_config() == pytest.approx(config) if name != "OrthogonalRegularizer" else again


DISTRIBUTIONS = (
    "glorot_uniform glorot_normal he_uniform he_normal lecun_uniform lecun_normal random_uniform random_normal "
    "truncated_normal variance_scaling"
).split()


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_initializers_have_one_distribution(name):
    theirs = keras.initializers.get(name)
    described = keras.initializers.serialize(theirs)
    ours = initializers.get(described)
    assert ours.get_config() == {k: v for k, v in described["config"].items() if k in ours.get_config()}
    shape = (500, 1000)
    expected, actual = (
        w.flatten().double() for w in (theirs(shape), ours(shape, generator=torch.Generator().manual_seed(1)))
    )
    # Two samples of n of one distribution differ by more than this (Smirnov's statistic) once in a million draws.
    n = expected.numel()
    assert largest_gap(expected, actual) < math.sqrt(math.log(2e6) / n)
    for other in (actual * 1.05, actual + 0.02 * actual.std()):
        assert largest_gap(expected, other) > math.sqrt(math.log(2e6) / n)


def largest_gap(x: torch.Tensor, y: torch.Tensor) -> float:
    """Smirnov's statistic: the largest distance between the shares of x and of y, [n] each, up to any value."""
    values = torch.cat([x, y]).sort().values
    shares = [torch.searchsorted(sample.sort().values, values, right=True) / len(sample) for sample in (x, y)]
    return (shares[0] - shares[1]).abs().max().item()


@pytest.mark.parametrize("shape", [(4, 12), (12, 4), (5, 5)], ids=str)
def test_fixed_initializers(shape):
    for name in ("zeros", "ones", "identity"):
        assert_same(keras.initializers.get(name)(shape), initializers.get(name)(shape))
    described = keras.initializers.serialize(keras.initializers.Constant(0.3))
    assert_same(keras.initializers.get(described)(shape), initializers.get(described)(shape))
    for w in (keras.initializers.Orthogonal(gain=2.0)(shape), initializers.Orthogonal(gain=2.0)(shape)):
        gram = w @ w.T if shape[0] <= shape[1] else w.T @ w
        torch.testing.assert_close(gram, 4 * torch.eye(min(shape)), rtol=0, atol=1e-5)
