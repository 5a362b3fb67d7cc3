"""Rows of the batch shared among threads, and the threads.

The threads are Python's: the kernels do not hold its lock. They are safe where OpenMP's are not: after a fork (a child
begins with none and starts its own), with several Python threads at once, and at the interpreter's end. No more run
than `torch.get_num_threads()`, the caller among them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

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


def run_parts(function: Callable[[object], None], parts: Sequence) -> None:
    """Call `function` with each part, the first in this thread; return when all are done."""
    global _pool
    if len(parts) == 1:
        function(parts[0])
        return
    if _pool is None:
        # Idle threads cost nothing; how many work is decided by the number of parts.
        _pool = ThreadPoolExecutor(os.cpu_count(), "tritongru")
    others = [_pool.submit(function, part) for part in parts[1:]]
    try:
        function(parts[0])
    finally:
        # The others write to memory that the caller owns.
        for other in others:
            other.result()


def group_size(batch: int) -> int:
    """Return how many rows are computed together; it follows from the batch alone."""
    return 4 if batch >= 8 else 2 if batch >= 2 else 1


def share_rows(batch: int, lengths: Tensor | None, work: int) -> list[Tensor]:
    """Return the rows of the batch that each part computes, in whole groups but for the last one.

    Args:
        lengths: (B,) how many steps of each row are valid, or None for all. Rows are then put in order of falling
            length, so that the rows of a group end together, and dealt out by turns.
        work: operations of the whole call.
    """
    size = group_size(batch)
    groups = -(-batch // size)
    count = max(1, min(torch.get_num_threads(), groups, work // LEAST_WORK))
    if lengths is not None:
        order = lengths.argsort(descending=True, stable=True)
        return [order] if count == 1 else [_deal(order, size, part, count) for part in range(count)]
    order = torch.arange(batch)
    bounds = [min(part * groups // count * size, batch) for part in range(count + 1)]
    bounds[-1] = batch
    return [order[begin:end] for begin, end in zip(bounds, bounds[1:], strict=False)]


def _deal(order: Tensor, size: int, part: int, count: int) -> Tensor:
    return torch.cat(order.split(size)[part::count])
