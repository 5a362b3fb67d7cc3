"""What no layer can do with what it is given: one error that names the argument, and the layer as it was."""

import numpy as np
import pytest
import torch

import tritongru
from tritongru import GRU, Bidirectional, GRUCell, Stream, convert

B, T, I, U = 2, 5, 3, 4
X, H = torch.zeros(B, T, I), torch.zeros(B, U)


def layer(**options) -> GRU:
    return GRU(U, input_size=I, **options)


def stateful() -> GRU:
    made = layer(stateful=True)
    made(X)
    return made


WEIGHTS = [np.zeros((I, 3 * U)), np.zeros((U, 3 * U)), np.zeros((2, 3 * U))]
CALLS = {
    "mask": (lambda: layer()(X, mask="no"), TypeError, "`mask`.*'no'"),
    "resets": (lambda: layer()(X, resets="no"), TypeError, "`resets`.*'no'"),
    "initial_state": (lambda: layer()(X, initial_state="no"), TypeError, "`initial_state`.*'no'"),
    "states": (lambda: stateful().reset_states("no"), TypeError, "`states`.*'no'"),
    "build": (lambda: GRU(U).build(None), ValueError, "`input_size`.*None"),
    "build with a shape": (lambda: GRU(U).build((B, T, None)), ValueError, r"`input_size`.*None in \(2, 5, None\)"),
    "weights None": (lambda: layer().set_weights(None), TypeError, "`weights`.*None"),
    "weights text": (lambda: layer().set_weights("abc"), TypeError, "`weights`.*'abc'"),
    "explain": (lambda: tritongru.explain(torch.nn.Linear(I, U), X), TypeError, "`layer`.*Linear"),
    "cell input": (lambda: GRUCell(U, input_size=I)([[0.0]], H), TypeError, "`inputs`.*list"),
    "cell state": (lambda: GRUCell(U, input_size=I)(X[:, 0], None), TypeError, "`states`.*None"),
    "both, resets": (lambda: Bidirectional(layer())(X, resets=True), ValueError, r"`resets`.*\(\)"),
    "regularizer": (
        lambda: layer(kernel_regularizer=lambda w: None).losses,
        TypeError,
        "regularizer of `kernel`.*None",
    ),
    "regularizer, rows": (lambda: layer(bias_regularizer=lambda w: w.sum(0)).losses, ValueError, r"`bias`.*\(12,\)"),
    "activity": (lambda: layer(activity_regularizer=lambda y: y)(X), ValueError, r"`activity_regularizer`.*\(2, 4\)"),
    "constraint": (
        lambda: layer(kernel_constraint=lambda w: None).apply_constraints(),
        ValueError,
        "constraint of `kernel`.*None",
    ),
    "constraint, rows": (
        lambda: layer(recurrent_constraint=lambda w: w[:1]).apply_constraints(),
        ValueError,
        r"\(4, 12\), got \(1, 12\)",
    ),
    "initializer": (lambda: layer(kernel_initializer=lambda s, dtype: None), TypeError, r"gave NoneType .*\(3, 12\)"),
    "stream": (lambda: Stream(torch.nn.GRU(I, U)), TypeError, "`layer`.*torch.nn.modules.rnn.GRU"),
    "file": (lambda: convert.load_keras("layer.keras", torch.nn.GRU(I, U)), TypeError, "`layer`.*GRU"),
}


@pytest.mark.parametrize(("call", "error", "message"), CALLS.values(), ids=CALLS)
def test_the_argument_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("last", ["no", None, WEIGHTS[2] * 1j, WEIGHTS[2][:1]], ids=["text", "none", "complex", "row"])
def test_no_weight_is_written_where_one_is_wrong(last):
    made = layer()
    before = made.get_weights()
    with pytest.raises((TypeError, ValueError), match=r"`weights\[2\]`|`bias`"):
        made.set_weights([*WEIGHTS[:2], last])
    for value, now in zip(before, made.get_weights(), strict=True):
        np.testing.assert_array_equal(value, now)


@pytest.mark.parametrize(
    ("rows", "error"),
    [([0, 9], IndexError), ([-3], IndexError), ([True], ValueError), ([0.5], TypeError), ("no", TypeError)],
    ids=str,
)
def test_no_row_is_reset_where_one_is_wrong(rows, error):
    stream = Stream(layer(bias_initializer="ones").eval())
    with torch.no_grad():
        stream.step(X[:, 0])
    before = stream.state.clone()
    assert before.any(1).all()
    with pytest.raises(error, match="`rows`"):
        stream.reset(rows)
    assert torch.equal(stream.state, before)
    stream.reset([])
    assert torch.equal(stream.state, before)
