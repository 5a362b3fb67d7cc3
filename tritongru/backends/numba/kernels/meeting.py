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
            me, count: which thread of how many. chunk: of steps. first, end: this one's units, of so many `units` of all.
            patience: looks at another thread's number for which about as much time passes as in a step.
        """
        begin = 0
        if me > 0 and observe(meeting, STOPPED) != 0:  # it comes too late
            return
        prepare(plan, first, end, like)
        if me > 0:
            publish(meeting, (1 + me) * LINE + PRESENT, 1)
            begin = wait_for_beginning(meeting)
            if begin < 0:
                return
        shared_from, has_prepared = steps, False
        # After another thread was late, the steps up to the next that is shared, and how many they will be the next time.
        alone_until, pause, shared = 0, FIRST_PAUSE, 0
        for s0 in range(begin // chunk * chunk, steps, chunk):
            s1 = min(s0 + chunk, steps)
            project(plan, first, end, s0, s1, like)
            has_all = False
            for s in range(max(s0, begin), s1):
                if me > 0:
                    if s > begin and not wait_for_others(meeting, me, count, s, 0):
                        return
                    take(plan, s, s0, first, end, like)
                    publish(meeting, (1 + me) * LINE + DONE, s + 1)
                    continue
                if shared_from == steps and are_there(meeting, count):
                    shared_from = s
                    publish(meeting, SHARED_FROM, s + 1)
                is_shared = s == shared_from or (
                    s > max(shared_from, alone_until) and wait_for_others(meeting, 0, count, s, 1)
                )
                take(plan, s, s0, 0, end, like)
                publish(meeting, LINE + DONE, s + 1)
                # To do the others' part takes longer for the first time: their weights and input are to be prepared.
                longer = 1 if has_prepared else 8
                if is_shared and wait_for_others(meeting, 0, count, s + 1, longer * patience):
                    shared += 1
                    continue
                if is_shared:
                    alone_until, pause = s + 1 + pause, 2 * pause
                if not has_prepared:
                    prepare(plan, end, units, like)
                    has_prepared = True
                if not has_all:
                    project(plan, end, units, s0, s1, like)
                    has_all = True
                take(plan, s, s0, end, units, like)
        if me == 0:
            publish(meeting, STOPPED, 1)
            publish(meeting, SHARED_STEPS, shared)

    return go_through
