"""How threads that share the units of a scan go through its steps, and where they meet.

In each step a thread computes the states of its units from the whole state before; then the threads wait for each
other. The first thread never depends on the others: until they have begun, and while one of them is behind, it computes
all units itself. Meanwhile the others, with less to do, catch up; where a core is busy with something else they are
waited for ever more rarely. What two threads compute is the same to the bit, so it does not matter that both write it.

They meet at numbers of int64 in memory that all of them see. Each thread writes numbers of its own alone, a cache line
apart. What a thread wrote to other memory before it published a number, another one sees after it has read that number
(release and acquire).
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
FIRST_PAUSE = 16  # steps


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
def first_of(share, shares, count, unit):
    """Where a thread's share of so many numbers begins: at a multiple of a unit, behind the last share at their end."""
    return count if share == shares else share * (count // unit) // shares * unit


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


def go_together(prepare, project, take):
    """Return the function that takes all steps of a plan, as one of several threads; see the head of this file.

    Args:
        prepare: (plan, first, end, like) for some units, before everything else.
        project: (plan, first, end, s0, s1, like) for some units and the steps of a chunk.
        take: (plan, s, s0, first, end, like) the step s, counted in the order of processing, of the chunk from s0 on.
    """

    @helper
    def go_through(plan, meeting, me, count, steps, chunk, first, end, units, patience, like):
        """Take all steps.

        Args:
            me, count: which thread of how many; with one nobody meets. chunk: of steps.
            first, end: this one's units, of so many `units` of all.
            patience: looks at another thread's number for which about as much time passes as in a step.
        """
        begin, is_first, has_others = 0, me == 0, count > 1
        if not is_first and observe(meeting, STOPPED) != 0:  # it comes too late
            return
        prepare(plan, first, end, like)
        if not is_first:
            publish(meeting, (1 + me) * LINE + PRESENT, 1)
            begin = wait_for_beginning(meeting)
            if begin < 0:
                return
        shared_from, has_prepared = steps, False
        # After another thread was late, the steps up to the next that is shared, and how many they will be then.
        alone_until, pause, shared = 0, FIRST_PAUSE, 0
        others_from = -1  # where the chunk begins whose input is projected for the others' units too
        for s in range(begin, steps):
            s0 = s // chunk * chunk
            is_shared = False
            # This thread's units, then if need be the others'. A compiler copies a function to every place of a call.
            left, right = first, end
            for turn in range(2 if is_first and has_others else 1):
                if turn == 1:
                    # To do the others' part takes longer for the first time: it is to be prepared.
                    longer = 1 if has_prepared else 8
                    if is_shared and wait_for_others(meeting, 0, count, s + 1, longer * patience):
                        shared += 1
                        break
                    if is_shared:
                        alone_until, pause = s + 1 + pause, 2 * pause
                    left, right = end, units
                    if not has_prepared:
                        prepare(plan, left, right, like)
                        has_prepared = True
                if s == max(s0, begin) if turn == 0 else others_from != s0:
                    project(plan, left, right, s0, min(s0 + chunk, steps), like)
                if turn == 1:
                    others_from = s0
                if turn == 0 and not is_first:
                    if s > begin and not wait_for_others(meeting, me, count, s, 0):
                        return
                elif turn == 0 and has_others:
                    if shared_from == steps and are_there(meeting, count):
                        shared_from = s
                        publish(meeting, SHARED_FROM, s + 1)
                    is_shared = s == shared_from or (
                        s > max(shared_from, alone_until) and wait_for_others(meeting, 0, count, s, 1)
                    )
                take(plan, s, s0, left, right, like)
                if turn == 0 and has_others:
                    publish(meeting, (1 + me) * LINE + DONE, s + 1)
        if is_first and has_others:
            publish(meeting, STOPPED, 1)
            publish(meeting, SHARED_STEPS, shared)

    return go_through
