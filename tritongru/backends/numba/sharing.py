"""The units of one row shared among threads: by how many, and how they are run. See kernels/shared.py."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from .compile import Compiled
from .kernels import fields as at
from .kernels.meeting import LINE, SHARED_STEPS
from .threads import address_of, run_parts

LEAST_STEPS = 64  # the other threads begin some steps late
# Of each thread: panels of each gate, and bytes of the recurrent weights. With fewer bytes one thread is as fast, with
# more they do not stay in a core's second cache either. Seen with two threads on an AMD EPYC (AVX2), of 512 KiB each.
LEAST_PANELS, LEAST_BYTES, MOST_BYTES, MOST_SHARES = 2, 1 << 17, 1 << 19, 4
# How long calls keep to one thread after one whose other threads were late.
ALONE_SECONDS = 0.25

_alone_until = 0.0


def count_shares(panels: int, weights: int) -> int:
    """Return how many threads share the units of one row, 1 where that does not pay.

    Args:
        panels: of a gate's columns. weights: bytes of the recurrent weights.
    """
    shares = min(torch.get_num_threads(), panels // LEAST_PANELS, weights // LEAST_BYTES, MOST_SHARES)
    return shares if shares > 1 and weights <= shares * MOST_BYTES else 1


def run_sharing(kernel: Compiled, parts: Sequence[np.ndarray]) -> None:
    """Run the plan of each thread; the first, which one of them has begun with, needs none of the others.

    Where the others were late in most steps, since something else runs on their cores, the next calls go without them.
    """
    global _alone_until
    meeting = np.zeros((1 + len(parts)) * LINE, np.int64)
    for part in parts:
        part[at.MEETING] = address_of(meeting)
    together = time.monotonic() >= _alone_until
    run_parts(kernel, parts if together else parts[:1])
    if together and 2 * meeting[SHARED_STEPS] < parts[0][at.STEPS]:
        _alone_until = time.monotonic() + ALONE_SECONDS
