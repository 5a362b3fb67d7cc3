"""Layer normalisation in the Triton kernels: against the oracle, rows without spread, and the ends of the range."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from extremes import (
    check_a_reset_ends_it,
    check_length_is_a_shorter_call,
    check_padding_does_not_matter,
    check_rows_are_apart,
    check_rows_without_steps,
)
from norm_checks import KINDS, assert_equals_oracle, grid

from tritongru import UnsupportedError, compat, gru, scan
from tritongru.backends.triton.scan import use_config
from tritongru.environment import is_interpreted
from tritongru.tools.oracle.cases import Case, make_arguments
from tritongru.tuning.configs import LaunchConfig, next_power_of_two

pytestmark = pytest.mark.skipif(not is_interpreted(), reason="draws its tensors on the CPU")
UNITS = (9, 16, 5)


def whole_row(units: int) -> LaunchConfig:
    block = next_power_of_two(units)
    return LaunchConfig("single", 16, block, block)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout, go_backwards", list(itertools.product(("keras", "torch"), (False, True))))
def test_grid(kind: str, layout: str, go_backwards: bool) -> None:
    dtypes = ("float32", "bfloat16", "float16")
    cases = grid(kind, layout, go_backwards, 4, (1, 3, 19), UNITS, lambda seed: dtypes[seed % 5 % 3])
    # Half of the flags, in which each two of them meet in every way; the other direction meets the other half.
    for case in cases:
        flags = case.mask + case.lengths + case.resets + (case.recurrent_dropouts > 0)
        if flags % 2 == ((layout == "torch") + go_backwards) % 2:
            assert_equals_oracle("triton", case)


SHAPES = [
    Case(1, 1, 1, 1),
    Case(2, 3, 3, 1, "bfloat16"),
    Case(3, 3, 5, 64, lengths=True, layout="torch"),
    Case(17, 2, 7, 96, "bfloat16", layout="torch", recurrent_dropouts=3),
    Case(2, 3, 7, 128, "bfloat16", mask=True),
    Case(2, 3, 7, 128, "float16", resets=True, reset_state="steps"),
    Case(3, 3, 3, 100, "bfloat16", mask=True, recurrent_dropouts=3, zoneout=True, layout="torch"),
    Case(17, 2, 3, 65, "float16", resets=True, reset_state="steps", recurrent_dropouts=1, go_backwards=True),
    Case(2, 3, 3, 127, "bfloat16", lengths=True, use_bias=False, recompute=True, gates=True),
    Case(2, 3, 3, 90, "float16", resets=True, reset_state="rows", activation="softplus", gradient_clip=0.5),
    Case(2, 0, 3, 100, "bfloat16"),
    Case(0, 3, 3, 100, "bfloat16", mask=True, resets=True),
    Case(9, 3, 3, 16, activation="softsign", recurrent_activation="hard_sigmoid"),
    Case(2, 0, 3, 4),
    Case(0, 3, 3, 4, mask=True),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_shapes_and_dtypes(kind: str, case: Case) -> None:
    with use_config(whole_row(case.units)):
        assert_equals_oracle("triton", replace(case, layer_norm=kind))


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_of_steps(monkeypatch, kind: str) -> None:
    monkeypatch.setattr("tritongru.backends.triton.norms.CHUNK", 2 * 3 * 3 * 9)
    assert_equals_oracle("triton", Case(3, 5, 4, 9, layer_norm=kind, mask=True))


@pytest.mark.parametrize("units, dtype", [(9, "float32"), (100, "bfloat16")])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_spread(kind: str, units: int, dtype: str) -> None:
    """All sums of a row are the same whole number, so that its variance is exactly zero: epsilon alone divides."""
    case = Case(3, 5, 4, units, dtype, layer_norm=kind)
    given = make_arguments(case)
    x = torch.randint(-8, 9, given["x"].shape).to(given["x"].dtype)
    kernel = torch.randint(-8, 9, (4, 1)).to(x.dtype).expand(4, 3 * units).clone()
    changes = dict(x=x, kernel=kernel, recurrent_kernel=torch.zeros_like(given["recurrent_kernel"]))
    assert_equals_oracle("triton", case, **changes)


@pytest.mark.parametrize("kind", KINDS)
def test_sums_that_have_a_mean(kind: str) -> None:
    """Zeros behind a row are as far from the mean as it is large: counted, they would be a part of the variance."""
    case = Case(3, 3, 4, 100, "bfloat16", layer_norm=kind)
    given = make_arguments(case)
    changes = {name: given[name] + 1 for name in ("kernel", "recurrent_kernel")}
    assert_equals_oracle("triton", case, **changes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e4, 1e-8])
def test_sizes_of_states(kind: str, size: float) -> None:
    """A norm takes the size of what it is given away, until epsilon is larger than the variance."""
    case = Case(3, 4, 5, 9, layer_norm=kind)
    given = make_arguments(case)
    assert_equals_oracle("triton", case, x=given["x"] * size, initial_state=given["initial_state"] * size)


@pytest.mark.bits
@pytest.mark.usefixtures("sums_in_order")
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e38])
def test_the_ends_of_the_range(kind: str, bad: float) -> None:
    case = Case(3, 4, 4, 9, layer_norm=kind)
    for changed in (case, replace(case, recurrent_dropouts=3, resets=True, recompute=True)):
        for argument in ("x", "initial_state"):
            check_rows_are_apart("triton", changed, argument, bad)
    check_padding_does_not_matter("triton", replace(case, recurrent_dropouts=3), bad)
    if bad != -1e38:
        check_a_reset_ends_it("triton", replace(case, time=5), bad)
    check_rows_without_steps("triton", case)
    check_length_is_a_shorter_call("triton", case)


def test_the_epsilon_is_the_call_s() -> None:
    for epsilon in (1e-5, 0.5):
        given = make_arguments(Case(layer_norm="joint"))
        given["layer_norm"] = given["layer_norm"]._replace(epsilon=epsilon)
        torch.testing.assert_close(gru(**given, backend="triton"), gru(**given, backend="reference"))


def test_units_that_no_program_holds_have_a_reason() -> None:
    for kind, units in (("separate", 100), ("joint", 272)):
        given = make_arguments(Case(2, 2, 2, units, layer_norm=kind, gates=True))
        reason = f"layer_norm='{kind}' with units={units}: no program holds .* bytes .* a further exchange per step"
        with pytest.raises(UnsupportedError, match=reason):
            scan(**given, backend="triton")


@pytest.mark.parametrize("kind", KINDS)
def test_two_directions_run_one_after_another(kind: str) -> None:
    layers = [compat.GRU(3, 4, bidirectional=True, layer_norm=kind, backend=b) for b in ("triton", "reference")]
    layers[1].load_state_dict(layers[0].state_dict())
    x, results = torch.randn(5, 2, 3), []
    for layer in layers:
        outputs, _ = layer(x)
        outputs.square().sum().backward()
        results.append([outputs, *(parameter.grad for parameter in layer.parameters())])
    assert layers[0].last_decision.backend == "triton" and layers[0].last_decision.members == 1
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_another_schedule_is_refused() -> None:
    with use_config(LaunchConfig("steps", 16, 16, 16)), pytest.raises(ValueError, match="steps .*: a norm needs"):
        gru(**make_arguments(Case(layer_norm="joint")), backend="triton")
