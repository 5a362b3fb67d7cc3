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


@pytest.fixture
def sums_in_order(monkeypatch):
    """Make the interpreter's product add its terms one after another, each rounded: one result on every processor.

    NumPy's product is the vendor's, and which row of a block a value stands in may decide the order of its sum. With
    this one, equal bits say something about the kernels.
    """
    if not INTERPRETED:
        return
    from triton.runtime import interpreter

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        total = d.data
        left, right = a.data.astype(total.dtype), b.data.astype(total.dtype)
        for k in range(left.shape[-1]):
            total = total + left[..., :, k, None] * right[..., None, k, :]
        return interpreter.TensorHandle(total, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
