"""Time candidates on the GPU at hand: compiled, right, then timed; each within limits, all within a budget.

A candidate runs one kernel of the two; the other keeps the configuration it would have anyway. It must first agree with
the float64 oracle on a short call of the same sizes, outputs and state for the forward kernel, every gradient for the
backward one, by the rule of `tolerance`. Then the scan alone is timed, without the products before and after it, on
random inputs, several sets in rotation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..configs import Device, LaunchConfig
from ..spec import Variant, is_interpreted
from ..tables import Key
from .cases import DTYPES, Case, in_dtype, make_arguments, run_case
from .timing import Timing, measure
from .tolerance import largest_error, tolerance
from .tune_search import NOT_COMPILED, Found, Tried
from .tune_space import Problem

STEPS_CHECKED, STEPS_TIMED = 8, 256
INPUT_SETS = 3
# In the interpreter: enough to walk every line, in seconds.
REHEARSED_STEPS = 3
# A call of this many rows proves the arithmetic of a tile and of a partial one; timing has them all.
ROWS_CHECKED = 80
# After these words in an error the device runs nothing more in this process.
LOST = ("illegal memory access", "device-side assert", "unspecified launch failure", "misaligned address")


def rehearsal_device() -> Device:
    """Return a device for Triton's interpreter, whose programs run one after another: one program at a time."""
    if not is_interpreted():
        raise RuntimeError("a rehearsal needs TRITON_INTERPRET=1 before triton is imported")
    return Device(1, 227 * 1024, name="Triton's interpreter", target="interpreter")


def measure_candidates(
    found: Sequence[Found],
    rehearse: bool,
    depth: int,
    seconds: float,
    budget: float,
    report: Callable[[int, int, str], None],
    keep: Callable[[], None],
) -> None:
    """Time the candidates of every problem and mark what may win.

    Args:
        found: changed in place, candidate by candidate, so that an interruption keeps what was found.
        rehearse: whether this is the interpreter: few steps, no GPU.
        depth: candidates for each problem, in the order of the model. seconds: of timing for one candidate.
        budget: seconds for all; problems that it does not reach keep no winner.
        report: told the candidates done, all, and the last one. keep: called after each problem.
    """
    begin, done = time.monotonic(), 0
    shortlists = [[one for one in problem.tried if one.fault == NOT_COMPILED][:depth] for problem in found]
    total = sum(map(len, shortlists))
    for place, (problem, shortlist) in enumerate(zip(found, shortlists, strict=True)):
        left = budget - (time.monotonic() - begin)
        # An equal share of what is left, so that the last problems are not the ones that go without.
        stop = time.monotonic() + left / (len(found) - place)
        stage = None
        for one in shortlist:
            if time.monotonic() > stop and (stage is not None or left <= 0):
                break
            stage = stage or Stage(problem.problem, rehearse)
            _try(one, stage, seconds)
            done += 1
            report(done, total, f"{problem.problem}: {one.fault or f'{one.microseconds:.2f} us'}")
        done = sum(map(len, shortlists[: place + 1]))
        keep()


class Stage:
    """What the candidates of one problem share: the inputs, the oracle's results, the kernel's other half."""

    def __init__(self, problem: Problem, rehearse: bool):
        self.problem, self.key = problem, problem.key
        self.device = torch.device("cpu" if rehearse else "cuda")
        self.steps = REHEARSED_STEPS if rehearse else STEPS_TIMED
        self.case = make_case(self.key, min(problem.batch, ROWS_CHECKED), min(self.steps, STEPS_CHECKED))
        self.arguments = make_arguments(self.case, self.device)
        self.truth = run_case(in_dtype(self.arguments, torch.float64), "reference", self.case.seed)
        self.oracle = run_case(self.arguments, "reference", self.case.seed)
        self.sets = [make_scan(self.key, problem.batch, self.steps, self.device, seed) for seed in range(INPUT_SETS)]

    def check(self, config: LaunchConfig) -> str:
        """Return what is wrong with a configuration's results; "" if they are within the tolerance."""
        from ..launch import use_config

        with use_config({self.key.kernel: config}):
            results = run_case(self.arguments, "triton", self.case.seed)
        for name, exact in self.truth.items():
            if name.startswith("d ") != (self.key.kernel == "backward"):
                continue
            allowed = tolerance(self.oracle[name], exact, DTYPES[self.key.dtype], self.key.precision)
            if not (error := largest_error(results[name], exact)) <= allowed:
                return f"{name}: error {error:.3g} exceeds the tolerance {allowed:.3g}"
        return ""

    def time(self, config: LaunchConfig, seconds: float) -> Timing:
        """Return the time of one step, ms."""
        from ..launch import scan_backward, scan_forward, use_config

        scan = scan_forward if self.key.kernel == "forward" else scan_backward
        with use_config(config):
            timing = measure({"scan": lambda i: scan(*self.sets[i % INPUT_SETS])}, self.device, seconds)["scan"]
        return Timing(tuple(sample / self.steps for sample in timing.samples))


def make_case(key: Key, batch: int, steps: int) -> Case:
    """Return the call that candidates are checked on."""
    masked = "masked" in key.flags
    return Case(
        batch=batch, time=steps, input_size=16, units=key.units, dtype=key.dtype, mask=masked, resets=masked,
        reset_after="reset_before" not in key.flags, recurrent_dropouts=3 if "dropout" in key.flags else 0,
        precision=key.precision,
    )  # fmt: skip


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


def _try(one: Tried, stage: Stage, seconds: float) -> None:
    try:
        one.fault = stage.check(one.candidate.config)
        if not one.fault:
            one.timing = stage.time(one.candidate.config, seconds)
    except Exception as error:  # whatever compiler or driver raise is their verdict on this configuration
        lines = str(error).strip().splitlines() or [""]
        one.fault = f"{type(error).__name__}: {lines[0]}"[:200]
        if any(word in str(error) for word in LOST):
            raise RuntimeError(f"the device is lost after {one.candidate.config}: {one.fault}") from error
