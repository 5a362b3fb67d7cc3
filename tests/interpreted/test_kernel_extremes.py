"""The ends of the range in the Triton kernels; see tests/extremes.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
from extremes import (
    SCALES,
    SMALL,
    VARIANTS,
    check_a_reset_ends_it,
    check_length_is_a_shorter_call,
    check_padding_does_not_matter,
    check_rows_are_apart,
    check_rows_without_steps,
    check_scale,
)

from tritongru.backends.triton.scan import use_config
from tritongru.environment import is_interpreted
from tritongru.tools.oracle.cases import Case
from tritongru.tuning import configs
from tritongru.tuning.configs import LaunchConfig

pytestmark = [
    pytest.mark.usefixtures("sums_in_order"),
    pytest.mark.skipif(not is_interpreted(), reason="draws its tensors on the CPU"),
    pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning"),
]
SCHEDULES = [LaunchConfig(name, 16, 16, 16) for name in configs.SCHEDULES]
PAIRS = [(replace(case, time=4), SCHEDULES[number % 4]) for number, case in enumerate(VARIANTS)]
variants = pytest.mark.parametrize("case, config", PAIRS, ids=[f"{case}-{config.schedule}" for case, config in PAIRS])
# Each schedule with one of the two, each convention of the reset with both.
BADS = [(case, config, float(("nan", "inf")[number % 2])) for number, (case, config) in enumerate(PAIRS)]
bads = pytest.mark.parametrize("case, config, bad", BADS, ids=[f"{case}-{c.schedule}-{bad}" for case, c, bad in BADS])


@pytest.mark.parametrize("scales", SCALES, ids=str)
def test_sizes_of_inputs_and_states(scales: tuple[float, float]) -> None:
    for dtype in ("float32", "float16"):
        for reset_after in (True, False):
            check_scale("triton", replace(SMALL, dtype=dtype, reset_after=reset_after), *scales, reset_after)


@pytest.mark.bits
@bads
def test_rows_are_apart(case: Case, config: LaunchConfig, bad: float) -> None:
    with use_config(config):
        check_rows_are_apart("triton", case, "x", bad)
        check_rows_are_apart("triton", replace(case, recurrent_dropouts=3, resets=True), "initial_state", bad)


@pytest.mark.bits
@bads
def test_padding_does_not_matter(case: Case, config: LaunchConfig, bad: float) -> None:
    with use_config(config):
        check_padding_does_not_matter("triton", replace(case, go_backwards=True), bad)
        check_padding_does_not_matter("triton", replace(case, recurrent_dropouts=3, recompute=True), bad)


@pytest.mark.bits
@variants
def test_a_reset_ends_it(case: Case, config: LaunchConfig) -> None:
    with use_config(config):
        check_a_reset_ends_it("triton", replace(case, time=5), float("nan"))


@pytest.mark.bits
@variants
def test_rows_without_steps(case: Case, config: LaunchConfig) -> None:
    with use_config(config):
        check_rows_without_steps("triton", case)


@pytest.mark.bits
def test_lengths() -> None:
    check_length_is_a_shorter_call("triton", VARIANTS[0])
