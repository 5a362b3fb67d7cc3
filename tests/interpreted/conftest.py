"""The kernels' tests: in Triton's interpreter on a CPU, compiled on a GPU (`pytest -m gpu`)."""

import os
from pathlib import Path

import pytest

from tritongru.environment import reasons_against_interpreter

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
# One process per program needs the interpreter.
collect_ignore = [] if INTERPRETED else ["test_exchange.py", "test_probe.py"]


def pytest_collection_modifyitems(items):
    """Mark what runs compiled, so that `pytest -m gpu` finds it; skip all where the interpreter cannot run."""
    reasons = reasons_against_interpreter() if INTERPRETED else ()
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        if not INTERPRETED:
            item.add_marker(pytest.mark.gpu)
        elif reasons:
            item.add_marker(pytest.mark.skip(reason="; ".join(reasons)))
