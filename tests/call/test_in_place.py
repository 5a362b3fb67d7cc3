"""Writing into what a layer returned: what docs/torch.md says of it, beside torch.nn.GRU."""

import pytest
import torch
from torch import nn

import tritongru
from tritongru import compat

STEPS, B, I, U = 40, 3, 4, 5
NAMED = r"modified by an inplace operation"


def gradients(layer, write, x):
    layer.zero_grad()
    output, h_n = layer(x)
    (write(output).square().sum() + h_n.sum()).backward()
    return [p.grad.clone() for p in layer.parameters()]


def make_pair(backend, **options):
    theirs = nn.GRU(I, U, **options)
    ours = compat.GRU(I, U, backend=backend, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def in_place(output):
    return output.mul_(2)


@pytest.mark.parametrize("backend", ["aten", "eager", "reference"])
@pytest.mark.parametrize("write", [lambda y: y.clone().mul_(2), lambda y: y * 2], ids=["clone", "out of place"])
def test_what_is_always_right(backend, write):
    theirs, ours = make_pair(backend)
    x = torch.randn(STEPS, B, I)
    torch.testing.assert_close(gradients(ours, write, x), gradients(theirs, in_place, x))


def test_the_eager_scan_saves_its_output_and_says_so():
    _, ours = make_pair("eager")
    with pytest.raises(RuntimeError, match=NAMED):
        gradients(ours, in_place, torch.randn(STEPS, B, I))
    # The states are another tensor.
    output, h_n = ours(torch.randn(STEPS, B, I))
    (output.sum() + h_n.mul_(2).sum()).backward()
    with torch.no_grad():
        assert ours(torch.randn(STEPS, B, I))[0].zero_().sum() == 0


@pytest.mark.parametrize(("backend", "options"), [("aten", {}), ("reference", {}), ("eager", {"bidirectional": True})])
def test_where_an_output_is_a_copy_it_may_be_written_to(backend, options):
    theirs, ours = make_pair(backend, **options)
    x = torch.randn(STEPS, B, I)
    torch.testing.assert_close(gradients(ours, in_place, x), gradients(theirs, in_place, x))


@pytest.mark.parametrize("backend", ["reference", "eager", "numba"])
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_the_state_that_is_returned_is_not_the_callers(backend, steps):
    if backend == "numba":
        pytest.importorskip("numba")
    state = torch.randn(3, 4)
    before = state.clone()
    _, last = tritongru.gru(
        torch.randn(3, steps, 2), torch.randn(2, 12), torch.randn(4, 12), None, state, backend=backend
    )
    last.fill_(7.0)
    assert torch.equal(state, before)
