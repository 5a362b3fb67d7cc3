"""Threads that share the units of few steps: the bits of one thread, in both layouts and whoever comes late."""

from __future__ import annotations

import itertools
import threading

import pytest
import torch
from late_threads import let_threads_be_late

from tritongru import GRU, Stream, gru, repeats
from tritongru.backends.numba import sharing, short
from tritongru.backends.numba.kernels import short as at
from tritongru.tools.oracle.cases import Case, make_arguments

ONE_STEP = [
    Case(1, 1, 20, 70),
    Case(1, 1, 33, 101, layout="torch", use_bias=False),
    Case(4, 1, 20, 96, layout="torch"),
    Case(9, 1, 5, 67, "float64"),
    Case(17, 1, 40, 128, layout="torch"),
    Case(18, 1, 3, 50, go_backwards=True),
    Case(40, 1, 300, 53, layout="torch", activation="relu"),
]
STEPS = [
    Case(1, 7, 20, 70, layout="torch"),
    Case(1, 64, 5, 150, go_backwards=True),
    Case(3, 5, 9, 101, layout="torch", go_backwards=True, time_major=True),
    Case(9, 3, 20, 96),
    Case(12, 2, 300, 67, layout="torch"),
    Case(5, 4, 33, 50, "float64", use_bias=False),
]


@pytest.fixture(autouse=True)
def noted(monkeypatch):
    """Let small calls be shared, and note the plans of those that are."""
    noted: list = []
    for name in ("LEAST_OF_ROW", "LEAST_OF_ROWS", "LEAST_LINE"):
        monkeypatch.setattr(short, name, 1)
    monkeypatch.setattr(short, "LEAST_OF_STEP", 0)
    monkeypatch.setattr(sharing, "_alone_until", {True: 0.0, False: 0.0})
    monkeypatch.setattr(sharing, "ALONE_SECONDS", 0.0)
    for name in ("run_apart", "run_sharing"):
        run = getattr(short, name)

        def watched(kernel, plans, *rest, run=run) -> None:
            noted.extend(plans)
            run(kernel, plans, *rest)

        monkeypatch.setattr(short, name, watched)
    repeats.forget()
    yield noted
    repeats.forget()


def outputs(case: Case, count: int, monkeypatch) -> tuple[torch.Tensor, ...]:
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    return run(case, "numba")


def run(case: Case, backend: str) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        return gru(**make_arguments(case), backend=backend)


def assert_equals_oracle(case: Case, found: tuple[torch.Tensor, ...]) -> None:
    for value, right in zip(found, run(case, "reference"), strict=True):
        torch.testing.assert_close(value, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("case", ONE_STEP + STEPS, ids=str)
def test_the_bits_of_one_thread(case: Case, count: int, monkeypatch, noted) -> None:
    right = outputs(case, 1, monkeypatch)
    assert not noted
    for _ in range(4):
        for found, value in zip(outputs(case, count, monkeypatch), right, strict=True):
            assert torch.equal(found, value)
    bounds = [(int(plan[at.BEGIN]), int(plan[at.END])) for plan in noted]
    assert len(bounds) >= 8 and bounds[0][0] == 0 and max(end for _, end in bounds) == case.units
    assert all((plan[at.SHARES] > 1) == (case.time > 1) for plan in noted)
    # A thread that is late still writes into its scratch while the first one does its part.
    size = at.count_numbers(case.time, case.batch, case.units) * right[0].element_size()
    for before, plan in itertools.pairwise(noted):
        assert plan[at.BEGIN] == 0 or plan[at.SPACE] - before[at.SPACE] >= size
    assert_equals_oracle(case, right)


@pytest.mark.parametrize("changes", [dict(reset_after=False), dict(time=65), dict(units=7)], ids=str)
def test_what_is_not_shared(changes: dict, monkeypatch, noted) -> None:
    case = Case(**(dict(batch=1, time=5, input_size=20, units=70) | changes))
    outputs(case, 2, monkeypatch)
    assert not noted


@pytest.mark.parametrize("seconds", [None, 0.0, 0.0005, 0.003])
@pytest.mark.parametrize("case", [STEPS[1], STEPS[3]], ids=str)
def test_threads_that_come_late_or_not_at_all(case: Case, seconds: float | None, monkeypatch, noted) -> None:
    right = outputs(case, 1, monkeypatch)
    let_threads_be_late(monkeypatch, seconds)
    for _ in range(5):
        for found, value in zip(outputs(case, 3, monkeypatch), right, strict=True):
            assert torch.equal(found, value)
    assert noted


@pytest.mark.parametrize("case", [STEPS[0], ONE_STEP[2]], ids=str)
def test_calls_after_a_late_thread_need_no_other_for_a_while(case: Case, monkeypatch, noted) -> None:
    right = outputs(case, 1, monkeypatch)
    monkeypatch.setattr(sharing, "ALONE_SECONDS", 60.0)
    let_threads_be_late(monkeypatch, None)
    for _ in range(3):
        for found, value in zip(outputs(case, 2, monkeypatch), right, strict=True):
            assert torch.equal(found, value)
    assert len(noted) == 2  # the first call's


def test_a_stream_from_several_threads_at_once(monkeypatch, noted) -> None:
    layer = GRU(70, input_size=20, backend="numba").requires_grad_(False)
    xs, wrong = torch.randn(30, 4, 20), []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    stream = Stream(layer)
    right = [stream.step(x) for x in xs]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def work() -> None:
        stream = Stream(layer)
        wrong.extend(t for t, x in enumerate(xs) if not torch.equal(stream.step(x), right[t]))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong and noted


def test_large_weights_of_keras_are_read_row_by_row(monkeypatch) -> None:
    """The matrices are as large as `HUGE` in kernels/unpacked.py, and no multiple of a vector wide."""
    for case in (Case(5, 1, 845, 845), Case(5, 2, 7, 845), Case(1, 2, 7, 845), Case(8, 1, 7, 845)):
        found = outputs(case, 2, monkeypatch)
        assert all(torch.equal(a, b) for a, b in zip(found, outputs(case, 1, monkeypatch), strict=True))
        assert_equals_oracle(case, found)
