"""The search space of launch configurations, and the rules that leave a part of it out before anything is compiled."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass

from ...tuning import configs
from ...tuning.configs import PERSISTENT, SINGLE, STEPS, STREAMED, Device, LaunchConfig
from ...tuning.tables import ITEM_SIZES, Key
from . import model as step_model
from .model import Machine, StepTime

BLOCKS_B = (16, 32, 64)
BLOCKS_H = (16, 32, 64)
# Chunks of the product: of weights that stay, and of weights that are streamed.
BLOCKS_K = {PERSISTENT: (64, 128), STREAMED: (32, 64), STEPS: (32, 64)}
WARPS = (2, 4, 8)
# float32 multiply-adds are unrolled, and the compiler's time grows faster than their number: 2,000 per thread compile
# in seconds, 6,000 in minutes.
MOST_UNROLLED = 4096
# A difference below this is not one that the model can see.
MARGIN = 0.05


@dataclass(frozen=True)
class Problem:
    """What one configuration is looked for: a key and a batch bucket."""

    key: Key
    batch: int

    def __str__(self) -> str:
        key = self.key
        return " ".join((key.kernel, key.dtype, key.precision, f"U={key.units} B={self.batch}", *key.flags))


@dataclass(frozen=True)
class Candidate:
    """One configuration for a problem: its modelled step, or the rules against it.

    Attributes:
        turn: microseconds of a step for each cycle of one program. known: whether it is in the table shipped so far.
    """

    problem: Problem
    config: LaunchConfig
    step: StepTime
    turn: float
    against: tuple[str, ...] = ()
    known: bool = False

    def microseconds(self, cycles: float) -> float:
        """Return the step of all programs, us, from the cycles of one."""
        return self.step.launch + cycles * self.turn


def list_candidates(
    problem: Problem, device: Device, machine: Machine, known: Collection[LaunchConfig] = ()
) -> list[Candidate]:
    """Return the whole space for a problem: what the rules allow first, by its modelled time, then the rest.

    Of them `known` are in a table already.

    The model cannot tell the best from what is within MARGIN of it. Of these the formula's own comes first, then the
    others in an order that is the same for every batch, so that neighbouring batches share a configuration.
    """
    key = problem.key
    usual = configs.choose(key.units, problem.batch, ITEM_SIZES[key.dtype], device, "dropout" in key.flags)
    space = dict.fromkeys([usual, *known, *_every_config(key.units)])
    found = [
        Candidate(
            problem, config, step_model.model_step(config, key, problem.batch, device, machine),
            step_model.count_turns(config, key, problem.batch, device) * 1e-3 / machine.clock,
            tuple(rules_against(config, problem, device)), config in known,
        )
        for config in space
    ]  # fmt: skip
    limit = (1 + MARGIN) * min((one.step.total for one in found if not one.against), default=0.0)

    def order(one: Candidate) -> tuple:
        c, equal = one.config, one.step.total <= limit
        # Long chunks are compiled faster; four warps are what the formula has for most.
        taste = (c != usual, -c.block_k, c.block_b, c.block_h, abs(c.num_warps - 4))
        return (bool(one.against), not equal, *(taste if equal else (round(one.step.total, 3), *taste)))

    found.sort(key=order)
    return found


def rules_against(config: LaunchConfig, problem: Problem, device: Device) -> list[str]:
    """Return why a configuration is not worth compiling; docs/tuning.md lists the rules."""
    key, whole = problem.key, configs.next_power_of_two(problem.key.units)
    rules = configs.reasons_against(config, key.units, problem.batch, ITEM_SIZES[key.dtype], device)
    if config.block_b > configs.next_power_of_two(problem.batch):
        rules.append(f"block_b={config.block_b} is twice the batch or more")
    if config.schedule != SINGLE and config.block_h >= 2 * whole:
        rules.append(f"block_h={config.block_h} is twice the units or more")
    if config.num_warps * 16 * 8 > 2 * config.block_b * config.block_h:
        rules.append(f"num_warps={config.num_warps} are more than two for each matrix instruction's tile")
    if not config.streams and step_model.is_scalar(key):
        work = 3 * config.block_b * config.block_h * key.units // (config.num_warps * device.warp_size)
        if work > MOST_UNROLLED:
            rules.append(f"{work} float32 multiply-adds per thread, unrolled, would be compiled for minutes")
    return rules


def _every_config(units: int) -> list[LaunchConfig]:
    whole = configs.next_power_of_two(units)
    found = [
        LaunchConfig(SINGLE, block_b, whole, whole, warps)
        for block_b, warps in itertools.product(BLOCKS_B, WARPS)
        if whole <= 4096
    ]
    for schedule, blocks_k in BLOCKS_K.items():
        sizes = itertools.product(BLOCKS_B, BLOCKS_H, blocks_k, WARPS)
        found += [LaunchConfig(schedule, *blocks) for blocks in sizes]
    return found
