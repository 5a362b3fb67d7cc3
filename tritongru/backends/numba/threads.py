"""Rows of the batch shared among threads, and the threads.

They are those of torch, where it has OpenMP's: between two of torch's operations these turn for some milliseconds, on
the cores that other threads would need. After a fork OpenMP's cannot be used again, and elsewhere there are none; then
each call begins some of its own. The kernels do not hold Python's lock. No more threads run than
`torch.get_num_threads()`, the caller among them; several Python threads may call at once, each with threads of its own.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import functools
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...environment import count_forks
from .compile import Compiled
from .kernels.parts import ALONE, ANSWERED, ASKED, COUNT, run_parts_of_task

# Operations of a part below which handing it to another thread does not pay: about 50 microseconds.
LEAST_WORK = 2_000_000
PAUSE = 1e-5  # seconds between two looks at whether a call's own threads are done


def run_parts(kernel: Compiled, plans: np.ndarray | Sequence[np.ndarray]) -> bool:
    """Call a kernel with each plan; return when all calls have returned. None begins before the ones before it do.

    Where other threads do not come, one does it all. What a signal raises, it raises before or after.

    Returns:
        whether that was so though others were asked.
    """
    if isinstance(plans, np.ndarray):
        begin, step = address_of(plans), plans.strides[0]
        addresses = [begin + part * step for part in range(len(plans))]
    else:
        addresses = [address_of(plan) for plan in plans]
    count = min(len(addresses), torch.get_num_threads())
    if count < 2:
        for address in addresses:
            kernel.call(address, 0.0)
        return False
    work = run_parts_of_task.for_dtype(kernel.dtype)
    task = np.array((0, 0, len(addresses), kernel.address, 0, *addresses), np.int64)
    if (team := find_team()) is not None and not count_forks():
        # A function of one argument: of a second one it reads no register.
        team(work.address, address_of(task), count, 0)
    else:
        _run_in_new_threads(work, task, count)
    return bool(task[ALONE])


def address_of(array: np.ndarray) -> int:
    """Return where an array begins."""
    return array.__array_interface__["data"][0]


@functools.cache
def find_team() -> Callable[[int, int, int, int], None] | None:
    """Return what calls a function of C in this thread and up to as many of torch's as are wanted.

    Its arguments are the function's address, what it is called with, the number of threads, and 0. It returns when all
    calls have. None where torch has no threads of OpenMP's, or not those of GCC's interface.
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
    begin.argtypes, begin.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return begin


def _run_in_new_threads(work: Compiled, task: np.ndarray, count: int) -> None:
    try:
        with contextlib.suppress(RuntimeError):  # where the system gives no more of them
            for _ in range(count - 1):
                # Not a pool of them, whose locks a signal may leave closed.
                _thread.start_new_thread(_work, (work, task))
        _work(work, task)
    finally:
        task[COUNT] = 0  # who comes from now on takes nothing
        _wait(task)


def _work(work: Compiled, task: np.ndarray) -> None:
    work.call(address_of(task), 0.0)


def _wait(task: np.ndarray) -> None:
    """Wait until no thread runs a part any more, for it writes to memory that the caller owns, whatever comes up."""
    interrupt = None
    while task[ANSWERED] < task[ASKED]:
        try:
            time.sleep(PAUSE)
        except BaseException as raised:  # a signal's; it is not lost
            interrupt = raised
    if interrupt is not None:
        raise interrupt


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
