"""GRU calls through the resident kernels on the emulated GPU, held to the oracle like those of `scans`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from tritongru.backends.triton import families, resident
from tritongru.backends.triton import scan as launch
from tritongru.backends.triton.tilings import Tiling
from tritongru.tools.oracle import cases, tolerance
from tritongru.tools.oracle.cases import Case

from .driver import EmulatedGPU, emulated_gpu
from .scans import LIMIT, truth_and_oracle


@dataclass(frozen=True)
class ResidentScan:
    """A call and its tilings; without `backward` both directions have the same.

    Attributes:
        approximate: whether gates are the hardware's own tanh.
    """

    case: Case
    forward: Tiling
    backward: Tiling | None = None
    capability: int = 90
    seed: int = 0
    processors: int | None = None
    approximate: bool = False

    def __str__(self) -> str:
        names = [
            f"{t.exchange}-{t.block_b}x{t.block_h}-{t.warps_k}x{t.warps_n}warps-{t.shared_gates}shared"
            for t in dict.fromkeys((self.forward, self.backward or self.forward))
        ]
        rest = "-approximate" if self.approximate else ""
        return f"{'-'.join(names)}-sm_{self.capability}{rest}-{self.case}"


@contextlib.contextmanager
def resident_kernels(scan: ResidentScan):
    """Inside the block the backend "triton" runs the resident kernels."""
    before = launch.scan_forward, launch.scan_backward, families.is_for_resident
    backward = scan.backward or scan.forward
    launch.scan_forward = lambda *a: resident.run_forward(*a, tiling=scan.forward, approximate=scan.approximate)
    launch.scan_backward = lambda *a: resident.run_backward(*a, tiling=backward)
    # These are called with the tilings of `scan`, in the place of the plain kernels.
    families.is_for_resident = lambda *_: False
    try:
        yield
    finally:
        launch.scan_forward, launch.scan_backward, families.is_for_resident = before


def run_resident(
    scan: ResidentScan, edit: Callable[[str], str] | None = None, limit: int = LIMIT
) -> tuple[dict, EmulatedGPU]:
    """Return outputs, state and gradients by name, and the device that ran the call."""
    options = dict(capability=scan.capability, seed=scan.seed, processors=scan.processors, edit=edit, limit=limit)
    with emulated_gpu(**options) as gpu, resident_kernels(scan):
        return cases.run_case(cases.make_arguments(scan.case), "triton"), gpu


def check_resident(scan: ResidentScan) -> EmulatedGPU:
    """Raise AssertionError for a fault that the machine finds, or a result that is not within the tolerance."""
    truth, oracle = truth_and_oracle(scan.case)
    actual, gpu = run_resident(scan)
    assert actual.keys() == truth.keys()
    for name, right in truth.items():
        tolerance.check(f"{name} of {scan}", actual[name], oracle[name], right, scan.case.precision)
    directions = [name for name in ("forward", "backward") if f"resident_{name}_kernel" not in gpu.launches]
    assert not directions, f"never launched: {directions}"
    return gpu
