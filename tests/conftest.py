"""What every test shares: uninitialised memory is NaN, fixed seeds, and the markers' meaning.

This folder is on the path. So no folder in it has the name of a library that need not be installed: it would be taken
for the library where that is missing.
"""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch

from tritongru import dispatch, repeats
from tritongru.tools.benchmark.results import device_name

# What chooses the vendors' products: NumPy's (the interpreter's), and torch's.
PRODUCTS = ("OPENBLAS_CORETYPE", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"

# Triton settles on its interpreter when it is imported, so these files need a process of their own, or a GPU.
collect_ignore_glob = [] if INTERPRETED or torch.cuda.is_available() else ["interpreted/*"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


def pytest_terminal_summary(terminalreporter) -> None:
    """Say on which processor, and with whose products, the tests ran."""
    chosen = [f"{name}={os.environ[name]}" for name in PRODUCTS if name in os.environ]
    line = f"{device_name(torch.device('cpu'))}, the vectors that torch uses in brackets"
    terminalreporter.write_line("; ".join([line, *chosen]))


@pytest.fixture(autouse=True)
def fixed_seeds():
    """Make every test draw the same numbers each time, alone or among others; Keras takes its seeds from `random`."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def decisions_made_anew():
    """A test that pretends to be on another machine leaves no decision behind."""
    dispatch.forget()
    repeats.forget()


@pytest.fixture(autouse=True)
def nan_in_uninitialised_memory():
    """Make `torch.empty` return NaN, so that reading what was never written shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    """The same test on a CPU, and on a GPU where there is one."""
    return request.param
