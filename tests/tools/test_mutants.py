"""The list of mutants stays alive: `make mutants` runs it, and here every text must still apply."""

from __future__ import annotations

from pathlib import Path

from mutant_list import MUTANTS
from mutants import occurrences


def test_every_mutant_applies_once() -> None:
    wrong = {f"{m.file}: {m.old}": n for m in MUTANTS if (n := occurrences(m)) != 1}
    assert not wrong, "a text that changed: bring tests/long/mutant_list.py up to date"
    assert all(m.old != m.new for m in MUTANTS) and len(MUTANTS) == len(set(MUTANTS)) > 200


def test_every_mutant_names_tests_that_exist() -> None:
    for m in MUTANTS:
        for word in m.tests.split():
            assert ".py" not in word or (Path(__file__).parents[1] / word).is_file(), m
