"""What keeps the Triton kernels from running here: found before a call, or when one fails.

`backend="auto"` continues on another backend, and says so once with the cause; a named backend raises. An error that is
no fault of the device, of Triton or of memory (a `TypeError`, an `ExchangeError`, an interrupt) is nobody's to catch.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import subprocess
import threading
import warnings
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch

from .releases import read_release
from .spec import ExchangeError, FallbackWarning, is_interpreted

# The exchange's atomic additions with release and acquire order; ptxas refuses them below (PTX ISA, "atom").
LOWEST_CAPABILITY = (7, 0)
# The kernels' constants and the cooperative launch; pyproject.toml asks for the same.
LOWEST_TRITON = (3, 4)
# Triton's interpreter takes arrays of one element for numbers up to here, and numpy refuses that from here on.
INTERPRETER_WITH_ANY_NUMPY = (3, 7)
NUMPY_WITHOUT_SCALAR_ARRAYS = (2, 4)
# Memory comes back, so a lack of it is met three times in a row before such calls go elsewhere at once.
ATTEMPTS_WITHOUT_MEMORY = 3

DIRECTIONS = ("scan_forward", "scan_backward")
MEMORY, COOPERATION, OTHER = "memory", "cooperation", "other"

# CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH, CUDA driver API.
_COOPERATIVE_LAUNCH = 95
_REFUSED_TOGETHER = ("too many blocks in cooperative launch", "operation not supported", "cooperative launch")
# After these the device's context is lost: no backend can continue, and the error must not look like a slow call.
_FATAL = ("illegal memory access", "misaligned address", "illegal instruction", "device-side assert",
          "unspecified launch failure", "hardware stack error", "uncorrectable ECC")  # fmt: skip

Result = TypeVar("Result")

_lock = threading.Lock()
_failures: dict[tuple[Call, str], Failure] = {}  # by call and direction
_warned: set[str] = set()
_not_cooperative: set[int] = set()


class Call(NamedTuple):
    """What the memory of failures tells calls apart by; sizes of batch and time are not part of it."""

    device: str
    index: int
    dtype: torch.dtype
    units: int
    activation: str
    recurrent_activation: str
    reset_after: bool
    has_mask: bool
    has_resets: bool
    recurrent_dropouts: int
    precision: str


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


def describe(error: BaseException) -> str:
    """Return the error's type and message, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def record(call: Call, direction: str, cause: str, kind: str) -> None:
    """Remember that the kernels failed `call`, and warn the first time that `cause` is seen on its device."""
    with _lock:
        before = _failures.get((call, direction))
        _failures[call, direction] = Failure(cause, kind, 1 + (before.times if before else 0))
    warn_once(
        f"the Triton kernels failed on {call.device}:{call.index} ({cause}); backend='auto' continues on another "
        "backend. Name backend='triton' to have the error raised"
    )


def succeeded(call: Call, direction: str) -> None:
    """Forget a lack of memory that is over."""
    if _failures:
        with _lock:
            _failures.pop((call, direction), None)


def run_or_continue(
    call: Call, direction: str, attempt: Callable[[], Result], otherwise: Callable[[], Result]
) -> Result:
    """Return `attempt()`, which runs the kernels; `otherwise()` where they fail, now or when `call` was last tried.

    Args:
        direction: name of the scan, forward or backward: one can lack memory where the other does not.

    Raises:
        Whatever `attempt` raises that is no fault of the device, of Triton or of memory; see `classify`.
    """
    while is_worth_trying(call):
        try:
            result = attempt()
        except Exception as error:
            if (kind := classify(error)) is None:
                raise
            cause = describe(error)
        else:
            succeeded(call, direction)
            return result
        # Out here the error is gone, and with it its frames and the tensors they held.
        if kind == COOPERATION and call.index not in _not_cooperative:
            forbid_cooperation(call.index)
            warn_once(
                f"{call.device}:{call.index} refused a grid of programs that wait for each other ({cause}); "
                "backend='auto' continues with one launch per step"
            )
            continue
        record(call, direction, cause, kind)
        break
    return otherwise()


def failure_of(call: Call) -> Failure | None:
    """Return how `call` failed when it was last run, None if it went well."""
    if not _failures:
        return None
    found = [_failures.get((call, direction)) for direction in DIRECTIONS]
    return max((failure for failure in found if failure), key=_is_final, default=None)


def is_worth_trying(call: Call) -> bool:
    """Return whether "auto" should still try the kernels for `call`."""
    failure = failure_of(call)
    return failure is None or not _is_final(failure)


def forget() -> None:
    """Forget every failure and warning, as after repairing what caused them."""
    with _lock:
        _failures.clear()
        _warned.clear()
        _not_cooperative.clear()
    for cached in (
        has_triton, reasons_against_operators, reasons_against_interpreter, _import_reasons, _driver_reasons,
        _has_cooperative_launch,
    ):  # fmt: skip
        cached.cache_clear()


def warn_once(message: str) -> None:
    """Warn with FallbackWarning unless this message was given before in this process."""
    with _lock:
        if message in _warned:
            return
        _warned.add(message)
    warnings.warn(message, FallbackWarning, stacklevel=3)


@functools.cache
def has_triton() -> bool:
    """Return whether the triton package is installed, without importing it."""
    return importlib.util.find_spec("triton") is not None


def reasons_against_environment(device: str, index: int = 0) -> tuple[str, ...]:
    """Return why the kernels cannot run on a device whatever the call: Triton's absence or state, the driver, the GPU.

    Args:
        device: type of the device; on a CPU the kernels are interpreted. index: of the device.
    """
    if not has_triton():
        return ("triton is not installed",)
    if device != "cuda" and not (device == "cpu" and is_interpreted()):
        return ()
    if broken := _import_reasons():
        return broken
    if device == "cpu":
        return reasons_against_interpreter()
    # Asked about a GPU where there is none, the answer is about Triton alone.
    if not torch.cuda.is_available():
        return ()
    if torch.version.hip is None and (capability := torch.cuda.get_device_capability(index)) < LOWEST_CAPABILITY:
        found, lowest = (".".join(map(str, value)) for value in (capability, LOWEST_CAPABILITY))
        return (f"compute capability {found} of cuda:{index} is below {lowest}",)
    return _driver_reasons()


def warn_of_environment(device: str, index: int, rejected: tuple[str, ...]) -> None:
    """Warn where a GPU's call would have taken the kernels but for the environment.

    Args:
        rejected: every reason against the kernels.
    """
    environment = reasons_against_environment(device, index)
    if device == "cuda" and environment and environment == rejected:
        warn_once(
            f"the Triton kernels cannot run on {device}:{index}: {'; '.join(environment)}; backend='auto' continues on "
            "another backend"
        )


@functools.cache
def reasons_against_operators() -> tuple[str, ...]:
    """Return why no custom operator can run: torch loads its compiler for the first, and that loads triton."""
    try:
        importlib.import_module("torch._dynamo")
    except Exception as error:  # all code in the block is torch's and Triton's
        return (f"torch cannot run custom operators ({describe(error)})",)
    return ()


@functools.cache
def reasons_against_interpreter() -> tuple[str, ...]:
    """Return why Triton's interpreter, which TRITON_INTERPRET=1 chooses, cannot run the kernels here."""
    if broken := _import_reasons():
        return broken
    triton, numpy = (str(importlib.import_module(name).__version__) for name in ("triton", "numpy"))
    if read_release(triton) < INTERPRETER_WITH_ANY_NUMPY and read_release(numpy) >= NUMPY_WITHOUT_SCALAR_ARRAYS:
        return (f"the interpreter of triton {triton} needs numpy older than 2.4, found {numpy}",)
    return ()


# Dynamo cannot trace these; they give one answer per process. See torch.compiler.assume_constant_result.
reasons_against_environment._dynamo_marked_constant = True  # type: ignore[attr-defined]
warn_of_environment._dynamo_marked_constant = True  # type: ignore[attr-defined]


def can_cooperate(index: int) -> bool:
    """Return whether a grid may be launched with all of its programs resident at once on a GPU."""
    return index not in _not_cooperative and _has_cooperative_launch(index)


def forbid_cooperation(index: int) -> None:
    """Launch no cooperative grids on a GPU from now on."""
    with _lock:
        _not_cooperative.add(index)


def _is_final(failure: Failure) -> bool:
    return failure.kind != MEMORY or failure.times >= ATTEMPTS_WITHOUT_MEMORY


@functools.cache
def _import_reasons() -> tuple[str, ...]:
    try:
        triton = importlib.import_module("triton")
        importlib.import_module("triton.language")
    except Exception as error:  # whatever a broken installation raises, on its own import
        return (f"triton cannot be imported ({describe(error)})",)
    stated = str(getattr(triton, "__version__", "of no version"))
    if read_release(stated) < LOWEST_TRITON:
        return (f"triton {stated} is older than {'.'.join(map(str, LOWEST_TRITON))}",)
    return ()


@functools.cache
def _driver_reasons() -> tuple[str, ...]:
    # Triton compiles its link to the driver on first use, which needs a C compiler and a driver that knows the calls.
    try:
        importlib.import_module("triton.runtime.driver").driver.active.get_current_target()
    except Exception as error:  # all code in the block is Triton's
        return (f"triton's driver does not start ({describe(error)})",)
    return ()


@functools.cache
def _has_cooperative_launch(index: int) -> bool:
    if torch.version.hip is not None:
        return True
    try:
        library = ctypes.CDLL("libcuda.so.1")
        device, value = ctypes.c_int(), ctypes.c_int()
        failed = library.cuDeviceGet(ctypes.byref(device), index)
        failed = failed or library.cuDeviceGetAttribute(ctypes.byref(value), _COOPERATIVE_LAUNCH, device)
    except (OSError, AttributeError):
        # No such library by that name: the launch itself will tell.
        return True
    return bool(failed) or value.value == 1


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
