"""What is promised about bits: the same call, any number of threads, rows that do not touch each other."""

from __future__ import annotations

import pytest
import torch

from tritongru import gru, repeats
from tritongru.backends.numba import plain_sums, problem, spare, sums, threads
from tritongru.tools.oracle.cases import Case, make_arguments, run_case

CASES = [
    Case(1, 20, 6, 24),
    Case(3, 9, 6, 24, layout="torch"),
    Case(7, 9, 5, 17, reset_after=False),
    Case(22, 9, 5, 17, recurrent_dropouts=3),
    Case(30, 9, 5, 33, mask=True, resets=True, reset_state="steps"),
    Case(30, 9, 5, 33, "float64", lengths=True, layout="torch"),
    Case(13, 9, 5, 33, layer_norm="joint", lengths=True),
    Case(22, 9, 5, 17, "float64", layer_norm="separate", recurrent_dropouts=3, mask=True),
    Case(19, 9, 5, 33, "bfloat16", recurrent_dropouts=1, go_backwards=True),
    Case(9, 7, 40, 17),
    Case(10, 7, 5, 33, "float64", reset_after=False),
    Case(11, 3, 5, 340, layout="torch"),
]
# What is computed row by row. Sums over all steps are torch's products, but of plain calls.
BY_ROW = ("outputs", "state", "d x", "d initial_state", "d reset_state")


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_call_same_bits(case: Case) -> None:
    arguments = make_arguments(case)
    first, second = run_case(arguments, "numba"), run_case(arguments, "numba")
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_memory_that_goes_from_call_to_call_is_not_read() -> None:
    for case in (Case(9, 70, 5, 17), Case(3, 80, 40, 33, mask=True, recompute=True)):
        arguments = make_arguments(case)
        first = run_case(arguments, "numba", case.seed)
        (memory,) = spare._spare
        memory.fill_(255)  # a NaN in either dtype
        again = run_case(arguments, "numba", case.seed)
        assert all(torch.equal(first[name], again[name]) for name in first)


def test_calls_at_once_do_not_share_memory() -> None:
    first, second = spare.borrow(100), spare.borrow(100)
    assert first.data_ptr() != second.data_ptr()
    spare.give_back(first)
    spare.give_back(second)
    assert spare.borrow(50) is first and spare.borrow(50) is not second
    spare.give_back(first)
    large = torch.empty(spare.MOST_BYTES + 1, dtype=torch.uint8)
    spare._spare.clear()
    spare.give_back(large)
    assert not spare._spare


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_number_of_threads_gives_the_same_bits(monkeypatch, case: Case) -> None:
    arguments = make_arguments(case)
    alone = run_case(arguments, "numba")
    is_plain = case.reset_after and not case.recurrent_dropouts and case.layer_norm is None
    monkeypatch.setattr(threads, "LEAST_WORK", 1)
    monkeypatch.setattr(sums, "LEAST_OF_AWAKE", 1)
    monkeypatch.setattr(sums, "LEAST_OF_ASLEEP", 1)
    for module in (plain_sums, sums):
        monkeypatch.setattr(module, "may_share", lambda meets: True)
    for count in (2, 3, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        repeats.forget()  # plans made before
        together = run_case(arguments, "numba")
        for name, value in together.items():
            if is_plain or name in BY_ROW:
                assert torch.equal(alone[name], value), (count, name)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_steps_taken_at_a_time_make_no_difference(monkeypatch, case: Case) -> None:
    arguments = make_arguments(case)
    whole = run_case(arguments, "numba")
    monkeypatch.setattr(problem, "CHUNK", 1)
    repeats.forget()  # plans made before
    for name, value in run_case(arguments, "numba").items():
        assert torch.equal(value, whole[name]), name


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("batch", [2, 8, 11])
def test_rows_in_another_order_give_the_same_rows(batch: int) -> None:
    """Whole groups are moved: a row's bits follow from its place among the last rows alone."""
    arguments = make_arguments(Case(batch, 7, 5, 17, initial_state=False))
    size = threads.group_size(batch)
    whole = batch // size * size
    order = torch.cat((torch.randperm(whole), torch.arange(whole, batch)))
    outputs, state = gru(**arguments, backend="numba")
    moved, last = gru(**(arguments | {"x": arguments["x"][order]}), backend="numba")
    assert torch.equal(moved, outputs[order]) and torch.equal(last, state[order])


def test_parts_are_whole_groups_of_all_rows(monkeypatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for batch in range(1, 40):
        size = threads.group_size(batch)
        for lengths in (None, torch.randint(0, 9, (batch,))):
            order, bounds = threads.share_rows(batch, lengths, 10**12)
            assert (order is None) == (lengths is None)
            assert bounds[0] == 0 and bounds[-1] == batch and len(bounds) == 1 + min(3, -(-batch // size))
            sizes = [end - begin for begin, end in zip(bounds, bounds[1:], strict=False)]
            assert min(sizes) > 0 and sum(number % size > 0 for number in sizes) == (batch % size > 0)
            if order is not None:
                assert sorted(order.tolist()) == list(range(batch))
                for begin, end in zip(bounds, bounds[1:], strict=False):
                    own = lengths[order[begin:end]]
                    assert (own[:-1] >= own[1:]).all()
    assert threads.share_rows(40, None, 10) == (None, [0, 40])
    assert threads.share_rows(0, torch.ones(0), 10**12)[1] == [0]
