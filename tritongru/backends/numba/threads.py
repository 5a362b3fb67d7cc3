"""Rows of the batch shared among threads, and the threads.

The threads are Python's: the kernels do not hold its lock. They are safe where OpenMP's are not: after a fork (a child
begins with none and starts its own), with several Python threads at once, and at the interpreter's end. No more run
than `torch.get_num_threads()`, the caller among them.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

# Operations of a part below which handing it to another thread does not pay: about 50 microseconds.
LEAST_WORK = 2_000_000

_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def run_parts(function: Callable[[Any], object], parts: Sequence[Any]) -> None:
    """Call `function` with each part, the first in this thread; return when all are done."""
    if len(parts) < 2:
        for part in parts:
            function(part)
        return
    others = begin_parts(function, parts[1:])
    try:
        function(parts[0])
    finally:
        # The others write to memory that the caller owns.
        for other in others:
            other.result()


def begin_parts(function: Callable[[Any], object], parts: Sequence[Any]) -> list[Future]:
    """Let the threads of the pool call `function` with each part."""
    global _pool
    if _pool is None:
        # Idle threads cost nothing; how many work is decided by the number of parts.
        _pool = ThreadPoolExecutor(os.cpu_count(), "tritongru")
    return [_pool.submit(function, part) for part in parts]


def run_dealt(function: Callable[[Any], object], parts: Sequence[Any]) -> None:
    """Call `function` with each part, dealt out among no more threads than `run_parts` takes for one scan."""
    count = min(torch.get_num_threads(), len(parts))

    def run_hand(hand: Sequence[Any]) -> None:
        for part in hand:
            function(part)

    run_parts(run_hand, [parts[thread::count] for thread in range(count)])


def group_size(batch: int) -> int:
    """Return how many rows are computed together; it follows from the batch alone."""
    return 4 if batch >= 8 else 2 if batch >= 2 else 1


def share_rows(batch: int, lengths: Tensor | None, work: int, members: int = 1) -> tuple[Tensor | None, list[int]]:
    """Return the rows of the batch (B,) in the order of their parts, None for as they are, and where each part begins.

    A part is made of whole groups but for the last group of all. The last bound is where the last part ends.

    Args:
        lengths: (B,) how many steps of each row are valid, or None for all. Rows are then put in order of falling
            length, so that the rows of a group end together, and their groups dealt out by turns.
        work: operations of the whole scan. members: scans that share the threads.
    """
    size = group_size(batch)
    groups = -(-batch // size)
    threads = max(torch.get_num_threads() // members, 1)
    count = min(threads, groups, max(work // LEAST_WORK, 1))
    if lengths is None or count == 0:
        return None, [*(part * groups // count * size for part in range(count)), batch]
    order = lengths.argsort(descending=True, stable=True)
    if count == 1:
        return order, [0, batch]
    hands = [torch.cat(order.split(size)[part::count]) for part in range(count)]
    return torch.cat(hands), [0, *itertools.accumulate(hand.shape[0] for hand in hands)]
