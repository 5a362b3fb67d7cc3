"""The quick profile of the fuzzing: a few configurations of each kind, and everything that once failed."""

from __future__ import annotations

import json

import pytest
from fuzzing import REGRESSIONS, TARGETS
from hypothesis import HealthCheck, given, settings

ON_CPU = ("backends", "drop_in", "layer")
RECORDED = [(name, c) for name in ON_CPU for c in TARGETS[name].recorded()]


class Counted:
    """A target that notes how much each check compared; what is drawn follows from the text of the test below."""

    def __init__(self, target, compared: list[int]):
        self.target, self.compared, self.strategy = target, compared, target.strategy

    def check(self, configuration) -> None:
        self.compared.append(self.target.check(configuration))


@pytest.mark.parametrize("name, examples", [("backends", 120), ("drop_in", 40), ("layer", 60)])
def test_any_configuration(name: str, examples: int) -> None:
    compared: list[int] = []
    target = Counted(TARGETS[name], compared)

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
    )
    @given(target.strategy())
    def check(configuration) -> None:
        target.check(configuration)

    check()
    assert len(compared) >= examples // 2 and sum(map(bool, compared)) >= len(compared) // 2, "hardly anything compared"


def test_what_once_failed() -> None:
    for name, configuration in RECORDED:
        assert TARGETS[name].check(configuration), f"{name}: nothing compared for {configuration}"


def test_the_records_are_known_targets() -> None:
    assert json.loads(REGRESSIONS.read_text()).keys() == TARGETS.keys()
