"""A call of `compat.GRU` like the one before is not checked again: what changes in between takes effect at once."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from tritongru import compat

pytest.importorskip("numba")

I, U = 5, 9


def make(**options) -> compat.GRU:
    torch.manual_seed(0)
    return compat.GRU(I, U, **options)


def check(layer: compat.GRU, x: torch.Tensor, hx: torch.Tensor | None = None) -> None:
    """Hold a call of `layer` to torch.nn.GRU with its weights, twice: the second is like the first."""
    twin = nn.GRU(x.shape[2], layer.hidden_size, bias=layer.bias, batch_first=layer.batch_first, dtype=x.dtype)
    with torch.no_grad():
        for name, value in twin.named_parameters():
            value.copy_(getattr(layer, name))
        for _ in range(2):
            for ours, theirs in zip(layer(x, hx), twin(x, hx), strict=True):
                torch.testing.assert_close(ours, theirs)


def known(layer: compat.GRU):
    return layer._last_call and layer._last_call.known


@pytest.mark.parametrize("T, B", [(1, 1), (1, 3), (3, 1), (4, 4), (16, 1)])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("with_hx", [False, True])
def test_results(T, B, batch_first, bias, with_hx):
    layer, shape = make(bias=bias, batch_first=batch_first), (B, T, I) if batch_first else (T, B, I)
    for seed in range(3):
        torch.manual_seed(seed)
        check(layer, torch.randn(shape), torch.randn(1, B, U) if with_hx else None)
    assert known(layer)
    every_other = torch.randn(*shape[:2], 2 * I)[..., ::2]
    check(layer, every_other, torch.randn(1, U, B).transpose(1, 2) if with_hx else None)


def change_in_place(layer):
    layer.weight_ih_l0.mul_(2)


def change_data(layer):
    layer.weight_hh_l0.data = torch.randn(3 * U, U)


def write_through_data(layer):
    layer.bias_ih_l0.data.add_(1)


def replace(layer):
    layer.weight_hh_l0 = nn.Parameter(torch.randn(U, 3 * U).t())


def load(layer):
    layer.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()})


def share_memory(layer):
    layer.share_memory()


class Twice(nn.Module):
    def forward(self, value):
        return 2 * value


def parametrize_weight(layer):
    parametrize.register_parametrization(layer, "weight_hh_l0", Twice())


CHANGES = (change_in_place, change_data, write_through_data, replace, load, share_memory, parametrize_weight)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changed_weights_take_effect_at_once(change):
    layer, x = make(), torch.randn(1, 2, I)
    check(layer, x)
    assert known(layer)
    with torch.no_grad():
        change(layer)
    check(layer, x)


def test_other_dtypes_are_noticed():
    layer, x = make(), torch.randn(1, 2, I)
    check(layer, x)
    layer.double()
    check(layer, x.double())
    with pytest.raises(ValueError, match="dtype"), torch.no_grad():
        layer(x)


@pytest.mark.parametrize(
    "x, hx, error",
    [
        (torch.zeros(1, 2, I + 1), None, RuntimeError),
        (torch.zeros(1, 2, I, dtype=torch.float64), None, ValueError),
        (torch.zeros(1, 2, I), torch.zeros(1, 3, U), RuntimeError),
        (torch.zeros(1, 2, I), torch.zeros(2, U), RuntimeError),
        (torch.zeros(1, 2, I), torch.zeros(1, 2, U, dtype=torch.float64), ValueError),
        ([[1.0]], None, TypeError),
    ],
    ids=["x of other features", "x of float64", "hx of more rows", "hx of two axes", "hx of float64", "a list"],
)
def test_what_is_wrong_in_the_second_call_is_refused_as_in_the_first(x, hx, error):
    fresh, layer = make(), make()
    check(layer, torch.randn(1, 2, I), torch.randn(1, 2, U))
    check(layer, torch.randn(1, 2, I))
    with torch.no_grad():
        with pytest.raises(error) as first:
            fresh(x, hx)
        with pytest.raises(error) as second:
            layer(x, hx)
    assert str(first.value) == str(second.value)


def test_gradients_resets_and_backends_go_the_whole_way():
    layer, x = make(), torch.randn(1, 2, I)
    check(layer, x)
    assert layer(x)[0].requires_grad
    with torch.no_grad():
        resets = torch.ones(1, 2)
        torch.testing.assert_close(layer(x, torch.randn(1, 2, U), resets=resets)[0], layer(x)[0])
        layer(x, backend="eager")
        assert layer.last_decision.backend == "eager"
        layer(x)
        assert layer.last_decision.backend == "numba"
        layer.backend = "aten"
        layer(x)
        assert layer.last_decision.backend == "aten"


def test_copies_remember_nothing():
    layer, x = make(), torch.randn(1, 2, I)
    check(layer, x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert known(other) is None
        check(other, x)


def test_results_are_in_memory_of_their_own():
    layer, x = make(), torch.randn(1, 2, I)
    with torch.no_grad():
        first, state = layer(x)
        kept = first.clone(), state.clone()
        layer(x)[0].zero_(), layer(x)[1].zero_()
        torch.testing.assert_close((first, state), kept)
        first.zero_()
        torch.testing.assert_close(state, kept[1])
        torch.testing.assert_close(layer(x)[0], kept[0])


def test_two_threads_do_not_meet():
    layer = make()
    xs = [torch.randn(1, B, I) for B in (1, 2, 3, 4)]
    with torch.no_grad():
        right = [layer(x, backend="aten")[0] for x in xs]

    def work(number: int) -> None:
        with torch.no_grad():
            for k in range(200):
                place = (number + k) % len(xs)
                torch.testing.assert_close(layer(xs[place])[0], right[place])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
