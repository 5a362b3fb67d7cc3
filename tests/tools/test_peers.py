"""Other packages' GRUs in the benchmark: where one is installed, its numbers are those of the reference."""

import importlib

import pytest
import torch

from tritongru.tools.benchmark import peers
from tritongru.tools.benchmark.contenders import TRAINING, UnavailableError, make_call
from tritongru.tools.benchmark.work import Work
from tritongru.tools.benchmark.workloads import Workload

PLAIN = Workload("plain", 12, 3, 5, 8)
RESETS = Workload("resets", 12, 3, 5, 8, resets=True)
LENGTHS = Workload("lengths", 12, 3, 5, 8, lengths=True)


@pytest.mark.parametrize(
    "name, workload",
    [("flashrnn", PLAIN), ("torchrl", PLAIN), ("torchrl", RESETS)],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_outputs_and_a_training_step(name, workload):
    pytest.importorskip(name)
    work = Work(workload, "float32")
    contender = getattr(peers, name)(work)
    assert work.error(contender.forward(0, work.inputs[0].x)) <= work.allowed_error
    assert torch.isfinite(make_call(contender, work, TRAINING)(0)).all()


@pytest.mark.parametrize("name", ["flashrnn", "torchrl", "haste"])
def test_what_cannot_run_says_why(name, monkeypatch):
    def missing(module):
        raise ImportError(f"No module named {module!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    for workload in (PLAIN, LENGTHS):
        with pytest.raises(UnavailableError, match="cannot be imported|is not 'cuda'|has no lengths"):
            getattr(peers, name)(Work(workload, "float32"))
