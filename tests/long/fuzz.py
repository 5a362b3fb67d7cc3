"""The deep profile: draw configurations for a given time, or a given number, and say how many were tried.

    python tests/long/fuzz.py --minutes 10                        CPU backends and layers
    TRITON_INTERPRET=1 python tests/long/fuzz.py --minutes 10     the Triton kernels, interpreted

A failure is shrunk by hypothesis, printed, and kept in tests/regressions.json, which the quick profile replays.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from fuzzing import REGRESSIONS, TARGETS, Target
from hypothesis import HealthCheck, Verbosity, given, seed, settings

from tritongru.environment import is_interpreted

SHRINK_S = 60.0
ROUND = 200  # configurations between two looks at the clock


@dataclass
class Tally:
    """What one run tried and found."""

    tried: Counter
    compared: Counter
    failures: list


def fuzz(targets: list[Target], seconds: float, most: int | None, first_seed: int) -> Tally:
    """Draw until `seconds` have passed or `most` configurations were tried; at most three failures per target."""
    tally, begin, number = Tally(Counter(), Counter(), []), time.monotonic(), 0
    live = list(targets)
    while live and time.monotonic() - begin < seconds and (most is None or tally.tried.total() < most):
        target = live[number % len(live)]
        failure = _fuzz_once(target, first_seed + number, tally, begin + seconds)
        number += 1
        if number % 5 == 0:
            print(f"{time.monotonic() - begin:.0f} s: {tally.tried.total()} configurations", flush=True)
        if failure is not None:
            print(f"{target.name}: {failure[0]}\n{failure[1]}", flush=True)
            tally.failures.append((target.name, *failure))
            if sum(name == target.name for name, *_ in tally.failures) == 3:
                live = [other for other in live if other is not target]
    return tally


def _fuzz_once(target: Target, number: int, tally: Tally, deadline: float):
    """Run one round; return (smallest failing configuration, message), or None."""
    smallest: list = []
    failing: dict = {}
    give_up = deadline

    @seed(number)
    @settings(max_examples=ROUND, deadline=None, database=None, suppress_health_check=list(HealthCheck),
              print_blob=False, report_multiple_bugs=False, verbosity=Verbosity.quiet)  # fmt: skip
    @given(target.strategy())
    def check(c) -> None:
        nonlocal give_up
        if time.monotonic() > give_up:
            # No more time to draw or to shrink: only what is known to fail does so again.
            if c in failing:
                raise failing[c]
            return
        try:
            compared = target.check(c)
        except Exception as error:
            if not failing:
                give_up = min(deadline, time.monotonic() + SHRINK_S)
            failing[c] = error
            smallest[:] = [c, f"{type(error).__name__}: {error}"]
            raise
        if not failing:  # what is tried while a failure is shrunk is not a draw
            tally.tried[target.name] += 1
            tally.compared[target.name] += compared

    try:
        check()
    except Exception:
        # Hypothesis runs the smallest example last; what is not a failing example is an error of this program.
        if not smallest:
            raise
        return tuple(smallest)
    return None


def keep(failures: list) -> None:
    """Add the failures to tests/regressions.json."""
    kept = json.loads(REGRESSIONS.read_text())
    for name, configuration, _ in failures:
        entry = {"changes": configuration.changes()}
        if not any(known["changes"] == entry["changes"] for known in kept[name]):
            kept[name].append(entry | {"found": "by make fuzz"})
    temporary = REGRESSIONS.with_suffix(".tmp")
    temporary.write_text(json.dumps(kept, indent=1) + "\n")
    os.replace(temporary, REGRESSIONS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--count", type=int, help="stop after about this many configurations")
    parser.add_argument("--seed", type=int, help="default: from the clock; printed")
    parser.add_argument("--targets", nargs="+", choices=sorted(TARGETS))
    args = parser.parse_args()
    usual = ["kernels"] if is_interpreted() else ["backends"] * 4 + ["drop_in", "layer"]
    first_seed = random.randrange(10**9) if args.seed is None else args.seed
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch.empty gives NaN
    warnings.simplefilter("ignore")
    begin = time.monotonic()
    print(f"seed {first_seed}", flush=True)
    tally = fuzz([TARGETS[name] for name in args.targets or usual], 60 * args.minutes, args.count, first_seed)
    for name, count in tally.tried.items():
        print(f"{name}: {count} configurations tried, {tally.compared[name]} comparisons with the truth")
    print(f"{tally.tried.total()} configurations in {time.monotonic() - begin:.0f} s, {len(tally.failures)} failures")
    if tally.failures:
        keep(tally.failures)
        print(f"kept in {REGRESSIONS}")
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
