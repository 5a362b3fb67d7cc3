"""The kernels' tests: in Triton's interpreter on a CPU, compiled on a GPU (`pytest -m gpu`)."""

import os
from pathlib import Path

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
# One process per program needs the interpreter.
collect_ignore = [] if INTERPRETED else ["test_exchange.py", "test_probe.py"]


def pytest_collection_modifyitems(items):
    """Mark what runs compiled, so that `pytest -m gpu` finds it."""
    for item in items:
        if not INTERPRETED and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
