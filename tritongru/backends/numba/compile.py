"""Compilation: when kernels are compiled, where they are kept, and what is said about it.

A kernel is compiled at its first call for float32 or float64 and kept on disk. numba keeps one file for each processor
(its name and features are part of the key) and writes files under names of their own before they take their place, so
one folder serves several processes and several machines. Its key knows the file of the kernel alone; the folder's name
therefore holds a digest of every source file here. Where no folder can be written to, each process compiles its own.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import tempfile
import threading
import time
from pathlib import Path

import numba
import numpy as np

from ...tuning.choices import user_folder

LOG = logging.getLogger("tritongru")
# Compiling for longer is mentioned once, so that nobody looks for the cause of a slow first call.
NOTICE_SECONDS = 1.0

# numpy's rules: a division by zero is no exception, which the scans have no use for.
helper = numba.njit(error_model="numpy")


@functools.cache
def cache_folder() -> str | None:
    """Return the folder of the compiled kernels, or None where none can be written to."""
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    given = numba.config.CACHE_DIR  # NUMBA_CACHE_DIR
    folder = (Path(given) if given else user_folder() / "numba") / f"tritongru-{digest.hexdigest()[:16]}"
    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return None
    return str(folder)


class Kernel:
    """A function compiled for float32 and float64, each at its first use.

    Called with a plan of int64 (see `fields`) and a number of the kernel's dtype. It does not hold Python's lock.
    """

    _lock = threading.Lock()
    _mentioned = False

    def __init__(self, function):
        folder = cache_folder()
        before = numba.config.CACHE_DIR
        try:
            numba.config.CACHE_DIR = folder or ""
            self.dispatcher = numba.njit(nogil=True, error_model="numpy", cache=folder is not None)(function)
        finally:
            numba.config.CACHE_DIR = before
        self._compiled: dict[np.dtype, object] = {}

    def for_dtype(self, dtype: np.dtype):
        """Return the function (plan) that runs the kernel in `dtype`, compiled."""
        return self._compiled.get(dtype) or self._compile(dtype)

    def _compile(self, dtype: np.dtype):
        begin = time.perf_counter()
        with Kernel._lock:
            if dtype not in self._compiled:
                like = dtype.type(0)
                self.dispatcher.compile((numba.int64[::1], numba.from_dtype(dtype)))
                dispatcher = self.dispatcher
                self._compiled[dtype] = lambda plan: dispatcher(plan, like)
                self._mention(time.perf_counter() - begin)
        return self._compiled[dtype]

    def _mention(self, seconds: float) -> None:
        if seconds > NOTICE_SECONDS and not Kernel._mentioned:
            Kernel._mentioned = True
            kept = "kept for later processes" if cache_folder() else "not kept: no cache folder can be written to"
            LOG.warning(
                "tritongru: compiling %s took %.1f s (%s); `python -m tritongru warm` compiles ahead of time",
                self.dispatcher.__name__, seconds, kept,
            )  # fmt: skip
