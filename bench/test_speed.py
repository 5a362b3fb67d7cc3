"""The speed of auto on small workloads, and of layers in small calls, for pytest-benchmark.

A run is compared with an earlier one on the same machine:

    make bench-regression       the first run is saved, later ones are compared with it and fail where 25 % slower

Not a part of the tests: times mean something on a quiet machine only.
"""

from __future__ import annotations

import pytest
import torch

from tritongru.tools.benchmark.contenders import INFERENCE, TRAINING, UnavailableError, make_call, own
from tritongru.tools.benchmark.layers import LAYERS
from tritongru.tools.benchmark.work import Work
from tritongru.tools.benchmark.workloads import CPU, FEATURES, NAMED, SMALL

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WORKLOADS = (*NAMED[1:4], *CPU[3:5], *FEATURES[:4])


@pytest.mark.parametrize("direction", [INFERENCE, TRAINING])
@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def test_auto(benchmark, workload, direction):
    work = Work(workload, "float32", DEVICE)
    call = make_call(own(work, "auto"), work, direction)

    def once():
        call(0)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.extra_info["device"] = DEVICE
    benchmark(once)


@pytest.mark.skipif(DEVICE == "cuda", reason="small calls are timed on a CPU")
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("workload", SMALL, ids=str)
def test_small_calls(benchmark, workload, name):
    work = Work(workload, "float32")
    try:
        call = make_call(LAYERS[name](work), work, INFERENCE)
    except UnavailableError as reason:
        pytest.skip(str(reason))
    benchmark(call, 0)
