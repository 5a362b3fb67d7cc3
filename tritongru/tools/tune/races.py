"""Race the kernels against torch's own GRU on whole calls, so that the dispatcher knows where to prefer the latter.

A call has an input as wide as its units, projection included, and is timed as inference and as a training step. The
kernels run with the configurations that the sweep found best.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch

from ...tuning.configs import LaunchConfig
from ...tuning.tables import Race, bucket
from ..benchmark.contenders import INFERENCE, TRAINING, make_call, own
from ..benchmark.timing import measure
from ..benchmark.work import Work, float32_products
from ..benchmark.workloads import Workload
from .checking import REHEARSED_STEPS
from .measure import STEPS_TIMED
from .search import Found

# dtype, precision, units, batch
Call = tuple[str, str, int, int]


def run_races(
    found: Sequence[Found],
    rehearse: bool,
    provenance: str,
    seconds: float,
    budget: float,
    races: list[Race],
    report: Callable[[int, int, str], None],
) -> None:
    """Time triton and aten in turn on every problem without flags.

    Args:
        found: the problems, with their winners. rehearse: whether this is the interpreter, without a GPU.
        provenance: of the table. seconds: for each backend and direction. budget: seconds for all.
        races: what was found is appended, race by race, so that an interruption keeps it.
        report: told the calls done, all, and the last result.
    """
    stop = time.monotonic() + budget
    calls = dict(list_calls(found))
    for done, (call, configs) in enumerate(calls.items(), 1):
        if time.monotonic() > stop:
            return
        for training in (False, True):
            race = run_race(call, configs, training, rehearse, provenance, seconds)
            races.append(race)
            report(done, len(calls), f"U={call[2]} B={call[3]}: triton {race.triton:.2f} us, aten {race.aten:.2f} us")


def list_calls(found: Sequence[Found]) -> Iterator[tuple[Call, dict[str, LaunchConfig]]]:
    """Yield every call that aten can run, once, with the best configuration of each kernel that has one."""
    best: dict[Call, dict[str, LaunchConfig]] = {}
    for one in found:
        key = one.problem.key
        # aten knows no other precision of float32 products.
        if key.flags or key.precision not in ("ieee", "tf32"):
            continue
        configs = best.setdefault((key.dtype, key.precision, key.units, one.problem.batch), {})
        if one.winner is not None:
            configs[key.kernel] = one.winner.candidate.config
    yield from best.items()


def run_race(
    call: Call, configs: dict[str, LaunchConfig], training: bool, rehearse: bool, provenance: str, seconds: float
) -> Race:
    """Return the times of one call on triton and on aten."""
    dtype, precision, units, batch = call
    steps = REHEARSED_STEPS if rehearse else STEPS_TIMED
    device = torch.device("cpu" if rehearse else "cuda")
    products = "tf32" if dtype == "float32" and precision == "tf32" else dtype
    work = Work(Workload("race", steps, batch, units, units), products, device)
    runners = {"triton": own(work, "triton", config=configs), "aten": own(work, "aten")}
    direction = TRAINING if training else INFERENCE
    with float32_products(products):
        timings = measure(
            {name: make_call(runner, work, direction) for name, runner in runners.items()}, device, seconds
        )
    times = {name: round(timing.p50 * 1e3 / steps, 4) for name, timing in timings.items()}
    here = bucket(batch)
    return Race((dtype, precision, units, training), (here, here), times["triton"], times["aten"], provenance)
