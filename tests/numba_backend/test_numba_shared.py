"""Threads that share the units of one row: the bits of one thread, whoever comes late or not at all."""

from __future__ import annotations

import ctypes
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch

from tritongru import repeats
from tritongru.backends.numba import problem, sharing, threads
from tritongru.backends.numba.kernels import fields as at
from tritongru.backends.numba.kernels.meeting import STOPPED
from tritongru.tools.oracle.cases import Case, make_arguments, run_case

CASES = [
    Case(1, 70, 5, 150),
    Case(1, 64, 5, 101, layout="torch", go_backwards=True),
    Case(1, 66, 40, 200, "float64", use_bias=False),
    Case(1, 131, 1, 96, activation="relu", recurrent_activation="hard_sigmoid", layout="torch"),
]


@pytest.fixture(autouse=True)
def noted(monkeypatch):
    """Let small rows be shared, and note how many steps were."""
    noted: list = []
    monkeypatch.setattr(sharing, "LEAST_BYTES", 1)
    monkeypatch.setattr(sharing, "_alone_until", 0.0)
    monkeypatch.setattr(sharing, "ALONE_SECONDS", 0.0)
    run = sharing.run_sharing

    def watched(function, parts) -> None:
        assert [int(part[at.SHARE]) for part in parts] == list(range(len(parts)))
        run(lambda part: (function(part), noted.append(part))[0], parts)

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


class Late:
    """A pool whose threads begin late, or never."""

    def __init__(self, seconds: float | None):
        self.seconds, self.pool = seconds, ThreadPoolExecutor(4)

    def submit(self, work) -> Future:
        if self.seconds is None:
            return Future()
        return self.pool.submit(lambda: (time.sleep(self.seconds), work()))


@pytest.mark.parametrize("seconds", [None, 0.0, 0.0005, 0.003, 0.05])
def test_threads_that_come_late_or_not_at_all(seconds: float | None, monkeypatch) -> None:
    case = Case(1, 400, 5, 150)
    right = alone(case, monkeypatch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(threads, "find_team", lambda: None)
    monkeypatch.setattr(threads, "_pool", Late(seconds))
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


@pytest.mark.parametrize("team", [threads.find_team(), None], ids=["torch's threads", "Python's"])
def test_a_call_that_fails_lets_the_others_end(monkeypatch, team) -> None:
    begun, ended = threading.Event(), threading.Event()

    def function(part) -> None:
        if part[at.SHARE] == 0:
            assert begun.wait(20)
            raise ValueError("the first")
        begun.set()
        while not words(part)[STOPPED]:
            time.sleep(0.001)
        ended.set()

    def words(part):
        return (ctypes.c_int64 * 24).from_address(int(part[at.MEETING]))

    monkeypatch.setattr(threads, "find_team", lambda: team)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    parts = [problem.make_plan(dict(SHARE=share, SHARES=2)) for share in range(2)]
    with pytest.raises(ValueError, match="the first"):
        sharing.run_sharing(function, parts)
    assert ended.is_set()


def test_a_thread_that_comes_too_late_does_nothing() -> None:
    begun = []
    parts = [problem.make_plan(dict(STEPS=100, SHARE=share, SHARES=3)) for share in range(3)]
    with pytest.MonkeyPatch.context() as patch:
        # The caller takes the first part, and then what is left.
        patch.setattr(threads, "find_team", lambda: lambda work, count: work())
        patch.setattr(torch, "get_num_threads", lambda: 3)
        sharing.run_sharing(lambda part: begun.append(int(part[at.SHARE])), parts)
    assert begun == [0]


def test_late_threads_are_left_out_for_a_while(monkeypatch) -> None:
    monkeypatch.setattr(sharing, "ALONE_SECONDS", 60.0)
    begun = []

    def function(part) -> None:
        begun.append(int(part[at.SHARE]))  # and no step is shared
        time.sleep(0.05)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for _ in range(3):
        parts = [problem.make_plan(dict(STEPS=100, SHARE=share, SHARES=2)) for share in range(2)]
        sharing.run_sharing(function, parts)
    assert begun.count(0) == 3 and begun.count(1) == 1


@pytest.mark.parametrize(
    "changes",
    [dict(mask=True), dict(resets=True), dict(reset_after=False), dict(recurrent_dropouts=1), dict(gates=True),
     dict(layer_norm="joint"), dict(batch=2), dict(time=63), dict(recompute=True)],
    ids=str,
)  # fmt: skip
def test_what_is_not_shared(changes: dict, monkeypatch, noted) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    case = Case(**(dict(batch=1, time=70, input_size=5, units=150) | changes))
    found, right = (run_case(make_arguments(case), backend) for backend in ("numba", "reference"))
    if "recompute" not in changes:
        assert not noted
    for name, value in right.items():
        torch.testing.assert_close(found[name], value, rtol=2e-4, atol=2e-4)
