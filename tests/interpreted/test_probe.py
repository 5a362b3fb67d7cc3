"""The exchanges alone, one process per program: order, faults, repeated launches, rounds that wrap."""

import os
import signal
import time

import pytest
import torch
from processes import process_per_program

from tritongru.backends.triton import probe
from tritongru.backends.triton.kernels import probe as kernel
from tritongru.backends.triton.probe import Probe
from tritongru.tuning import configs

METHODS = pytest.mark.parametrize("method", configs.EXCHANGES)
PATIENCE = 1 << 20


def check(probe, rounds):
    assert not probe.faults.any()
    torch.testing.assert_close(probe.gathered, probe.expected(rounds), rtol=0, atol=0)


@METHODS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_every_round_reads_what_all_have_published(method, dtype):
    exchange = Probe(method, programs=5, tiles=2, dtype=dtype, device="cpu")
    with process_per_program(delay=0.003, seed=1):
        exchange.run(12, PATIENCE)
    check(exchange, 12)


@METHODS
def test_launches_follow_each_other_on_one_board(method):
    """Rounds go on where the launch before ended, and nothing is cleared."""
    exchange = Probe(method, programs=3, dtype=torch.float16, device="cpu")
    for launch, rounds in enumerate((5, 1, 4)):
        with process_per_program(delay=0.001, seed=launch):
            exchange.run(rounds, PATIENCE)
        check(exchange, rounds)


WRAPS = [("tagged", torch.float16, 16)] + [
    (method, torch.float32, bits) for method in configs.EXCHANGES for bits in (31, 32)
]  # fmt: skip


@pytest.mark.parametrize("method, dtype, bits", WRAPS, ids=str)
def test_rounds_wrap(method, dtype, bits):
    first = (1 << bits) - 3
    exchange = Probe(method, programs=3, dtype=dtype, device="cpu", first=first)
    with process_per_program(delay=0.001):
        exchange.run(6, PATIENCE)
    check(exchange, 6)


def test_two_layers_at_once():
    """Two launches of each exchange, all running at the same time."""
    both = [Probe(method, programs=3, dtype=torch.float16, device="cpu", first=i)
            for i, method in enumerate((*configs.EXCHANGES, *configs.EXCHANGES))]  # fmt: skip
    with process_per_program(delay=0.002, together=True):
        for exchange in both:
            exchange.run(6, PATIENCE)
    for exchange in both:
        check(exchange, 6)


@pytest.mark.parametrize("rounds", [1, 4])
def test_launches_as_the_exchange(rounds):
    exchange = Probe("launch", programs=3, tiles=2, dtype=torch.float16, device="cpu", first=7)
    exchange.run(rounds, PATIENCE)
    check(exchange, rounds)


@METHODS
def test_without_the_wait_a_sum_is_wrong(method, monkeypatch):
    """The sums see a missing wait; otherwise the tests above would prove nothing."""
    monkeypatch.setattr(kernel, "await_round", lambda p, round, programs, patience, *_: patience)
    collect = kernel.collect
    monkeypatch.setattr(kernel, "collect", lambda *a: (collect(*a)[0], collect(*a)[1] & 0))
    exchange = Probe(method, programs=3, dtype=torch.float16, device="cpu")
    with process_per_program(on_start=lambda x, y: time.sleep(0.3 * (x == 1))):
        exchange.run(3, PATIENCE)
    assert not torch.equal(exchange.gathered, exchange.expected(3))


def die(x, y):
    if (x, y) == (1, 0):
        os._exit(0)


def stop_in_the_third_round(x, y):
    if (x, y) == (1, 0):
        calls = []

        def stop(*arguments, original=kernel.round_value):
            calls.append(1)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGSTOP)
            return original(*arguments)

        kernel.round_value = stop


@METHODS
@pytest.mark.parametrize("fault", [die, stop_in_the_third_round], ids=lambda fault: fault.__name__)
def test_a_lost_program_is_a_fault_of_its_tile_alone(method, fault):
    exchange = Probe(method, programs=3, tiles=2, dtype=torch.float16, device="cpu")
    with process_per_program(on_start=fault):
        # A poll of tagged words gathers a whole round.
        exchange.run(6, patience=400 if method == "tagged" else 3000)
    assert exchange.faults.tolist() == [1, 0]
    torch.testing.assert_close(exchange.gathered[1], exchange.expected(6)[1], rtol=0, atol=0)


def test_unknown_method():
    with pytest.raises(ValueError, match="`method`.*'pigeon'"):
        probe.Probe("pigeon", 2, device="cpu")
