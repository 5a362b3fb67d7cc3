"""How the programs of one batch tile hand each other their part of a step: a counter for the tile.

Rounds are numbered from 1. In each, every program of a tile stores its part, adds 1 to the counter, and waits before it
loads the others':

    counter - programs * round >= 0

The counter is 0 at the launch. Differences are taken modulo 2^32, so that it may wrap. Triton (3.8 and older) puts no
block barrier before a release, so other warps' stores could still be under way: hence the barrier before the release.
Every wait is bounded: a program that waits longer marks a fault, never waits again, and its state becomes NaN, so that
a fault is neither a hang nor a silent result. Programs that do not wait for each other announce and await nothing.
"""

import triton
import triton.language as tl


@triton.jit
def announce(p_counter, C: tl.constexpr):
    """Tell the tile that this program's stores of a round are done."""
    if C.WAITS:
        tl.debug_barrier()
        tl.atomic_add(p_counter, 1, sem="release")


@triton.jit
def await_round(p_counter, round, programs, patience, C: tl.constexpr):
    """Wait until all programs have announced `round`; return the patience left: `patience`, or 0 after a fault."""
    if C.WAITS:
        target = programs * round
        ahead = tl.atomic_add(p_counter, 0, sem="acquire") - target
        spins = 0
        while (ahead < 0) & (spins < patience):
            ahead = tl.atomic_add(p_counter, 0, sem="acquire") - target
            spins += 1
        tl.debug_barrier()
        patience = tl.where(ahead < 0, 0, patience)
    return patience
