"""Rows of the batch shared among threads, and the threads.

They are those of torch, where it has OpenMP's: between two of torch's operations these turn for some milliseconds, on
the cores that other threads would need. After a fork OpenMP's cannot be used again, and elsewhere there are none; then
they are Python's. The kernels do not hold Python's lock. No more threads run than `torch.get_num_threads()`, the caller
among them; several Python threads may call at once, each with threads of its own.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Operations of a part below which handing it to another thread does not pay: about 50 microseconds.
LEAST_WORK = 2_000_000

_pool: ThreadPoolExecutor | None = None
_is_forked = False


def _note_fork() -> None:
    global _pool, _is_forked
    _pool, _is_forked = None, True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def run_parts(function: Callable[[Any], object], parts: Sequence[Any]) -> None:
    """Call `function` with each part, the first in this thread; return when none is running any more.

    Where other threads do not come, this one does it all.

    Raises:
        What `function` raised first.
    """
    if len(parts) < 2 or (count := min(len(parts), torch.get_num_threads())) < 2:
        for part in parts:
            function(part)
        return
    caller, left, errors = threading.get_ident(), deque(parts[1:]), []

    def run(part: Any) -> None:
        try:
            function(part)
        except BaseException as error:  # in a thread that is not the caller's it would be lost
            errors.append(error)

    def work(_: Any = None) -> None:
        if threading.get_ident() == caller:
            run(parts[0])
        while left:
            try:
                part = left.popleft()
            except IndexError:  # another thread took the last one
                return
            run(part)

    if (team := find_team()) is not None and not _is_forked:
        team(work, count)
    else:
        _run_in_pool(work, count)
    if errors:
        raise errors[0]


@functools.cache
def find_team() -> Callable[[Callable[[Any], None], int], None] | None:
    """Return what calls a function, which must not raise, in this thread and up to as many of torch's as are wanted.

    It returns when all calls have. None where torch has no threads of OpenMP's, or not those of GCC's interface.
    """
    if sys.platform != "linux" or "parallel backend: OpenMP" not in torch.__config__.parallel_info():
        return None
    try:
        # Looked for in this library and in those that it was linked with.
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        begin = library.GOMP_parallel
    except (OSError, AttributeError):
        return None
    # void GOMP_parallel(void (*function)(void *), void *data, unsigned threads, unsigned flags), since GCC 4.9; LLVM's
    # and Intel's have it too.
    in_thread = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    begin.argtypes, begin.restype = (in_thread, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None

    def team(function: Callable[[Any], None], count: int) -> None:
        begin(in_thread(function), None, count, 0)

    return team


def _run_in_pool(work: Callable[[], None], count: int) -> None:
    global _pool
    if _pool is None:
        # Idle threads cost nothing; how many work is decided by the number of parts.
        _pool = ThreadPoolExecutor(os.cpu_count(), "tritongru")
    others = [_pool.submit(work) for _ in range(count - 1)]
    work()
    # The others write to memory that the caller owns.
    for other in others:
        if not other.cancel():
            other.result()


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
