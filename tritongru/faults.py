"""The memory of failures: which calls the Triton kernels failed, and whether to try them again.

`backend="auto"` continues on another backend, and says so once with the cause; a named backend raises. An error that is
no fault of the device, of Triton or of memory (a `TypeError`, an `ExchangeError`, an interrupt) is nobody's to catch.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch

from . import environment
from .call.check import Signature
from .call.errors import ExchangeError, forget_warnings, warn_once
from .call.problem import Inputs, Variant
from .environment import in_one_line

# Memory comes back, so a lack of it is met three times in a row before such calls go elsewhere at once.
ATTEMPTS_WITHOUT_MEMORY = 3

DIRECTIONS = ("forward", "backward")
MEMORY, COOPERATION, OTHER = "memory", "cooperation", "other"

_REFUSED_TOGETHER = ("too many blocks in cooperative launch", "operation not supported", "cooperative launch")
# After these the device's context is lost: no backend can continue, and the error must not look like a slow call.
_FATAL = ("illegal memory access", "misaligned address", "illegal instruction", "device-side assert",
          "unspecified launch failure", "hardware stack error", "uncorrectable ECC")  # fmt: skip

PLAIN = "plain"
Result = TypeVar("Result")

_lock = threading.Lock()
_failures: dict[tuple[Scan, str], Failure] = {}  # by call and direction


class Scan(NamedTuple):
    """What the memory of failures tells calls apart by; sizes of batch and time are not part of it."""

    device: str
    index: int
    dtype: torch.dtype
    units: int
    variant: Variant
    has_mask: bool
    has_resets: bool
    recurrent_dropouts: int
    has_zoneout: bool
    precision: str
    family: str = PLAIN

    @classmethod
    def of(cls, a: Inputs, variant: Variant, precision: str) -> Scan:
        """Return what a scan of these inputs is known by."""
        where = a.u.device.type, a.u.device.index or 0
        given = a.mask is not None, a.resets is not None, 0 if a.drop is None else a.drop.shape[0], a.keep is not None
        return cls(*where, a.u.dtype, a.u.shape[0], variant, *given, precision)

    @classmethod
    def of_signature(cls, s: Signature) -> Scan:
        """Return what the scan of a call is known by."""
        given = s.has_mask, s.has_resets, s.recurrent_dropouts, s.has_zoneout
        return cls(s.device, s.index, s.dtype, s.units, s.variant, *given, s.precision)


class Failure(NamedTuple):
    """Why the kernels failed a call, and how often in a row."""

    cause: str
    kind: str
    times: int


def classify(error: BaseException) -> str | None:
    """Return the kind of fault, MEMORY, COOPERATION or OTHER, or None for an error that must reach the caller."""
    if isinstance(error, ExchangeError):
        return None
    if isinstance(error, torch.OutOfMemoryError):
        return MEMORY
    if not _is_from_triton(error):
        return None
    if not isinstance(error, RuntimeError):
        return OTHER
    # What the driver said, which Triton passes on as a RuntimeError.
    text = str(error)
    if any(words in text for words in _FATAL):
        return None
    if "out of memory" in text:
        return MEMORY
    return COOPERATION if any(words in text for words in _REFUSED_TOGETHER) else OTHER


def record(scan: Scan, direction: str, cause: str, kind: str) -> None:
    """Remember that the kernels failed `scan`, and warn the first time that `cause` is seen on its device."""
    with _lock:
        before = _failures.get((scan, direction))
        _failures[scan, direction] = Failure(cause, kind, 1 + (before.times if before else 0))
        environment.note_change()
    if scan.family != PLAIN:
        warn_once(
            f"the {scan.family} Triton kernels failed on {scan.device}:{scan.index} ({cause}); the plain ones continue"
        )
        return
    warn_once(
        f"the Triton kernels failed on {scan.device}:{scan.index} ({cause}); backend='auto' continues on another "
        "backend. Name backend='triton' to have the error raised"
    )


def succeeded(scan: Scan, direction: str) -> None:
    """Forget a lack of memory that is over."""
    if _failures:
        with _lock:
            if _failures.pop((scan, direction), None):
                environment.note_change()


def run_or_continue(
    scan: Scan, direction: str, attempt: Callable[[], Result], otherwise: Callable[[], Result]
) -> Result:
    """Return `attempt()`, which runs the kernels; `otherwise()` where they fail, now or when `scan` was last tried.

    Args:
        direction: "forward" or "backward": one can lack memory where the other does not.

    Raises:
        Whatever `attempt` raises that is no fault of the device, of Triton or of memory; see `classify`.
    """
    while is_worth_trying(scan):
        try:
            result = attempt()
        except Exception as error:
            if (kind := classify(error)) is None:
                raise
            cause = in_one_line(error)
        else:
            succeeded(scan, direction)
            return result
        # Out here the error is gone, and with it its frames and the tensors they held.
        if kind == COOPERATION and environment.forbid_cooperation(scan.index):
            warn_once(
                f"{scan.device}:{scan.index} refused a grid of programs that wait for each other ({cause}); "
                "backend='auto' continues with one launch per step"
            )
            continue
        record(scan, direction, cause, kind)
        break
    return otherwise()


def failure_of(scan: Scan) -> Failure | None:
    """Return how `scan` failed when it was last run, None if it went well."""
    if not _failures:
        return None
    found = [_failures.get((scan, direction)) for direction in DIRECTIONS]
    return max((failure for failure in found if failure), key=_is_final, default=None)


def is_worth_trying(scan: Scan) -> bool:
    """Return whether "auto" should still try the kernels for `scan`."""
    failure = failure_of(scan)
    return failure is None or not _is_final(failure)


def forget() -> None:
    """Forget every failure and warning, as after repairing what caused them."""
    with _lock:
        _failures.clear()
        environment.note_change()
    forget_warnings()
    environment.forget()


def warn_of_environment(device: str, index: int, rejected: tuple[str, ...]) -> None:
    """Warn where a GPU's call would have taken the kernels but for the environment.

    Args:
        rejected: every reason against the kernels.
    """
    found = environment.reasons_against_environment(device, index)
    if device == "cuda" and found and found == rejected:
        warn_once(
            f"the Triton kernels cannot run on {device}:{index}: {'; '.join(found)}; backend='auto' continues on "
            "another backend"
        )


def _is_final(failure: Failure) -> bool:
    return failure.kind != MEMORY or failure.times >= ATTEMPTS_WITHOUT_MEMORY


def _is_from_triton(error: BaseException) -> bool:
    """Return whether `error` is Triton's own: one of its types, or raised inside it or on its behalf."""
    if any(base.__module__.partition(".")[0] == "triton" for base in type(error).__mro__):
        return True
    if isinstance(error, (ImportError, AttributeError)):
        module = getattr(error, "name", None) if isinstance(error, ImportError) else None
        owner = getattr(getattr(error, "obj", None), "__name__", "")
        return str(module or owner).partition(".")[0] == "triton" or _was_raised_in_triton(error)
    if isinstance(error, RuntimeError) and str(error).startswith("Triton Error ["):
        return True
    return isinstance(error, (RuntimeError, OSError, subprocess.SubprocessError)) and _was_raised_in_triton(error)


def _was_raised_in_triton(error: BaseException) -> bool:
    """Return whether the last Python function of ours or Triton's that `error` came from is Triton's."""
    owner, trace = "", error.__traceback__
    while trace is not None:
        package = trace.tb_frame.f_globals.get("__name__", "").partition(".")[0]
        if package in ("triton", __package__):
            owner = package
        trace = trace.tb_next
    return owner == "triton"
