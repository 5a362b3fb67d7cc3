"""The exchange alone, one process per program: order, faults, repeated launches, rounds that wrap."""

import os
import signal
import time

import pytest
import torch
from processes import process_per_program

from tritongru.backends.triton import probe
from tritongru.backends.triton.kernels import probe as kernel
from tritongru.backends.triton.probe import Probe

PATIENCE = 1 << 20


def check(probe, rounds):
    assert not probe.faults.any()
    torch.testing.assert_close(probe.gathered, probe.expected(rounds), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_every_round_reads_what_all_have_published(dtype):
    exchange = Probe("counter", programs=5, tiles=2, dtype=dtype, device="cpu")
    with process_per_program(delay=0.003, seed=1):
        exchange.run(12, PATIENCE)
    check(exchange, 12)


def test_launches_follow_each_other_on_one_board():
    """Rounds go on where the launch before ended, and nothing is cleared."""
    exchange = Probe("counter", programs=3, dtype=torch.float16, device="cpu")
    for launch, rounds in enumerate((5, 1, 4)):
        with process_per_program(delay=0.001, seed=launch):
            exchange.run(rounds, PATIENCE)
        check(exchange, rounds)


@pytest.mark.parametrize("bits", [31, 32])
def test_rounds_wrap(bits):
    first = (1 << bits) - 3
    exchange = Probe("counter", programs=3, dtype=torch.float16, device="cpu", first=first)
    with process_per_program(delay=0.001):
        exchange.run(6, PATIENCE)
    check(exchange, 6)


def test_two_layers_at_once():
    """Two launches, running at the same time."""
    both = [Probe("counter", programs=3, dtype=torch.float16, device="cpu", first=i) for i in range(2)]
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


def test_without_the_wait_a_sum_is_wrong(monkeypatch):
    """The sums see a missing wait; otherwise the tests above would prove nothing."""
    monkeypatch.setattr(kernel, "await_round", lambda p, round, programs, patience, *_: patience)
    exchange = Probe("counter", programs=3, dtype=torch.float16, device="cpu")
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


@pytest.mark.parametrize("fault", [die, stop_in_the_third_round], ids=lambda fault: fault.__name__)
def test_a_lost_program_is_a_fault_of_its_tile_alone(fault):
    exchange = Probe("counter", programs=3, tiles=2, dtype=torch.float16, device="cpu")
    with process_per_program(on_start=fault):
        exchange.run(6, patience=3000)
    assert exchange.faults.tolist() == [1, 0]
    torch.testing.assert_close(exchange.gathered[1], exchange.expected(6)[1], rtol=0, atol=0)


def test_unknown_method():
    with pytest.raises(ValueError, match="`method`.*'pigeon'"):
        probe.Probe("pigeon", 2, device="cpu")
