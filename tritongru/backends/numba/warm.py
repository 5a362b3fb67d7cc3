"""Every kernel compiled ahead of time, each in a process of its own: compilation holds Python's lock."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np

from .compile import LOG
from .kernels.packing import pack
from .kernels.panel_sums import panel_sums
from .kernels.parts import run_parts_of_task
from .kernels.reverse import reverse_scan
from .kernels.scan import scan
from .kernels.shared import shared_scan
from .kernels.shared_reverse import shared_reverse_scan
from .kernels.short import short
from .kernels.sums import sums

# The ones that take longest come first.
KERNELS = {
    "short": short,
    "scan": scan,
    "reverse_scan": reverse_scan,
    "shared_scan": shared_scan,
    "shared_reverse_scan": shared_reverse_scan,
    "pack": pack,
    "sums": sums,
    "panel_sums": panel_sums,
    "parts": run_parts_of_task,
}
OF_GRADIENTS = ("reverse_scan", "shared_reverse_scan", "sums", "panel_sums")


def warm(
    dtypes: Sequence[str] = ("float32",), training: bool = True, processes: int | None = None
) -> dict[tuple[str, str], float]:
    """Compile, or load from disk, what calls in these dtypes need; there must be a cache folder to keep it in.

    Args:
        dtypes: "float32", which half precision is computed in too, or "float64". training: with the reverse scan.
        processes: that compile at once; default: one for each processor core.

    Returns:
        Seconds by (kernel, dtype).
    """
    names = [name for name in KERNELS if training or name not in OF_GRADIENTS]
    count = min(processes or os.cpu_count() or 1, len(names))
    # Not forked: threads of this process may hold locks.
    with ProcessPoolExecutor(count, get_context("spawn"), initializer=_say_nothing) as pool:
        found = list(pool.map(partial(_compile, dtypes=dtypes), names))
    return {(name, dtype): seconds for name, each in zip(names, found, strict=True) for dtype, seconds in each.items()}


def _say_nothing() -> None:
    LOG.setLevel(logging.ERROR)  # not that this command would do so ahead of time


def _compile(name: str, dtypes: Sequence[str]) -> dict[str, float]:
    """Return the seconds that a kernel took for each dtype: of one kernel the files are written by one process."""
    seconds = {}
    for dtype in dtypes:
        begin = time.perf_counter()
        KERNELS[name].for_dtype(np.dtype(dtype))
        seconds[dtype] = time.perf_counter() - begin
    return seconds
