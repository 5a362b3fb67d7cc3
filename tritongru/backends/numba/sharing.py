"""The units of a scan shared among threads: by how many, and how they are run. See kernels/shared.py and meeting.py."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from ... import environment
from .compile import Compiled
from .kernels.meeting import LINE, SHARED_STEPS
from .threads import address_of, run_parts

# Steps of a scan, since the other threads begin some of them late, and bytes of recurrent weights that one row reads in
# all of them: as many as take a thread some 0.2 ms. It takes half of that to wake another one. Seen on an
# AMD EPYC with AVX-512.
LEAST_STEPS, LEAST_READ = 8, 1 << 24
# Of each thread: panels of each gate, and bytes of the recurrent weights. With fewer bytes one thread is as fast.
LEAST_PANELS, LEAST_BYTES, MOST_SHARES = 2, 1 << 17, 4
# Rows of a batch whose units are shared, and how much more evenly that has to share the work.
MOST_ROWS, LEAST_GAIN = 32, 1.2
# How long calls keep to threads that need no other after one whose other threads were late.
ALONE_SECONDS = 0.25

# Until when, for parts that meet after each step, and for those that do not.
_alone_until = {True: 0.0, False: 0.0}


def count_shares(rows: int, groups: int, panels: int, weights: int) -> int:
    """Return how many threads share the units of a scan, 1 where they had better share its rows.

    Args:
        groups: of rows, which threads may share. panels: of a gate's columns. weights: bytes of the recurrent weights.
    """
    threads = torch.get_num_threads()
    shares = min(threads, panels // LEAST_PANELS, weights // LEAST_BYTES, MOST_SHARES)
    if shares < 2 or rows > MOST_ROWS:
        return 1
    # How many times as fast threads are that share the rows.
    speedup = groups / -(-groups // threads)
    # Each would read all weights in each step.
    rereads = weights > environment.second_cache() and environment.has_large_cache()
    return shares if shares >= speedup * (1 if rereads else LEAST_GAIN) else 1


def run_apart(kernel: Compiled, parts: np.ndarray) -> None:
    """Run the plans of parts that do not meet, as those of a single step."""
    if run_parts(kernel, parts):  # the others' cores were busy, or asleep
        _alone_until[False] = time.monotonic() + ALONE_SECONDS


def run_sharing(kernel: Compiled, parts: np.ndarray | Sequence[np.ndarray], place: int, steps: int) -> None:
    """Run the plan of each thread, all of so many steps.

    Args:
        place: of the address of where they meet, in a plan.
    """
    meeting = np.zeros((1 + len(parts)) * LINE, np.int64)
    for part in parts:
        part[place] = address_of(meeting)
    run_parts(kernel, parts)
    if 2 * meeting[SHARED_STEPS] < steps:  # something else runs on the others' cores
        _alone_until[True] = time.monotonic() + ALONE_SECONDS


def may_share(meets: bool = True) -> bool:
    """Return whether the other threads were there when they were last asked, or that was some time ago."""
    return time.monotonic() >= _alone_until[meets]
