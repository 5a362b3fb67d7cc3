"""Threads that share the units of a scan: the bits of one thread, whoever comes late or not at all."""

from __future__ import annotations

import ctypes
import threading

import pytest
import torch
from late_threads import let_threads_be_late
from torch_release import REPEATS_GRADIENTS

from tritongru import environment, repeats
from tritongru.backends.numba import backward, problem, sharing, threads
from tritongru.backends.numba.kernels import fields as at
from tritongru.compat import GRU
from tritongru.tools.oracle.cases import Case, make_arguments, run_case

CASES = [
    Case(1, 70, 5, 150),
    Case(1, 64, 5, 149, layout="torch", go_backwards=True),
    Case(1, 66, 40, 200, "float64", use_bias=False),
    Case(1, 131, 1, 192, activation="relu", recurrent_activation="hard_sigmoid", layout="torch"),
    Case(2, 70, 5, 150, layout="torch"),
    Case(3, 21, 9, 150, go_backwards=True),
    Case(11, 18, 7, 200, layout="torch", go_backwards=True),  # a group of three
    Case(13, 8, 300, 150, "float64", time_major=True),
    Case(20, 9, 3, 390, use_bias=False),
]


@pytest.fixture(autouse=True)
def noted(monkeypatch):
    """Let small rows be shared, and note how many steps were."""
    noted: list = []
    monkeypatch.setattr(sharing, "LEAST_BYTES", 1)
    monkeypatch.setattr(sharing, "LEAST_GAIN", 0)
    monkeypatch.setattr(sharing, "_alone_until", {True: 0.0, False: 0.0})
    monkeypatch.setattr(sharing, "ALONE_SECONDS", 0.0)
    run = sharing.run_sharing

    def watched(kernel, parts, place: int, steps: int) -> None:
        assert [int(part[at.SHARE]) for part in parts] == list(range(len(parts)))
        run(kernel, parts, place, steps)
        noted.extend(parts)

    monkeypatch.setattr(problem, "run_sharing", watched)
    return noted


def alone(case: Case, monkeypatch) -> dict[str, torch.Tensor]:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    repeats.forget()
    return run_case(make_arguments(case), "numba")


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_bits_of_one_thread(case: Case, count: int, monkeypatch, noted) -> None:
    right = alone(case, monkeypatch)
    assert not noted
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    for _ in range(4):
        found = run_case(make_arguments(case), "numba")
        for name, value in right.items():
            assert torch.equal(found[name], value), name
    assert noted and all(part[at.SHARES] > 1 for part in noted)


@pytest.mark.parametrize("seconds", [None, 0.0, 0.0005, 0.003, 0.05])
def test_threads_that_come_late_or_not_at_all(seconds: float | None, monkeypatch) -> None:
    case = Case(1, 400, 5, 150)
    right = alone(case, monkeypatch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    let_threads_be_late(monkeypatch, seconds)
    for _ in range(5):
        found = run_case(make_arguments(case), "numba")
        for name, value in right.items():
            assert torch.equal(found[name], value), name


def test_many_rows_at_once_from_several_threads(monkeypatch) -> None:
    case = Case(1, 100, 5, 150)
    right = alone(case, monkeypatch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    wrong = []

    def work() -> None:
        for _ in range(10):
            found = run_case(make_arguments(case), "numba")
            wrong.extend(name for name, value in right.items() if not torch.equal(found[name], value))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_without_others_the_first_thread_does_it_all_and_is_left_alone_for_a_while(monkeypatch) -> None:
    case, asked = Case(1, 70, 5, 150), []
    right = alone(case, monkeypatch)

    def run_here(work: int, task: int, count: int, flags: int) -> None:
        asked.append(count)
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(work)(task)

    monkeypatch.setattr(threads, "find_team", lambda: run_here)
    monkeypatch.setattr(threads, "count_forks", lambda: 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for seconds in (0.0, 60.0):
        monkeypatch.setattr(sharing, "ALONE_SECONDS", seconds)
        asked.clear()
        for _ in range(3):
            assert torch.equal(run_case(make_arguments(case), "numba")["outputs"], right["outputs"])
        # Forward, backward, and the sums of gradients, in which threads need not meet. Before torch 2.8 all calls with
        # gradients go the whole way, where the sums after a scan that was alone ask for no thread.
        assert asked == [2] * (9 if seconds == 0 else 1 + REPEATS_GRADIENTS)


@pytest.mark.parametrize(
    "changes",
    [dict(mask=True), dict(resets=True), dict(reset_after=False), dict(recurrent_dropouts=1), dict(zoneout=True),
     dict(layer_norm="joint"), dict(time=7), dict(time=61), dict(batch=2, time=7), dict(batch=33)],
    ids=str,
)  # fmt: skip
def test_what_is_not_shared(changes: dict, monkeypatch, noted) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert not compare(dict(batch=1, time=70, input_size=5, units=150) | changes, noted)


@pytest.mark.parametrize(
    ("changes", "directions"),
    [(dict(gates=True), {"backward"}), (dict(gradient_clip=0.5), {"forward"}),
     (dict(recompute=True, time=1200), {"backward"})],
    ids=str,
)  # fmt: skip
def test_what_is_shared_in_one_direction(changes: dict, directions: set[str], monkeypatch, noted) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(backward, "CHUNK_ROWS", 90)
    monkeypatch.setattr(backward, "CHUNK", 0)
    found = compare(dict(batch=1, time=70, input_size=5, units=150) | changes, noted)
    if "recompute" in changes:  # of the forward pass; what the backward pass computes again begins in the middle
        found.remove("forward")
    assert found == directions


def compare(sizes: dict, noted: list) -> set[str]:
    """Compare a call with the oracle; return in which directions units were shared."""
    found, right = (run_case(make_arguments(Case(**sizes)), backend) for backend in ("numba", "reference"))
    for name, value in right.items():
        torch.testing.assert_close(found[name], value, rtol=2e-4, atol=2e-4)
    return {"backward" if part[at.TRANSPOSED] else "forward" for part in noted}


@pytest.mark.parametrize("rows_of_chunk", [16, 24, 69, 512])
@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[5], CASES[7]], ids=str)
def test_chunks_of_the_way_back(case: Case, rows_of_chunk: int, monkeypatch, noted) -> None:
    monkeypatch.setattr(problem, "LEAST_STEPS", 2)
    monkeypatch.setattr(problem, "LEAST_READ", 0)
    monkeypatch.setattr(backward, "CHUNK_ROWS", rows_of_chunk)
    monkeypatch.setattr(backward, "CHUNK", 0)
    right = alone(case, monkeypatch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for _ in range(2):
        found = run_case(make_arguments(case), "numba")
        for name, value in right.items():
            assert torch.equal(found[name], value), name
    chunks = backward.chunks_of(case.time, case.batch, 1)
    assert sum(part[at.TRANSPOSED] and part[at.SHARE] == 0 for part in noted) == 2 * len(chunks)


@pytest.mark.parametrize("wanted", ["outputs", "state", "a step of the outputs"])
def test_the_gradient_of_one_result(wanted: str, monkeypatch, noted) -> None:
    torch.manual_seed(0)
    layer, x = GRU(5, 150), torch.randn(70, 1, 5, requires_grad=True)
    found = []
    for count in (1, 2, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        outputs, state = layer(x)
        loss = state if wanted == "state" else outputs if wanted == "outputs" else outputs[17]
        found.append(torch.autograd.grad(loss.square().sum(), [x, *layer.parameters()]))
    assert any(part[at.TRANSPOSED] for part in noted)
    for each in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(each, found[0], strict=True))


def test_units_are_shared_where_sharing_rows_is_worse(monkeypatch) -> None:
    monkeypatch.setattr(sharing, "LEAST_BYTES", 1 << 17)
    monkeypatch.setattr(sharing, "LEAST_GAIN", 1.2)
    small, large = 3 * 256**2 * 4, 3 * 512**2 * 4
    # Threads, bytes of the second cache, rows, groups, panels, bytes of the weights.
    expected = {
        (1, 1 << 21, 1, 1, 11, large): 1,
        (2, 1 << 19, 1, 1, 11, small): 2,
        (2, 1 << 19, 1, 1, 3, small): 1,
        (2, 1 << 19, 1, 1, 11, 1 << 17): 1,
        (8, 1 << 19, 1, 1, 11, large): 4,
        (2, 1 << 21, 16, 4, 11, large): 2,
        (2, 1 << 21, 16, 4, 11, small): 1,
        (2, 1 << 19, 16, 4, 11, large): 1,
        (2, 1 << 20, 16, 4, 11, large): 1,
        (2, 1 << 19, 12, 3, 11, small): 2,
        (2, 1 << 19, 20, 5, 11, large): 2,
        (8, 1 << 21, 32, 8, 11, large): 1,
        (2, 1 << 21, 33, 9, 11, large): 1,
    }
    for (count, cache, *sizes), shares in expected.items():
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        monkeypatch.setattr(environment, "second_cache", lambda cache=cache: cache)
        assert sharing.count_shares(*sizes) == shares, (count, cache, sizes)
