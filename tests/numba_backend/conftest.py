"""These tests are left out where numba is not installed."""

from importlib.util import find_spec

import pytest
import torch

collect_ignore_glob = [] if find_spec("numba") else ["*"]


@pytest.fixture(params=["packed", "as they lie"])
def weights(request, monkeypatch) -> str:
    """Weights that are packed in every call, or read as they lie where there are few steps."""
    from tritongru.backends.numba import short

    if request.param == "packed":
        monkeypatch.setattr(short, "MOST_STEPS", 0)
    return request.param


@pytest.fixture(params=["whole", "chunks", "threads"])
def divided(request, monkeypatch) -> str:
    """Steps and rows taken together, few of them with weights as they lie; in chunks, or among several threads."""
    from tritongru.backends.numba import backward, problem, short, threads

    if request.param != "whole":
        monkeypatch.setattr(short, "MOST_STEPS", 0)
    if request.param == "chunks":
        monkeypatch.setattr(problem, "CHUNK", 1)
        monkeypatch.setattr(backward, "CHUNK", 1)
        monkeypatch.setattr(backward, "CHUNK_ROWS", 7)
    if request.param == "threads":
        monkeypatch.setattr(threads, "LEAST_WORK", 1)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    return request.param
