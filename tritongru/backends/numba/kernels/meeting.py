"""Where threads that share the units of a row meet: numbers of int64 in memory that all of them see.

Each thread writes numbers of its own alone, a cache line apart. What a thread wrote to other memory before it published
a number, another one sees after it has read that number (release and acquire).
"""

from __future__ import annotations

from numba import types
from numba.extending import intrinsic

from ..compile import helper

LINE = 8  # int64 of a cache line
# The first line is the first thread's word to all: the step, counted from 1, from which on the units are shared,
# whether all is over, and how many steps were shared in the end. Then for each thread a line: the number of steps it is
# done with, and whether it is there.
SHARED_FROM, STOPPED, SHARED_STEPS = 0, 1, 2
DONE, PRESENT = 0, 1


@intrinsic
def publish(typing, start, index, value):
    """Write an int64 after everything that this thread wrote before."""

    def make(context, builder, signature, arguments):
        start, index, value = arguments
        builder.store_atomic(value, builder.gep(start, [index]), "release", 8)
        return context.get_dummy_value()

    return types.void(start, types.int64, types.int64), make


@intrinsic
def observe(typing, start, index):
    """Read an int64 before everything that this thread reads later."""

    def make(context, builder, signature, arguments):
        return builder.load_atomic(builder.gep(arguments[0], [arguments[1]]), "acquire", 8)

    return types.int64(start, types.int64), make


@helper
def are_there(meeting, count):
    """Whether all threads have begun."""
    for thread in range(1, count):
        if observe(meeting, (1 + thread) * LINE + PRESENT) == 0:
            return False
    return True


@helper
def wait_for_others(meeting, me, count, steps, limit):
    """Wait until the others are done with so many steps; False if all is over, or after `limit` looks (0: any)."""
    tries = 0
    for thread in range(count):
        while observe(meeting, STOPPED) == 0:
            if thread == me or observe(meeting, (1 + thread) * LINE + DONE) >= steps:
                break
            tries += 1
            if tries == limit:
                return False
    return observe(meeting, STOPPED) == 0


@helper
def wait_for_beginning(meeting):
    """Wait for the first thread's word; return the step from which on the units are shared, -1 if never."""
    while observe(meeting, STOPPED) == 0:
        first = observe(meeting, SHARED_FROM)
        if first > 0:
            return first - 1
    return -1
