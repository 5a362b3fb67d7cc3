"""`compat.GRU` with weights that are assigned, replaced or wrong, with and without gradients, call after call."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tritongru import compat, repeats

T, B, I, U = 4, 3, 5, 7


def pair(**options) -> tuple[nn.GRU, compat.GRU]:
    theirs, ours = nn.GRU(I, U, **options), compat.GRU(I, U, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize("records", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("layers", [1, 2])
def test_assigned_flat_weights_count_in_every_call(layers: int, records: bool) -> None:
    theirs, ours = pair(num_layers=layers)
    x = torch.randn(T, B, I)
    with torch.set_grad_enabled(records):
        ours(x), ours(x)  # a call of this kind is known
        for layer in (theirs, ours):
            layer._flat_weights = [w.detach() * 0.5 for w in layer._flat_weights]
        for _ in range(3):
            torch.testing.assert_close(ours(x)[0], theirs(x)[0])
        for layer in (theirs, ours):  # a parameter that is set takes its place again
            layer.weight_hh_l0 = nn.Parameter(layer.weight_hh_l0.detach().clone())
        for _ in range(2):
            torch.testing.assert_close(ours(x)[0], theirs(x)[0])


def test_the_names_stay_those_of_the_parameters() -> None:
    theirs, ours = pair()
    for _ in range(3):
        for layer in (theirs, ours):
            layer._flat_weights = [getattr(layer, name) * 0.5 for name in layer._flat_weights_names]
        assert all(map(torch.equal, ours._flat_weights, theirs._flat_weights))
    assert isinstance(ours.weight_hh_l0, nn.Parameter)
    ours(torch.randn(T, B, I))[0].sum().backward()
    assert ours.weight_hh_l0.grad is not None
    x = torch.randn(T, B, I)
    torch.testing.assert_close(ours.to_torch()(x)[0], ours(x)[0])


WRONG = {
    "dtype": lambda w: w.double(),
    "shape": lambda w: torch.ones(3, 3),
    "one number": lambda w: torch.ones(1),
    "device": lambda w: w.to("meta"),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("name", ["weight_ih_l1", "weight_hh_l0_reverse", "bias_ih_l0", "bias_hh_l1", "weight_hh_l0"])
def test_a_wrong_weight_is_refused_without_gradients_too(name: str, what: str) -> None:
    layer = compat.GRU(I, U, num_layers=2, bidirectional=True)
    setattr(layer, name, nn.Parameter(WRONG[what](getattr(layer, name).detach())))
    with torch.no_grad():
        for _ in range(2):
            with pytest.raises((ValueError, TypeError, RuntimeError)):
                layer(torch.randn(T, B, I))


def test_a_plain_layer_with_a_weight_elsewhere() -> None:
    layer, x = compat.GRU(I, U), torch.randn(T, B, I)
    with torch.no_grad():
        layer(x), layer(x)
        layer.weight_hh_l0 = nn.Parameter(layer.weight_hh_l0.to("meta"))
        with pytest.raises((ValueError, RuntimeError)):
            layer(x)


@pytest.mark.parametrize("backend", ["auto", "numba", "aten", "eager"])
@pytest.mark.parametrize("layers", [1, 2])
def test_frozen_weights_and_a_state_that_wants_a_gradient(layers: int, backend: str) -> None:
    if backend == "numba":
        pytest.importorskip("numba")
    theirs, ours = pair(num_layers=layers)
    ours = compat.GRU(I, U, num_layers=layers, backend=backend)
    ours.load_state_dict(theirs.state_dict())
    x, found = torch.randn(20, B, I), []
    for layer in (theirs.requires_grad_(False), *[ours.requires_grad_(False)] * 2):
        hx = torch.zeros(layers, B, U, requires_grad=True)
        layer(x, hx)[0].square().sum().backward()
        found.append(hx.grad)
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


@pytest.mark.parametrize("records", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_another_default_device(backend: str, records: bool) -> None:
    """A layer on the processor while a training script has said where new tensors go."""
    theirs, ours = pair()
    ours.backend = backend
    packed = nn.utils.rnn.pack_sequence([torch.randn(t, I) for t in (6, 4, 1)])
    repeats.forget()
    for steps, batch in ((1, 1), (4, 3), (40, 64)):
        x = torch.randn(steps, batch, I)
        with torch.set_grad_enabled(records):
            right = theirs(x)[0]
            with torch.device("meta"):
                for _ in range(3):
                    torch.testing.assert_close(ours(x)[0], right)
            torch.testing.assert_close(ours(x)[0], right)
    with torch.device("meta"):
        found = ours(packed)[0].data
        listed = ours(torch.randn(4, 2, I, device="cpu"), lengths=[4, 2])[0]
    torch.testing.assert_close(found, theirs(packed)[0].data)
    assert listed.device.type == "cpu"


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}], ids=str)
def test_a_checkpoint_saves_the_same_twice(options: dict, known: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    repeats.forget()
    _, ours = pair(**options)
    x, found = torch.randn(T, B, I), []
    if known:
        ours(x.clone().requires_grad_())
    for again in (False, True):
        leaf = x.clone().requires_grad_()
        output = checkpoint(ours, leaf, use_reentrant=False)[0] if again else None
        output = ours(leaf)[0] if output is None else output
        output.square().sum().backward()
        found.append(leaf.grad)
        if not known:
            repeats.forget()
    torch.testing.assert_close(found[1], found[0])


def test_zeros_without_memory() -> None:
    theirs, ours = pair()
    x = torch._efficientzerotensor(T, B, I)
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])
