"""Activations: formulas, derivatives from the output, names, serialisation."""

from __future__ import annotations

import math

import pytest
import torch

from tritongru import GRU, GRUCell, UnsupportedError, activations, gru
from tritongru.tools.oracle.cases import Case, make_arguments

NAMES = list(activations.TABLE)
WITH_DERIVATIVE = [name for name, entry in activations.TABLE.items() if entry.derivative is not None]

# Written down from the formulas of tf.keras.activations, at x = -3, -0.5 and 2.
EXPECTED = {
    "linear": lambda x: x,
    "tanh": math.tanh,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "relu": lambda x: max(x, 0.0),
    "hard_sigmoid": lambda x: min(max(0.2 * x + 0.5, 0.0), 1.0),
    "elu": lambda x: x if x > 0 else math.exp(x) - 1,
    "selu": lambda x: 1.0507009873554805 * (x if x > 0 else 1.6732632423543772 * (math.exp(x) - 1)),
    "softplus": lambda x: math.log1p(math.exp(x)),
    "softsign": lambda x: x / (1 + abs(x)),
    "exponential": math.exp,
    "leaky_relu": lambda x: x if x > 0 else 0.2 * x,
    "swish": lambda x: x / (1 + math.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))),
    "mish": lambda x: x * math.tanh(math.log1p(math.exp(x))),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_formula(name: str) -> None:
    points = [-3.0, -0.5, 2.0]
    expected = torch.tensor([EXPECTED[name](x) for x in points], dtype=torch.float64)
    result = activations.get(name)(torch.tensor(points, dtype=torch.float64))
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


def test_softmax_is_over_the_units() -> None:
    y = activations.get("softmax")(torch.randn(3, 4, 5))
    torch.testing.assert_close(y.sum(-1), torch.ones(3, 4))


@pytest.mark.parametrize("name", WITH_DERIVATIVE)
def test_derivative_is_a_function_of_the_output(name: str) -> None:
    # The kinks (0 and, for hard_sigmoid, 2.5) are not among the points.
    x = torch.linspace(-4, 4, 80, dtype=torch.float64).requires_grad_()
    entry = activations.TABLE[name]
    y = entry.function(x)
    (expected,) = torch.autograd.grad(y.sum(), x)
    assert entry.derivative is not None
    torch.testing.assert_close(entry.derivative(y.detach()), expected, rtol=1e-9, atol=1e-12)


def test_kernel_numbers_are_distinct_and_need_a_derivative() -> None:
    numbered = [entry for entry in activations.TABLE.values() if entry.kernel_id is not None]
    assert sorted(entry.kernel_id for entry in numbered) == list(range(len(numbered)))
    assert all(entry.derivative is not None for entry in numbered)


@pytest.mark.parametrize("name", NAMES)
def test_serialize_round_trip(name: str) -> None:
    function = activations.get(name)
    assert activations.serialize(function) == name
    assert activations.deserialize(name) is function


def test_aliases_and_well_known_callables() -> None:
    assert activations.get("silu") is activations.get("swish")
    assert activations.get(None) is activations.linear
    assert activations.resolve(torch.tanh).name == "tanh"
    assert activations.resolve(torch.nn.Sigmoid()).name == "sigmoid"
    assert activations.resolve({"class_name": "relu"}).name == "relu"


def test_custom_objects_come_first() -> None:
    def double(x):
        return 2 * x

    assert activations.deserialize("tanh", {"tanh": double}) is double


def test_softplus_is_exact_for_large_input() -> None:
    assert activations.softplus(torch.tensor(-40.0, dtype=torch.float64)) == pytest.approx(math.exp(-40), rel=1e-12)
    assert float(activations.softplus(torch.tensor(1000.0))) == 1000.0


def call_with(argument: str, function, x: torch.Tensor) -> torch.Tensor:
    kernel, recurrent = (torch.ones(rows, 12, dtype=x.dtype) for rows in (x.shape[2], 4))
    return gru(x, kernel, recurrent, **{argument: function})[0]


WRONG_RESULTS = {
    "none": (lambda x: None, TypeError, "returned None"),
    "number": (lambda x: 1.0, TypeError, "returned float"),
    "pair": (lambda x: (x, x), TypeError, "returned tuple"),
    "shape": (lambda x: x[:, :1], ValueError, r"\(2, 4\) of torch.float32 on cpu; it returned \(2, 1\) of"),
    "dtype": (lambda x: x.double(), ValueError, r"it returned \(2, 4\) of torch.float64 on cpu"),
    "device": (lambda x: x.to("meta"), ValueError, r"it returned \(2, 4\) of torch.float32 on meta"),
}


@pytest.mark.parametrize("argument", ["activation", "recurrent_activation"])
@pytest.mark.parametrize(("function", "error", "message"), WRONG_RESULTS.values(), ids=WRONG_RESULTS)
def test_a_callable_that_gives_something_else_is_named(argument: str, function, error, message: str) -> None:
    with pytest.raises(error, match=f"`{argument}`=<lambda> must return a tensor like its input.*{message}"):
        call_with(argument, function, torch.ones(2, 3, 5))
    layer = GRU(4, **{argument: function})
    with pytest.raises(error, match=f"`{argument}`=<lambda>.*{message}"):
        layer(torch.ones(2, 3, 5))


def test_a_callable_under_autocast_may_cast_inside() -> None:
    def bent(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x.float() * 2)

    x = torch.randn(2, 3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = call_with("activation", bent, x)
    assert outputs.dtype == torch.bfloat16
    expected = call_with("activation", lambda x: torch.tanh(x * 2), x)
    torch.testing.assert_close(outputs.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_callable_is_compiled_with_its_layer(dynamic: bool) -> None:
    layer, x = GRU(4, lambda x: torch.tanh(x * 2), input_size=5, return_sequences=True), torch.randn(2, 3, 5)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    torch.testing.assert_close(compiled(x), layer(x))


def test_bad_names() -> None:
    with pytest.raises(ValueError, match="recurrent_activation.*'tanhh'.*known"):
        activations.resolve("tanhh", "recurrent_activation")
    with pytest.raises(TypeError, match="activation.*3"):
        activations.resolve(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Cannot serialize"):
        activations.serialize(lambda x: x)


def test_a_callable_with_the_name_of_an_activation_is_itself() -> None:
    def tanh(value):
        return torch.tanh(2 * value)

    def sigmoid(value):
        return torch.sigmoid(2 * value)

    case = make_arguments(Case())
    for given in ({"activation": tanh}, {"recurrent_activation": sigmoid}):
        expected = gru(**case | given, backend="reference")[0]
        assert torch.equal(gru(**case | given)[0], expected)
        for backend in ("aten", "numba", "eager"):
            with pytest.raises(UnsupportedError, match="'another (tanh|sigmoid)'"):
                gru(**case | given, backend=backend)
        cell = GRUCell(9, **given)
        x = torch.randn(2, 4)
        for _ in range(2):  # the second step is one of a known kind
            output, _ = cell(x, torch.zeros(2, 9))
        again = GRUCell(9, **given, backend="reference", input_size=4)
        again.set_weights(cell.get_weights())
        torch.testing.assert_close(output, again(x, torch.zeros(2, 9))[0])
