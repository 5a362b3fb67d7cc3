"""The quick profile of fuzzing the Triton kernels, and everything that once failed; `make fuzz` is the deep one."""

from __future__ import annotations

import pytest
from fuzzing import TARGETS
from hypothesis import HealthCheck, given, settings

from tritongru.environment import is_interpreted

KERNELS = TARGETS["kernels"]

pytestmark = pytest.mark.skipif(not is_interpreted(), reason="draws its tensors on the CPU")


@settings(max_examples=20, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(KERNELS.strategy())
def test_any_configuration(configuration) -> None:
    KERNELS.check(configuration)


@pytest.mark.parametrize("configuration", KERNELS.recorded(), ids=str)
def test_what_once_failed(configuration) -> None:
    assert KERNELS.check(configuration)
