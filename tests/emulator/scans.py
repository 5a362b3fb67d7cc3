"""GRU calls through the compiled kernels, held to the oracle by the rule of `tritongru.tools.oracle.tolerance`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tritongru.backends.triton import scan as launch
from tritongru.tools.oracle import cases, tolerance
from tritongru.tools.oracle.cases import Case
from tritongru.tuning.configs import LaunchConfig

from .driver import EmulatedGPU, emulated_gpu

# Instructions of a launch: minutes, where the calls in the tests take seconds.
LIMIT = 20_000_000


@dataclass(frozen=True)
class Scan:
    """A call and how it is launched; without `config` as on the device, from its table or by the formula.

    `config` may be of one direction only, as `launch.use_config` takes it.
    """

    case: Case
    config: LaunchConfig | Mapping[str, LaunchConfig] | None = None
    capability: int = 90
    seed: int = 0
    processors: int | None = None

    def __str__(self) -> str:
        c = self.config
        if isinstance(c, Mapping):
            (direction, c), *_ = c.items()
            return f"{direction}-{replace(self, config=c)}"
        how = f"{c.schedule}-{c.block_b}x{c.block_h}x{c.block_k}-{c.num_warps}warps" if c else "default"
        return f"{how}-sm_{self.capability}-{self.case}"


def run(scan: Scan, edit: Callable[[str], str] | None = None, limit: int = LIMIT) -> tuple[dict, EmulatedGPU]:
    """Return outputs, state and gradients by name, and the device that ran the call."""
    arguments = cases.make_arguments(scan.case)
    options = dict(capability=scan.capability, seed=scan.seed, processors=scan.processors, edit=edit, limit=limit)
    with emulated_gpu(**options) as gpu, launch.use_config(scan.config):
        return cases.run_case(arguments, "triton"), gpu


def truth_and_oracle(case: Case) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the reference's results in float64, and in the case's own dtype."""
    arguments = cases.make_arguments(case)
    return cases.run_case(cases.in_dtype(arguments, torch.float64), "reference"), cases.run_case(arguments, "reference")


def check(scan: Scan) -> EmulatedGPU:
    """Raise AssertionError for a fault that the machine finds, or a result that is not within the tolerance."""
    truth, oracle = truth_and_oracle(scan.case)
    moved = []
    if scan.case.layer_norm is not None:
        moved = [cases.run_case(a, "reference") for a in cases.moved_arguments(cases.make_arguments(scan.case))]
    actual, gpu = run(scan)
    assert actual.keys() == truth.keys()
    for name, right in truth.items():
        further = [results[name] for results in moved]
        tolerance.check(f"{name} of {scan}", actual[name], oracle[name], right, scan.case.precision, moved=further)
    directions = [
        name
        for name in ("forward", "backward")
        if not {f"gru_{name}_kernel", f"resident_{name}_kernel"} & set(gpu.launches)
    ]
    assert not directions, f"never launched: {directions}"
    return gpu
