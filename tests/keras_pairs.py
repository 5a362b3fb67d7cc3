"""Layers of Keras 3, on its torch backend, and of this package in pairs that have the same weights."""

import os

# Keras settles on a backend when it is imported.
os.environ.setdefault("KERAS_BACKEND", "torch")

import pytest
import torch

from tritongru.keras import GRU, GRUCell

keras = pytest.importorskip("keras")
if keras.backend.backend() != "torch":
    pytest.skip("Keras runs on another backend than torch", allow_module_level=True)

B, T, I, U = 4, 6, 3, 5
MASKS = {
    "none": None,
    "right padding": [[1] * 6, [1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0]],
    "left padding": [[1] * 6, [0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1], [0, 1, 1, 1, 1, 1]],
    "holes and an empty row": [[1, 0, 1, 1, 0, 1], [0] * 6, [0, 1, 1, 0, 0, 1], [0, 0, 1, 0, 0, 0]],
}
# Keras multiplies matrices in float32 even in a float64 layer, so that is the rounding between the two.
ROUNDING = 4e-6


def mask_of(name):
    return None if MASKS[name] is None else torch.tensor(MASKS[name], dtype=torch.bool)


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def make_pair(kind="GRU", shape=(B, T, I), **arguments):
    """The layer of Keras and the layer of this package, with the same random weights."""
    arguments = {"dtype": "float64", **arguments}
    theirs = getattr(keras.layers, kind)(U, bias_initializer="glorot_uniform", **arguments)
    theirs.build(shape)
    ours = {"GRU": GRU, "GRUCell": GRUCell}[kind](U, input_size=I, **arguments)
    ours.set_weights(theirs.get_weights())
    return theirs, ours.eval()


def flatten(result):
    return [value for part in result for value in flatten(part)] if isinstance(result, (tuple, list)) else [result]


def assert_same(theirs, ours, what=""):
    theirs, ours = flatten(theirs), flatten(ours)
    assert len(theirs) == len(ours)
    for index, (expected, actual) in enumerate(zip(theirs, ours, strict=True)):
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(
            actual, expected, rtol=ROUNDING, atol=ROUNDING * scale, msg=lambda m, i=index: f"{what} {i}: {m}"
        )


def assert_same_gradients(theirs, ours, call_theirs, call_ours, inputs):
    """Compare outputs, and the gradients of every weight and input of one random weighting of the outputs."""
    leaves = [[value.clone().requires_grad_() for value in inputs] for _ in range(2)]
    results = [flatten(call_theirs(*leaves[0])), flatten(call_ours(*leaves[1]))]
    assert_same(*results, "output")
    weighting = [torch.randn_like(value) for value in results[0]]
    sources = [[*(v.value for v in theirs.trainable_weights), *leaves[0]], [*ours.parameters(), *leaves[1]]]
    gradients = []
    for result, wanted in zip(results, sources, strict=True):
        loss = sum((a * b).sum() for a, b in zip(result, weighting, strict=True))
        gradients.append(torch.autograd.grad(loss, wanted, materialize_grads=True))
    assert_same(*gradients, "gradient")
