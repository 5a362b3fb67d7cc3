"""These tests are left out where numba is not installed."""

from importlib.util import find_spec

import pytest
import torch

collect_ignore_glob = [] if find_spec("numba") else ["*"]


@pytest.fixture(params=["whole", "chunks", "threads"])
def divided(request, monkeypatch) -> str:
    """Steps and rows taken together, in several chunks, or among several threads."""
    from tritongru.backends.numba import backward, problem, threads

    if request.param == "chunks":
        monkeypatch.setattr(problem, "CHUNK", 1)
        monkeypatch.setattr(backward, "CHUNK", 1)
        monkeypatch.setattr(backward, "CHUNK_ROWS", 7)
    if request.param == "threads":
        monkeypatch.setattr(threads, "LEAST_WORK", 1)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    return request.param
