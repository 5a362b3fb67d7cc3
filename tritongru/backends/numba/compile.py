"""Compilation: when kernels are compiled, where they are kept, and what is said about it.

A kernel is compiled at its first call for float32 or float64 and kept on disk. numba keeps one file for each processor
(its name and features are part of the key) and writes files under names of their own before they take their place, so
one folder serves several processes and several machines. Its key knows the file of the kernel alone; the folder's name
therefore holds a digest of every source file here. A folder that was filled before, for instance when an image was
built, may be one that can only be read. Where there is none, each process compiles for itself.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numba import types
from numba.core import config as numba_config
from numba.core.caching import UserProvidedCacheLocator
from numba.core.ccallback import CFunc
from torch import Tensor

from ...tuning.choices import user_folder

# numba's, read from the environment: NUMBA_CACHE_DIR and others.
SETTINGS: Any = numba_config
LOG = logging.getLogger("tritongru")
# Compiling for longer is mentioned, so that nobody looks for the cause of a slow first call.
NOTICE_SECONDS = 1.0

# numpy's rules: a division by zero is no exception, which the scans have no use for.
helper = numba.njit(error_model="numpy")


@functools.cache
def cache_folder() -> str | None:
    """Return the folder of the compiled kernels, or None where there is none and none can be made."""
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    given = SETTINGS.CACHE_DIR
    folder = (Path(given) if given else user_folder() / "numba") / f"tritongru-{digest.hexdigest()[:16]}"
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return None
    return str(folder)


def numpy_dtype(value: Tensor) -> np.dtype:
    """Return the dtype of a tensor of float32 or float64 as kernels are compiled for it."""
    return np.dtype(np.float64 if value.dtype == torch.float64 else np.float32)


class Locator(UserProvidedCacheLocator):
    """Where numba looks for compiled code: that folder, whatever the path that the package is installed in."""

    def __init__(self, py_func, py_file: str):
        super().__init__(py_func, py_file)
        self._cache_path = SETTINGS.CACHE_DIR

    def ensure_cache_path(self) -> None:
        """Take a folder that can only be read as well."""
        os.makedirs(self._cache_path, exist_ok=True)


class Compiled:
    """A kernel in one dtype, which runs without Python's lock.

    Attributes:
        address: of its code, a function of C of a plan and a number. dtype: of its numbers.
        call: the same as `call(plan, 0.0)`, with the plan's address or its bytes; 0.0 only tells the dtype.
    """

    __slots__ = ("_code", "address", "call", "dtype")

    def __init__(self, code: CFunc, dtype: np.dtype):
        self._code, self.address, self.dtype = code, code.address, dtype  # the code lives as long as this
        number = ctypes.c_float if dtype.itemsize == 4 else ctypes.c_double
        self.call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, number)(code.address)


class Kernel:
    """A function compiled for float32 and float64, each at its first use.

    Of a pointer to a plan, numbers of int64 (see `fields`), and a zero of the kernel's dtype.
    """

    _lock = threading.Lock()

    def __init__(self, function: Callable[..., None]):
        self._function = function
        self._compiled: dict[np.dtype, Compiled] = {}

    def for_dtype(self, dtype: np.dtype) -> Compiled:
        """Return the kernel for `dtype`, compiled."""
        return self._compiled.get(dtype) or self._compile(dtype)

    def _compile(self, dtype: np.dtype) -> Compiled:
        with Kernel._lock:
            if dtype not in self._compiled:
                folder = cache_folder()
                kept = "kept for later processes" if folder else "not kept: there is no cache folder"
                code = self._prepare(dtype, folder)
                begin = time.perf_counter()
                try:
                    code.compile()
                except OSError as error:
                    kept = f"not kept: {error}"
                    code = self._prepare(dtype, None)
                    code.compile()
                seconds = time.perf_counter() - begin
                self._compiled[dtype] = Compiled(code, dtype)
                if seconds > NOTICE_SECONDS and not code.cache_hits:
                    LOG.warning(
                        "tritongru: %s was compiled for %s in %.1f s (%s); "
                        "`python -m tritongru warm` does so ahead of time",
                        code.__name__, dtype, seconds, kept,
                    )  # fmt: skip
        return self._compiled[dtype]

    def _prepare(self, dtype: np.dtype, folder: str | None) -> CFunc:
        """Return what compiles the function, and keeps it in a folder if there is one."""
        arguments = types.CPointer(types.int64), numba.from_dtype(dtype)
        # A division by zero is no exception: there is nobody who would catch one.
        code = CFunc(self._function, (arguments, types.void), locals={}, options={"error_model": "numpy"})
        if folder is not None:
            before = SETTINGS.CACHE_DIR, SETTINGS.CACHE_LOCATOR_CLASSES
            try:
                SETTINGS.CACHE_DIR, SETTINGS.CACHE_LOCATOR_CLASSES = folder, f"{__name__}.{Locator.__name__}"
                code.enable_caching()
            finally:
                SETTINGS.CACHE_DIR, SETTINGS.CACHE_LOCATOR_CLASSES = before
        return code
