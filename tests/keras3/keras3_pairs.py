"""Layers and models of Keras 3 in pairs: with Keras's GRU, and with ours in its place."""

import os

# Keras settles on a backend when it is imported.
os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np
import pytest
import torch

keras = pytest.importorskip("keras")
if keras.backend.backend() != "torch":
    pytest.skip("Keras runs on another backend than torch", allow_module_level=True)

from tritongru.keras3 import GRU  # noqa: E402

B, T, I, U = 4, 6, 3, 5
MASKS = {
    "none": None,
    "right padding": [[1] * 6, [1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0]],
    "left padding": [[1] * 6, [0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1], [0, 1, 1, 1, 1, 1]],
    "holes and an empty row": [[1, 0, 1, 1, 0, 1], [0] * 6, [0, 1, 1, 0, 0, 1], [0, 0, 1, 0, 0, 0]],
}
TOKENS = np.array(
    [[1, 2, 3, 4, 5, 6], [7, 2, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [3, 0, 5, 5, 0, 1],
     [8, 8, 1, 0, 0, 0], [0, 0, 4, 4, 2, 2], [6, 5, 4, 3, 2, 1], [1, 1, 0, 0, 0, 0]], dtype="int32",
)  # fmt: skip
TARGETS = np.linspace(-1, 1, 8, dtype="float32")[:, None]
# Sums of up to some hundred terms of size one, in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def mask_of(name):
    return None if MASKS[name] is None else torch.tensor(MASKS[name], dtype=torch.bool)


def make_pair(shape=(B, T, I), **arguments):
    """Return `keras.layers.GRU` and our layer with the same weights and the same seed of dropout."""
    pair = []
    for cls in (keras.layers.GRU, GRU):
        keras.utils.set_random_seed(7)
        layer = cls(U, **{"seed": 3, "bias_initializer": "glorot_uniform", **arguments})
        layer.build(shape)
        pair.append(layer)
    pair[1].set_weights(pair[0].get_weights())
    return pair


def flatten(result):
    return [value for part in result for value in flatten(part)] if isinstance(result, (tuple, list)) else [result]


def assert_same(theirs, ours, what="", **tolerance):
    theirs, ours = flatten(theirs), flatten(ours)
    assert len(theirs) == len(ours)
    for index, (expected, actual) in enumerate(zip(theirs, ours, strict=True)):
        torch.testing.assert_close(
            torch.as_tensor(actual),
            torch.as_tensor(expected),
            **(tolerance or CLOSE),
            msg=lambda m, i=index: f"{what} {i}: {m}",
        )


def run_with_gradients(layer, inputs, **call):
    """Return the outputs of a call, and the gradients of its inputs and of the weights."""
    leaves = [value.clone().requires_grad_() for value in inputs]
    state = {} if len(leaves) == 1 else {"initial_state": [leaves[1]]}
    outputs = flatten(layer(leaves[0], **state, **call))
    generator = torch.Generator().manual_seed(5)
    loss = sum((y * torch.randn(y.shape, generator=generator, dtype=torch.float32)).sum() for y in outputs)
    weights = [w.value for w in layer.trainable_weights]
    return outputs, list(torch.autograd.grad(loss, leaves + weights))


def tagger(cls, stateful=False, **arguments):
    """Return a model whose mask comes from an Embedding and goes through both directions into a second GRU."""
    keras.utils.set_random_seed(11)
    return keras.Sequential(
        [
            keras.layers.Input((6,), dtype="int32", batch_size=4 if stateful else None),
            keras.layers.Embedding(9, 4, mask_zero=True),
            keras.layers.Bidirectional(cls(5, return_sequences=True, **arguments)),
            cls(3, stateful=stateful, **arguments),
            keras.layers.Dense(1),
        ]
    )


def fit(model, epochs=3, **compilation):
    """Return the losses of `epochs` of training, always with the same random numbers."""
    model.compile(keras.optimizers.Adam(0.02), "mse", **compilation)
    keras.utils.set_random_seed(5)
    return model.fit(TOKENS, TARGETS, epochs=epochs, batch_size=4, shuffle=False, verbose=0).history["loss"]


def gru_layers(model):
    """Return all GRU layers of a model, in its order."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.GRU)]
