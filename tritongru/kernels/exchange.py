"""How the programs of one batch tile tell each other that their part of a step is written.

A counter per batch tile. Each program adds one after its stores; everybody waits for the round's total.

    counter >= programs * round    <=>    every program has stored its part of this round

Triton (3.8 and older) puts no block barrier before a release, so other warps' stores could still be under way:
hence the barrier before the addition. The wait is bounded: a program that waits longer marks a fault, never waits
again, and its state becomes NaN, so that a fault is neither a hang nor a silent result.
"""

import triton
import triton.language as tl


@triton.jit
def announce(p_counter):
    """Publish this program's stores of the round."""
    tl.debug_barrier()
    tl.atomic_add(p_counter, 1, sem="release")


@triton.jit
def await_round(p_counter, target, patience):
    """Wait until the counter reaches `target`; return the patience left: `patience`, or 0 after a fault."""
    seen = tl.atomic_add(p_counter, 0, sem="acquire")
    spins = 0
    while (seen < target) & (spins < patience):
        seen = tl.atomic_add(p_counter, 0, sem="acquire")
        spins += 1
    tl.debug_barrier()
    return tl.where(seen < target, 0, patience)
