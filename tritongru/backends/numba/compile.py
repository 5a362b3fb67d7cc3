"""Compilation: when kernels are compiled, where they are kept, and what is said about it.

A kernel is compiled at its first call for float32 or float64 and kept on disk. numba keeps one file for each processor
(its name and features are part of the key) and writes files under names of their own before they take their place, so
one folder serves several processes and several machines. Its key knows the file of the kernel alone; the folder's name
therefore holds a digest of every source file here. A folder that was filled before, for instance when an image was
built, may be one that can only be read. Where there is none, each process compiles for itself.
"""

from __future__ import annotations

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
from numba.core import config as numba_config
from numba.core.caching import UserProvidedCacheLocator

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


class Locator(UserProvidedCacheLocator):
    """Where numba looks for compiled code: that folder, whatever the path that the package is installed in."""

    def __init__(self, py_func, py_file: str):
        super().__init__(py_func, py_file)
        self._cache_path = SETTINGS.CACHE_DIR

    def ensure_cache_path(self) -> None:
        """Take a folder that can only be read as well."""
        os.makedirs(self._cache_path, exist_ok=True)


class Kernel:
    """A function compiled for float32 and float64, each at its first use.

    Called with a plan of int64 (see `fields`) and a number of the kernel's dtype. It does not hold Python's lock.
    """

    _lock = threading.Lock()

    def __init__(self, function):
        folder = cache_folder()
        before = SETTINGS.CACHE_DIR, SETTINGS.CACHE_LOCATOR_CLASSES
        try:
            SETTINGS.CACHE_DIR, SETTINGS.CACHE_LOCATOR_CLASSES = folder or "", f"{__name__}.{Locator.__name__}"
            self.dispatcher = numba.njit(nogil=True, error_model="numpy", cache=folder is not None)(function)
        finally:
            SETTINGS.CACHE_DIR, SETTINGS.CACHE_LOCATOR_CLASSES = before
        self._compiled: dict[np.dtype, Callable[[np.ndarray], None]] = {}

    def for_dtype(self, dtype: np.dtype) -> Callable[[np.ndarray], None]:
        """Return the function (plan) that runs the kernel in `dtype`, compiled."""
        return self._compiled.get(dtype) or self._compile(dtype)

    def _compile(self, dtype: np.dtype) -> Callable[[np.ndarray], None]:
        with Kernel._lock:
            if dtype not in self._compiled:
                dispatcher, like = self.dispatcher, dtype.type(0)
                signature = (numba.int64[::1], numba.from_dtype(dtype))
                kept = "kept for later processes" if cache_folder() else "not kept: there is no cache folder"
                loaded = sum(dispatcher.stats.cache_hits.values())
                begin = time.perf_counter()
                try:
                    dispatcher.compile(signature)
                except OSError as error:
                    # It is compiled before it is written.
                    if signature not in dispatcher.overloads:
                        raise
                    kept = f"not kept: {error}"
                seconds = time.perf_counter() - begin
                self._compiled[dtype] = lambda plan: dispatcher(plan, like)
                if seconds > NOTICE_SECONDS and sum(dispatcher.stats.cache_hits.values()) == loaded:
                    LOG.warning(
                        "tritongru: %s was compiled for %s in %.1f s (%s); "
                        "`python -m tritongru warm` does so ahead of time",
                        dispatcher.__name__, dtype, seconds, kept,
                    )  # fmt: skip
        return self._compiled[dtype]
