"""Which of Keras's features the Triton kernels run: all, but activations whose output leaves the derivative open."""

import numpy as np
import pytest
import torch

import tritongru
from tritongru import UnsupportedError
from tritongru.backends.triton import reasons as rules
from tritongru.keras import GRU, Bidirectional, GRUCell

B, T, I, U = 3, 5, 2, 4
FEATURES = {
    "default": {}, "reset before": {"reset_after": False}, "no bias": {"use_bias": False},
    "dropout": {"dropout": 0.5}, "dropout per gate": {"dropout": 0.5, "implementation": 1},
    "recurrent dropout": {"recurrent_dropout": 0.5}, "both dropouts": {"dropout": 0.2, "recurrent_dropout": 0.5},
    "recurrent dropout, reset before": {"recurrent_dropout": 0.5, "reset_after": False},
    "go_backwards": {"go_backwards": True, "return_sequences": True}, "stateful": {"stateful": True},
    "time_major": {"time_major": True}, "unroll": {"unroll": True}, "return_state": {"return_state": True},
    "zero_output_for_mask": {"zero_output_for_mask": True, "return_sequences": True},
    "regularizers": {"kernel_regularizer": "l1", "recurrent_regularizer": "l2", "activity_regularizer": "l2"},
    "constraints": {"kernel_constraint": "max_norm", "recurrent_constraint": "unit_norm", "bias_constraint": "non_neg"},
    "mixed_float16": {"dtype": "mixed_float16"}, "mixed_bfloat16": {"dtype": "mixed_bfloat16"},
    "float16": {"dtype": "float16"}, "bfloat16": {"dtype": "bfloat16"},
}  # fmt: skip
WITHOUT = {"gelu", "swish", "mish", "softmax"}


@pytest.fixture(autouse=True)
def as_if_the_device_could(monkeypatch):
    """Let the dispatcher think that the kernels can run on this device, so that it judges the features alone."""
    monkeypatch.setattr(rules, "reasons_against_environment", lambda *_: ())
    monkeypatch.setattr(rules, "is_interpreted", lambda: True)


def reasons(layer, x, **call):
    """What stands against the kernels for a call, nothing where they can be named."""
    try:
        assert layer.explain(x, **call).backend == "triton"
    except UnsupportedError as error:
        return error.rejected["triton"]
    return ()


@pytest.mark.parametrize("mask", [False, True], ids=["all", "mask"])
@pytest.mark.parametrize("feature", FEATURES)
def test_every_feature(feature, mask):
    layer = GRU(U, backend="triton", **FEATURES[feature])
    x = torch.randn(T, B, I) if layer.time_major else torch.randn(B, T, I)
    steps = torch.rand(x.shape[:2]) < 0.5 if mask else None
    for call in ({}, {"initial_state": torch.zeros(B, U)}, {"resets": torch.zeros(x.shape[:2])}):
        assert reasons(layer, x, mask=steps, training=True, **call) == ()


@pytest.mark.parametrize("arguments", [{}, {"go_backwards": True, "return_sequences": True}], ids=str)
def test_jagged_rows(arguments):
    rows = torch.nested.nested_tensor([torch.randn(n, I) for n in (2, 5, 1)], layout=torch.jagged)
    assert reasons(GRU(U, backend="triton", **arguments), rows) == ()


@pytest.mark.parametrize("mode", ["concat", "mul", None])
def test_both_directions(mode):
    layer = Bidirectional(GRU(U, backend="triton", dropout=0.5, return_sequences=True), mode)
    assert reasons(layer, torch.randn(B, T, I), mask=torch.ones(B, T)) == ()
    assert layer.backward_layer.backend == "triton"


@pytest.mark.parametrize("argument", ["activation", "recurrent_activation"])
@pytest.mark.parametrize("name", tritongru.activations.TABLE)
def test_activations(argument, name):
    found = reasons(GRU(U, backend="triton", **{argument: name}), torch.randn(B, T, I))
    expected = (f"{argument}={name!r}: its derivative is not a function of its output",) if name in WITHOUT else ()
    assert found == expected


def test_a_callable_says_so():
    found = reasons(GRU(U, backend="triton", activation=torch.special.erf), torch.randn(B, T, I))
    assert len(found) == 1 and "activation='special_erf' is not one of this package's activations" in found[0]


def test_only_the_dtype_stands_against_float64():
    found = reasons(GRU(U, backend="triton", dtype="float64"), torch.randn(B, T, I))
    assert len(found) == 1 and "float64" in found[0]


@pytest.mark.parametrize("backend", ["reference", "eager", "aten"])
def test_the_backend_that_was_named_is_the_one_that_ran(backend, monkeypatch):
    """A spy in each: a layer that fell back in silence would be seen."""
    from tritongru import functional
    from tritongru.backends import operators

    ran = []
    for name, module, function in (
        ("reference", functional, "_run_reference"),
        ("aten", functional, "run_aten"),
        ("eager", operators.eager, "run_forward"),
    ):
        original = getattr(module, function)

        def spy(*arguments, name=name, original=original):
            ran.append(name)
            return original(*arguments)

        monkeypatch.setattr(module, function, spy)
    x = torch.randn(B, T, I)
    GRU(U, backend=backend)(x)
    assert ran == [backend]
    Bidirectional(GRU(U, backend=backend))(x)
    assert ran == [backend] * 3


def test_weights_behind_a_parametrization():
    class Doubled(torch.nn.Module):
        def forward(self, w):
            return 2 * w

        def right_inverse(self, w):
            return w / 2

    layer = GRU(U, input_size=I, recurrent_constraint="non_neg")
    torch.nn.utils.parametrize.register_parametrization(layer, "recurrent_kernel", Doubled())
    weights = [np.full(w.shape, 0.5, "float32") for w in layer.get_weights()]
    layer.set_weights(weights)
    assert all(np.array_equal(a, b) for a, b in zip(layer.get_weights(), weights, strict=True))
    layer.set_weights([-w for w in weights])
    layer.apply_constraints()
    assert not layer.recurrent_kernel.any() and (layer.kernel == -0.5).all()
    layer.trainable = False
    assert layer.count_params() == 3 * (I * U + U * U) + 6 * U and layer.trainable_weights == []

    layer = GRU(U, input_size=I)
    one_way = torch.nn.Module()
    one_way.forward = lambda w: w * 2
    torch.nn.utils.parametrize.register_parametrization(layer, "kernel", one_way)
    with pytest.raises(ValueError, match="`kernel` of gru cannot be set.*right_inverse"):
        layer.set_weights(weights)


def test_a_cell_is_one_step():
    cell = GRUCell(U, backend="eager", input_size=I)
    assert cell.state_size == cell.output_size == U and cell.get_initial_state(None, 3, "float64").shape == (3, U)
