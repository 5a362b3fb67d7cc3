"""The graph behind a call, misused: backward twice, inputs changed in place, inference mode."""

from __future__ import annotations

import pytest
import torch

import tritongru
from tritongru import compat, gru
from tritongru.tools.oracle.cases import Case, differentiated, make_arguments

BACKENDS = ("eager", "aten", "reference")
EVERYTHING = Case(3, 5, 4, 6, "float64", mask=True, resets=True, reset_state="rows", recurrent_dropouts=1)
PLAIN = Case(3, 5, 4, 6, "float64")


def started(case: Case, backend: str) -> tuple[dict, dict, torch.Tensor, torch.Tensor]:
    """Return the arguments of a call, its leaves, its outputs and its state."""
    arguments = make_arguments(case)
    leaves = {name: value.clone().requires_grad_() for name, value in differentiated(arguments).items()}
    arguments |= leaves
    return (arguments, leaves, *gru(**arguments, backend=backend))


@pytest.mark.bits
@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_twice_raises_as_torch_does(backend: str) -> None:
    _, leaves, outputs, _ = started(PLAIN, backend)
    loss = outputs.square().sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    _, leaves, outputs, _ = started(PLAIN, backend)
    loss = outputs.square().sum()
    first = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True)
    again = torch.autograd.grad(loss, list(leaves.values()))
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recompute"])
@pytest.mark.parametrize("name", ["x", "kernel", "recurrent_kernel", "bias", "initial_state", "mask", "resets",
                                  "reset_state", "recurrent_dropout", "outputs", "state"])  # fmt: skip
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tensor_changed_before_backward_is_an_error_or_does_not_matter(backend, name, recompute) -> None:
    case = PLAIN if backend == "aten" else EVERYTHING
    if name not in make_arguments(case) and name not in ("outputs", "state"):
        pytest.skip(f"{backend} takes no {name}")
    case = Case(**(vars(case) | {"recompute": recompute and backend == "eager"}))

    def gradients(change: bool) -> tuple[torch.Tensor, ...]:
        arguments, leaves, outputs, state = started(case, backend)
        # A clone, so that the change below touches the call's own result and not the loss.
        loss = (outputs.clone().square().sum() + state.clone().sum()) if change else (outputs**2).sum() + state.sum()
        if change:
            value = {**arguments, "outputs": outputs, "state": state}[name]
            with torch.no_grad():
                value.logical_not_() if value.dtype == torch.bool else value.add_(1)
        return torch.autograd.grad(loss, list(leaves.values()))

    expected = gradients(False)
    try:
        actual = gradients(True)
    except RuntimeError as error:
        assert "inplace" in str(error)
        return
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["x", "kernel", "recurrent_kernel", "mask", "resets"])
def test_what_the_scan_keeps_is_watched(name: str) -> None:
    """The test above would pass if nothing were noticed and nothing mattered; these are kept, and noticed."""
    # With a mask a copy of `x` is kept, whose padding is zero.
    arguments, leaves, outputs, _ = started(PLAIN if name == "x" else EVERYTHING, "eager")
    with torch.no_grad():
        arguments[name].logical_not_() if arguments[name].dtype == torch.bool else arguments[name].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_one_argument_wants_a_gradient(backend: str) -> None:
    case = PLAIN if backend == "aten" else EVERYTHING
    arguments, leaves, outputs, _ = started(case, backend)
    expected = torch.autograd.grad(outputs.square().sum(), list(leaves.values()))
    for (name, leaf), right in zip(leaves.items(), expected, strict=True):
        alone = {**arguments, **{other: value.detach() for other, value in leaves.items()}, name: leaf}
        outputs, _ = gru(**alone, backend=backend)
        (gradient,) = torch.autograd.grad(outputs.square().sum(), leaf)
        torch.testing.assert_close(gradient, right, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.bits
@pytest.mark.parametrize("backend", BACKENDS)
def test_inference_mode_gives_the_same_outputs(backend: str) -> None:
    arguments = make_arguments(PLAIN if backend == "aten" else EVERYTHING)
    expected = gru(**arguments, backend=backend)
    with torch.inference_mode():
        actual = gru(**arguments, backend=backend)
    for a, b in zip(actual, expected, strict=True):
        assert a.is_inference() and torch.equal(a, b)


@pytest.mark.parametrize(
    "make",
    [
        lambda: tritongru.GRU(6, input_size=4, return_sequences=True, dropout=0.2, recurrent_dropout=0.2),
        lambda: tritongru.GRU(6, input_size=4, return_sequences=True, stateful=True),
        lambda: tritongru.Bidirectional(tritongru.GRU(6, input_size=4, return_sequences=True)),
        lambda: compat.GRU(4, 6, 2, bidirectional=True, batch_first=True),
    ],
    ids=["dropout", "stateful", "bidirectional", "drop-in"],
)
def test_a_layer_used_in_inference_mode_can_still_be_trained(make) -> None:
    layer, x = make(), torch.randn(3, 5, 4)
    with torch.inference_mode():
        layer(x)
    output = layer(x)
    (output[0] if isinstance(output, tuple) else output).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in layer.parameters())


def test_a_stream_begun_in_inference_mode_can_be_trained_from() -> None:
    layer, x = tritongru.GRU(6, input_size=4, dropout=0.2), torch.randn(3, 5, 4)
    stream = tritongru.Stream(layer)
    with torch.inference_mode():
        stream.step(x[:, 0])
    stream.step(x[:, 1]).sum().backward()
    assert torch.isfinite(layer.kernel.grad).all()


def test_half_weights_cast_in_inference_mode_are_not_trained_with() -> None:
    layer, x = tritongru.GRU(6, input_size=4, dtype="mixed_bfloat16"), torch.randn(3, 4)
    stream = tritongru.Stream(layer)
    with torch.inference_mode():
        stream.step(x)
    with torch.no_grad():
        stream.step(x)
    stream.reset()
    stream.step(x).sum().backward()
    assert torch.isfinite(layer.kernel.grad).all()


def test_an_input_computed_from_another_is_counted_once_under_create_graph() -> None:
    a = make_arguments(Case(2, 3, 4, 4, "float64", time_major=True))

    def penalty(backend: str) -> tuple[torch.Tensor, ...]:
        x = a["x"].clone().requires_grad_()
        outputs, _ = gru(**(a | {"x": x, "initial_state": 2 * x[0]}), backend=backend)
        (gradient,) = torch.autograd.grad(outputs.square().sum(), x, create_graph=True)
        return gradient, *torch.autograd.grad(gradient.square().sum(), x)

    for actual, right in zip(penalty("eager"), penalty("reference"), strict=True):
        torch.testing.assert_close(actual, right)
