"""What is installed, and what the device can do: found before a call, once per process."""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
from pathlib import Path

import torch

# The exchange's atomic additions with release and acquire order; ptxas refuses them below (PTX ISA, "atom").
LOWEST_CAPABILITY = (7, 0)
# A kernel's constants as one value; pyproject.toml asks for the same.
LOWEST_TRITON = (3, 4)
# Triton's interpreter takes arrays of one element for numbers up to here, and numpy refuses that from here on.
INTERPRETER_WITH_ANY_NUMPY = (3, 7)
NUMPY_WITHOUT_SCALAR_ARRAYS = (2, 4)
# CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH, CUDA driver API.
_COOPERATIVE_LAUNCH = 95

LARGE_CACHE = 5 << 18  # bytes

_not_cooperative: set[int] = set()
_changes = 0
_forks = 0


def _note_fork() -> None:
    global _forks
    _forks += 1


# Here, since this file is always loaded: a process may fork before the threads of a backend are.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def count_forks() -> int:
    """Return how often this process and those that it was forked from have been forked since the package was loaded."""
    return _forks


def is_interpreted() -> bool:
    """Return whether Triton kernels run in its interpreter (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


@functools.cache
def second_cache() -> int:
    """Return the bytes of a processor core's second cache, half a mebibyte where the system does not tell."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text(encoding="ascii").strip()
        return int(text.removesuffix("K")) << 10
    except (OSError, ValueError):
        return 1 << 19


def has_large_cache() -> bool:
    """Return whether the second cache is as large as that of Intel's servers, whose third one is slow."""
    return second_cache() >= LARGE_CACHE


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


@functools.cache
def reasons_against_operators() -> tuple[str, ...]:
    """Return why no custom operator can run: torch loads its compiler for the first, and that loads triton."""
    try:
        importlib.import_module("torch._dynamo")
    except Exception as error:  # all code in the block is torch's and Triton's
        return (f"torch cannot run custom operators ({in_one_line(error)})",)
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


# Dynamo cannot trace it; it gives one answer per process. See torch.compiler.assume_constant_result.
reasons_against_environment._dynamo_marked_constant = True


def reasons_against_numba() -> tuple[str, ...]:
    """Return why numba cannot be used: it is not installed, or cannot be imported with what else is."""
    return _numba_reasons()


reasons_against_numba._dynamo_marked_constant = True  # type: ignore[attr-defined]


def can_cooperate(index: int) -> bool:
    """Return whether a grid may be launched with all of its programs resident at once on a GPU."""
    return index not in _not_cooperative and _has_cooperative_launch(index)


def forbid_cooperation(index: int) -> bool:
    """Launch no cooperative grids on a GPU from now on; return whether they were allowed before."""
    was_allowed = index not in _not_cooperative
    note_change()
    _not_cooperative.add(index)
    return was_allowed


def note_change() -> None:
    """Say that something changed on which decisions depend: what is installed, what failed, or a tuning table."""
    global _changes
    _changes += 1


def changes() -> int:
    """Return a number that is another one after each `note_change`: decisions made before are then made anew."""
    return _changes


def in_one_line(error: BaseException) -> str:
    """Return the error's type and message, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def forget() -> None:
    """Look again at what is installed and at what devices can do."""
    note_change()
    _not_cooperative.clear()
    for cached in (
        has_triton,
        triton_release,
        reasons_against_operators,
        reasons_against_interpreter,
        _import_reasons,
        _numba_reasons,
        _driver_reasons,
        _has_cooperative_launch,
    ):
        cached.cache_clear()


def read_release(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version; (0, 0) for what is none.

    >>> read_release("3.7.1+git"), read_release("of no version")
    ((3, 7), (0, 0))
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def version_of(package: str) -> str:
    """Return the version of an installed package, "not installed" for any other."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        # This one may run from its source tree.
        return sys.modules["tritongru"].__version__ if package == "tritongru" else "not installed"


@functools.cache
def triton_release() -> tuple[int, int] | None:
    """Return the release of the installed Triton, without importing it; None where it is not installed."""
    for name in ("triton", "pytorch-triton"):
        try:
            return read_release(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


@functools.cache
def _import_reasons() -> tuple[str, ...]:
    try:
        triton = importlib.import_module("triton")
        importlib.import_module("triton.language")
    except Exception as error:  # whatever a broken installation raises, on its own import
        return (f"triton cannot be imported ({in_one_line(error)})",)
    stated = str(getattr(triton, "__version__", "of no version"))
    if read_release(stated) < LOWEST_TRITON:
        return (f"triton {stated} is older than {'.'.join(map(str, LOWEST_TRITON))}",)
    return ()


@functools.cache
def _numba_reasons() -> tuple[str, ...]:
    if importlib.util.find_spec("numba") is None:
        return ("numba is not installed",)
    try:
        importlib.import_module("numba")
    except Exception as error:  # whatever a numba raises that does not fit the rest, on its own import
        return (f"numba cannot be imported ({in_one_line(error)})",)
    return ()


@functools.cache
def _driver_reasons() -> tuple[str, ...]:
    # Triton compiles its link to the driver on first use, which needs a C compiler and a driver that knows the calls.
    try:
        importlib.import_module("triton.runtime.driver").driver.active.get_current_target()
    except Exception as error:  # all code in the block is Triton's
        return (f"triton's driver does not start ({in_one_line(error)})",)
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
