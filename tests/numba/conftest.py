"""The numba scan in the eager scan's place, so that operators, autograd and every check of a backend reach it."""

from __future__ import annotations

import pytest

pytest.importorskip("numba")

from tritongru.backends import eager, numba


@pytest.fixture(autouse=True)
def numba_for_eager(monkeypatch) -> None:
    monkeypatch.setattr(eager, "run_forward", numba.run_forward)
    monkeypatch.setattr(eager, "run_backward", numba.run_backward)
