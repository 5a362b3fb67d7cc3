"""Every kernel compiled ahead of time."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from .kernels.packing import pack
from .kernels.reverse import reverse_scan
from .kernels.scan import scan
from .kernels.shared import shared_scan
from .kernels.short import short
from .kernels.sums import sums

KERNELS = {
    "pack": pack,
    "scan": scan,
    "shared_scan": shared_scan,
    "short": short,
    "reverse_scan": reverse_scan,
    "sums": sums,
}


def warm(dtypes: Sequence[str] = ("float32",), training: bool = True) -> dict[tuple[str, str], float]:
    """Compile, or load from disk, what calls in these dtypes need.

    Args:
        dtypes: "float32", which half precision is computed in too, or "float64". training: with the reverse scan.

    Returns:
        Seconds by (kernel, dtype).
    """
    seconds = {}
    for dtype in dtypes:
        for name, kernel in KERNELS.items():
            if training or kernel not in (reverse_scan, sums):
                begin = time.perf_counter()
                kernel.for_dtype(np.dtype(dtype))
                seconds[name, dtype] = time.perf_counter() - begin
    return seconds
