"""The scan and the reverse scan for CPUs, compiled by numba; numba is imported by the first call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ...call.check import Signature
from ...environment import reasons_against_numba
from ..reasons import reasons_against_activations, reasons_against_transforms

if TYPE_CHECKING:
    from .backward import run_backward
    from .forward import run_forward

__all__ = ["reasons_against", "run_backward", "run_forward"]

FEW_STEPS = 4  # without gradients they take less than another thread takes to begin (two cores of an AMD EPYC, AVX2)
# Products of one of two scans, from which on both at once were faster on two cores (AMD EPYC, AVX2).
LEAST_WORK = 1 << 22
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def __getattr__(name: str):
    if name == "run_forward":
        from .forward import run_forward as found
    elif name == "run_backward":
        from .backward import run_backward as found
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def reasons_against(s: Signature) -> list[str]:
    """It needs numba, a CPU, and derivatives that are functions of the output."""
    reasons = [*reasons_against_numba(), *reasons_against_transforms(s)]
    if s.device != "cpu":
        reasons.append(f"device={s.device!r} is not 'cpu'")
    if s.dtype not in DTYPES:
        reasons.append(f"dtype={s.dtype} is not float32, float64, float16 or bfloat16")
    return reasons + reasons_against_activations(s, "kernel_id")


def runs_at_once(s: Signature) -> bool:
    """Return whether several scans of a call share the threads, in place of each having all of them in turn.

    Many small scans always do; two, where measured to be faster: without gradients, and with work for a thread each.
    """
    if s.shape is None or (s.shape.time <= FEW_STEPS and not s.wants_gradients):
        return False
    if s.members > 2:
        return True
    work = s.shape.time * s.shape.batch * s.units * (s.units + (s.shape.input if s.has_kernel else 0))
    return not s.wants_gradients and work >= LEAST_WORK
