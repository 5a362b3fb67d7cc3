"""Time candidates on the GPU at hand: first found right, then timed; each within limits, all within a budget.

A candidate runs one kernel of the two; the other keeps the configuration it would have anyway. It must first agree with
the float64 oracle on a short call of the same sizes, outputs and state for the forward kernel, every gradient for the
backward one, by the rule of `tolerance`. That is done in worker processes, side by side, which also leaves the compiled
kernels in Triton's cache. Then the scan alone is timed, without the products before and after it, on
random inputs, several sets in rotation.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...call.problem import Variant
from ...environment import is_interpreted
from ...tuning.configs import Device, LaunchConfig
from ...tuning.tables import Key
from ..benchmark.timing import Timing, measure
from ..oracle.cases import DTYPES
from .checking import REHEARSED_STEPS
from .search import NOT_COMPILED, Found, Tried
from .space import Problem
from .workers import Compilers, Job

STEPS_TIMED = 256
INPUT_SETS = 3
NOT_TIMED = "not timed"


def rehearsal_device() -> Device:
    """Return a device for Triton's interpreter, whose programs run one after another: one program at a time."""
    if not is_interpreted():
        raise RuntimeError("a rehearsal needs TRITON_INTERPRET=1 before triton is imported")
    return Device(1, 227 * 1024, name="Triton's interpreter", target="interpreter")


def measure_candidates(
    found: Sequence[Found],
    rehearse: bool,
    compilers: Compilers,
    depth: int,
    seconds: float,
    budget: float,
    report: Callable[[int, int, str], None],
    keep: Callable[[], None],
) -> None:
    """Check candidates side by side, then time those that are right, one by one; mark what may win.

    Args:
        found: changed in place, candidate by candidate, so that an interruption keeps what was found.
        rehearse: whether this is the interpreter: few steps, no GPU. compilers: the workers that check.
        depth: candidates for each problem, in the order of the model. seconds: of timing for one candidate.
        budget: seconds for all, at most half of it for checking; what it does not reach cannot win.
        report: told the candidates done, all, and the last one. keep: called after each problem.
    """
    end = time.monotonic() + budget
    shortlists = [[one for one in problem.tried if one.fault == NOT_COMPILED][:depth] for problem in found]
    check_candidates(shortlists, compilers, end - budget / 2, report)
    right = [[one for one in shortlist if one.fault == NOT_TIMED] for shortlist in shortlists]
    total, done = sum(map(len, right)), 0
    for place, (problem, candidates) in enumerate(zip(found, right, strict=True)):
        # An equal share of what is left, so that the last problems are not the ones that go without.
        stop = time.monotonic() + (end - time.monotonic()) / (len(found) - place)
        timer = None
        for one in candidates:
            if time.monotonic() > stop and timer is not None:
                break
            timer = timer or Timer(problem.problem, rehearse)
            one.timing, one.fault = timer.time(one.candidate.config, seconds), ""
            report(done := done + 1, total, f"timed {problem.problem}: {one.microseconds:.2f} us")
        keep()


def check_candidates(
    shortlists: Sequence[Sequence[Tried]], compilers: Compilers, stop: float, report: Callable[[int, int, str], None]
) -> None:
    """Compare candidates with the oracle in worker processes until `stop`: every problem's first, then the seconds."""
    ranked = [one for rank in itertools.zip_longest(*shortlists) for one in rank if one is not None]
    jobs = {
        Job("", one.candidate.problem.key, one.candidate.config, one.candidate.problem.batch): one for one in ranked
    }
    for done, (job, compiled) in enumerate(compilers.run(jobs), 1):
        one = jobs[job]
        one.fault = "; ".join(compiled.wrong) or NOT_TIMED
        report(done, len(jobs), f"checked {one.candidate.problem}: {one.fault}")
        if time.monotonic() > stop:
            return


class Timer:
    """Times configurations on a problem's scan, all on the same inputs."""

    def __init__(self, problem: Problem, rehearse: bool):
        self.key, self.device = problem.key, torch.device("cpu" if rehearse else "cuda")
        self.steps = REHEARSED_STEPS if rehearse else STEPS_TIMED
        self.sets = [make_scan(self.key, problem.batch, self.steps, self.device, seed) for seed in range(INPUT_SETS)]

    def time(self, config: LaunchConfig, seconds: float) -> Timing:
        """Return the time of one step, ms."""
        from ...backends.triton.scan import scan_backward, scan_forward, use_config

        scan = scan_forward if self.key.kernel == "forward" else scan_backward
        with use_config(config):
            timing = measure({"scan": lambda i: scan(*self.sets[i % INPUT_SETS])}, self.device, seconds)["scan"]
        return Timing(tuple(sample / self.steps for sample in timing.samples))


def make_scan(key: Key, batch: int, steps: int, device: torch.device, seed: int) -> tuple:
    """Return the arguments of one scan with random inputs: those of `launch.scan_forward` or `scan_backward`."""
    generator = torch.Generator(device).manual_seed(seed)
    T, B, U, dtype = steps, batch, key.units, DTYPES[key.dtype]
    variant = Variant(reset_after="reset_before" not in key.flags)

    def normal(*shape: int, spread: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator, device=device) * spread).to(dtype)

    def chance(*shape: int, p: float) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device) < p

    u = normal(U, 3 * U, spread=U**-0.5)
    mask, resets = (chance(T, B, p=0.7), chance(T, B, p=0.1)) if "masked" in key.flags else (None, None)
    drop = chance(3, B, U, p=0.8).to(dtype) * 1.25 if "dropout" in key.flags else None
    if key.kernel == "forward":
        bias_n = normal(U, spread=0.3) if variant.reset_after else None
        start = normal(B, U, spread=0.5)
        return normal(T, B, 3 * U), u, bias_n, start, mask, resets, None, drop, variant, True, key.precision
    gates = normal(4 if variant.reset_after else 3, T, B, U).sigmoid()
    return (
        normal(T, B, U), normal(B, U), gates, normal(T, B, U, spread=0.5), u, mask, resets, drop, variant, False,
        key.precision,
    )  # fmt: skip
