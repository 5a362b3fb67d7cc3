"""The one stopwatch: several calls timed in turn, so that a drift of the machine falls on all of them alike.

On a GPU a sample is the time between two events around enough calls to fill it; on a CPU it is wall time. Each call is
told the number of the sample, so that it can take its inputs in rotation.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

# A sample shorter than this is filled with repeated calls: clocks and events have a resolution.
SAMPLE_SECONDS = 2e-3
MOST_CALLS = 200
# Before each sample on a CPU: threads of OpenMP and of other runtimes keep turning for a while after a call, on cores
# that the next contender is to have.
PAUSE_SECONDS = 1e-3


@dataclass(frozen=True)
class Timing:
    """The samples of one call, in milliseconds, in the order of the rounds."""

    samples: tuple[float, ...]

    @property
    def p20(self) -> float:
        """The 20th percentile, ms."""
        return percentile(self.samples, 20)

    @property
    def p50(self) -> float:
        """The median, ms."""
        return percentile(self.samples, 50)

    @property
    def p80(self) -> float:
        """The 80th percentile, ms."""
        return percentile(self.samples, 80)


def percentile(samples: tuple[float, ...], percent: float) -> float:
    """Return the percentile of `samples`, linear between neighbours.

    >>> percentile((1.0, 2.0, 4.0), 50), percentile((1.0, 2.0), 20)
    (2.0, 1.2)
    """
    return float(np.percentile(samples, percent))


def ratio(base: Timing, other: Timing) -> float:
    """Return how many times as long `base` took as `other`: the median over the rounds that both took part in.

    >>> ratio(Timing((2.0, 4.0)), Timing((1.0, 2.0, 9.0)))
    2.0
    """
    return statistics.median(b / o for b, o in zip(base.samples, other.samples, strict=False))


def measure(
    calls: Mapping[str, Callable[[int], object]],
    device: str | torch.device = "cpu",
    seconds: float = 1.0,
    rounds: int = 60,
    least: int = 3,
) -> dict[str, Timing]:
    """Time every call of `calls`, interleaved.

    In each round every call is sampled once, in an order that rotates; on a CPU after a call that is not timed. A call
    leaves when it has spent `seconds` and has `least` samples; the others go on up to `rounds`.

    Args:
        calls: by name; each takes the number of the sample.
        device: where they run. seconds: for each call, warm-up not counted. rounds: samples at most.
        least: samples at least.

    Returns:
        A `Timing` for each name.

    Raises:
        ValueError: `least` or `rounds` is below 1, or `seconds` is negative.

    >>> timings = measure({"sum": lambda i: sum(range(100))}, seconds=0.01)
    >>> len(timings["sum"].samples) >= 3
    True
    """
    if least < 1 or rounds < 1 or seconds < 0:
        raise ValueError(f"`least`, `rounds` >= 1 and `seconds` >= 0 wanted, got {least}, {rounds}, {seconds}")
    place = torch.device(device)
    repeats = {name: _warm_up(call, place, seconds / 2) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    names = list(calls)
    for number in range(max(rounds, least)):
        shift = number % max(len(names), 1)
        for name in names[shift:] + names[:shift]:
            if spent[name] >= seconds and len(samples[name]) >= least:
                continue
            begin = time.perf_counter()
            if place.type == "cpu":
                time.sleep(PAUSE_SECONDS)
                # Not timed: caches, and memory that another contender gave back, are then as after a call of its own.
                calls[name](number)
            samples[name].append(time_once(calls[name], place, repeats[name], number))
            spent[name] += time.perf_counter() - begin
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def time_once(call: Callable[[int], object], device: torch.device, repeats: int = 1, number: int = 0) -> float:
    """Return the mean milliseconds of `repeats` calls in a row; the device is idle before and after."""
    if device.type != "cuda":
        begin = time.perf_counter()
        for k in range(repeats):
            call(number + k)
        return (time.perf_counter() - begin) * 1e3 / repeats
    begin_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    with torch.cuda.device(device):
        begin_event.record()
        for k in range(repeats):
            call(number + k)
        end_event.record()
    torch.cuda.synchronize(device)
    return begin_event.elapsed_time(end_event) / repeats


def _warm_up(call: Callable[[int], object], device: torch.device, seconds: float) -> int:
    """Call until caches are warm, at least twice and for at most `seconds` more; return the repeats of a sample."""
    time_once(call, device)  # compiles, allocates
    latest = time_once(call, device, number=1)
    stop = time.perf_counter() + min(seconds, 0.2)
    number = 2
    while time.perf_counter() < stop:
        latest = min(latest, time_once(call, device, number=number))
        number += 1
    return max(1, min(MOST_CALLS, round(SAMPLE_SECONDS * 1e3 / max(latest, 1e-6))))
