"""Which family of kernels runs a scan: the one with the weights in registers where it serves, else the plain one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor

from ... import faults
from ...call.problem import Inputs, Variant
from ...tuning.devices import device_limits
from ...tuning.tables import Key
from ..eager.continuation import Norm
from ..reasons import reasons_against_cells
from . import scan
from .reasons import reasons_against_resident

RESIDENT, MEMBERS = "resident", "resident (several scans)"
Result = TypeVar("Result")


def run_scan(
    direction: str, arguments: tuple[Any, ...], a: Inputs, variant: Variant, precision: str, norm: Norm | None = None
) -> tuple:  # fmt: skip
    """Run the scan of a direction on the kernels of the family for it, and on the plain ones where those fail.

    Args:
        direction: "forward" or "backward". arguments: those of `scan.scan_forward` or `scan.scan_backward`, which give
            the same results, but for `precision`. a, variant: the inputs they come from. norm: of its sums, if any.
    """

    def run_plain() -> tuple[Tensor, ...]:
        cell = {name: value for name, value in (("keep", a.keep), ("norm", norm)) if value is not None}
        return getattr(scan, f"scan_{direction}")(*arguments, precision, **cell)

    def run_resident() -> tuple[Tensor, ...]:
        # Asked again: a device that refused a grid of waiting programs is one that no longer runs them.
        if not is_for_resident(direction, a, precision, variant):
            return run_plain()
        return _launch_of(f"run_{direction}")(*arguments, precision)

    if scan.is_forced() or not is_for_resident(direction, a, precision, variant):
        return run_plain()
    known_by = faults.Scan.of(a, variant, precision)._replace(family=RESIDENT)
    return faults.run_or_continue(known_by, direction, run_resident, run_plain)


def run_members(
    direction: str, together: Callable[[Callable[..., tuple]], Result], one_by_one: Callable[[], Result],
    members: Sequence[Inputs], variant: Variant, precision: str,
) -> Result:  # fmt: skip
    """Return `together(run)`, `run` being one launch of the resident kernels for all members; else `one_by_one()`."""

    def run_together() -> Result:
        if not is_for_resident(direction, members[0], precision, variant, len(members)):
            return one_by_one()
        return together(_launch_of(f"run_members_{direction}"))

    if scan.is_forced() or not is_for_resident(direction, members[0], precision, variant, len(members)):
        return one_by_one()
    known_by = faults.Scan.of(members[0], variant, precision)._replace(family=MEMBERS)
    return faults.run_or_continue(known_by, direction, run_together, one_by_one)


def is_for_resident(direction: str, a: Inputs, precision: str, variant: Variant, members: int = 1) -> bool:
    """Return whether the kernels with weights in registers run a scan, or so many at once, on its device."""
    if reasons_against_cells(a.keep is not None, variant):
        return False
    masked = a.mask is not None or a.resets is not None
    key = Key.of(direction, a.u.dtype, precision, a.u.shape[0], a.drop is not None, masked, not variant.reset_after)
    drops = 0 if a.drop is None else a.drop.shape[0]
    return not reasons_against_resident(key, a.h0.shape[0], device_limits(a.u.device), drops, members)


def _launch_of(name: str) -> Callable[..., tuple]:
    """Return a function of `resident`, whose language older versions of Triton do not have."""
    return getattr(importlib.import_module(f"{__package__}.resident"), name)
