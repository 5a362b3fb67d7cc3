"""How the programs of one batch tile hand each other their part of a step.

Rounds are numbered from 1; every program of a tile publishes once a round, and reads what all have published. Three
ways:

    "counter"  one word per tile. Each program adds 1 after its stores:         counter - programs * round >= 0
    "flags"    one word per program, its last round, and a vector of polls:     min(flags) - round >= 0
    "tagged"   no word of its own: each value travels in one word with its round, so that the load that brings the
               value also tells whether it is fresh:                            all tags == round

"none" stands for programs that do not wait for each other: nothing is announced or awaited.

"counter" and "flags" order plain stores: `announce` after them, `await_round` before the others' are loaded. "tagged"
does both at once, `publish` in place of the store and `collect` in place of the load, and needs no order between words.
Its board has two slots, by the round's parity: a slot is written again two rounds later, by programs that have read the
whole round between, which nobody publishes before having read the slot.

The shared memory is zeros at the launch. Differences are taken modulo 2^32 and tags modulo their width, so that rounds
may wrap. Triton (3.8 and older) puts no block barrier before a release, so other warps' stores could still be under
way: hence the barrier before the release. Every wait is bounded: a program that waits longer marks a fault, never waits
again, and its state becomes NaN, so that a fault is neither a hang nor a silent result.
"""

import triton
import triton.language as tl


@triton.jit
def announce(p_signals, i_h, round, C: tl.constexpr):
    """Tell the tile that this program's plain stores of `round` are done; nothing to tell with tagged words."""
    if C.EXCHANGE == "counter":
        tl.debug_barrier()
        tl.atomic_add(p_signals, 1, sem="release")
    elif C.EXCHANGE == "flags":
        tl.debug_barrier()
        tl.atomic_xchg(p_signals + i_h, round, sem="release")


@triton.jit
def await_round(p_signals, round, programs, patience, C: tl.constexpr):
    """Wait until all programs have announced `round`; return the patience left: `patience`, or 0 after a fault.

    Of flags, C.POLLS are polled at once, at least as many as a program has threads: so the minimum is taken over all of
    its warps, and they agree on it.
    """
    if C.EXCHANGE == "counter":
        target = programs * round
        ahead = tl.atomic_add(p_signals, 0, sem="acquire") - target
        spins = 0
        while (ahead < 0) & (spins < patience):
            ahead = tl.atomic_add(p_signals, 0, sem="acquire") - target
            spins += 1
        tl.debug_barrier()
        patience = tl.where(ahead < 0, 0, patience)
    elif C.EXCHANGE == "flags":
        p_flags = p_signals + tl.minimum(tl.arange(0, C.POLLS), programs - 1)
        ahead = tl.min(read_flags(p_flags, C.PTX) - round, 0)
        spins = 0
        while (ahead < 0) & (spins < patience):
            ahead = tl.min(read_flags(p_flags, C.PTX) - round, 0)
            spins += 1
        if not C.PTX:
            tl.atomic_add(p_signals, 0, sem="acquire")
        tl.debug_barrier()
        patience = tl.where(ahead < 0, 0, patience)
    return patience


@triton.jit
def read_flags(p_flags, PTX: tl.constexpr):
    """Load every flag once more; without PTX, for a vector of acquiring loads, the caller orders what follows."""
    if PTX:
        # A vector of atomics in a loop breaks Triton 3.6's layout pass.
        flags = tl.inline_asm_elementwise(
            "ld.acquire.gpu.global.u32 $0, [$1];", "=r,l", [p_flags], dtype=tl.int32, is_pure=False, pack=1
        )
    else:
        flags = tl.load(p_flags, volatile=True)
    return flags


@triton.jit
def publish(p_words, round, value, mask, io: tl.constexpr):
    """Store `value`, rounded to `io`, each element in one word with the round: 32 bits beside 32, or 16 beside 16."""
    if io == tl.float32:
        bits = value.to(io).to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
        tag = tl.cast(round, tl.int64) << 32
    else:
        bits = value.to(io).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
        tag = tl.cast(round, tl.int32) << 16
    tl.store(p_words, bits | tag, mask=mask)


@triton.jit
def collect(p_words, round, mask, io: tl.constexpr, PTX: tl.constexpr):
    """Load words: their values in `io`, zeros outside `mask`, and int32 that are 0 where the words carry `round`."""
    # Volatile: not from the first-level cache, and again at each call. What is not loaded counts as fresh.
    if io == tl.float32:
        words = tl.load(p_words, mask=mask, other=tl.cast(round, tl.int64) << 32, volatile=True)
        if PTX:
            bits = tl.inline_asm_elementwise(
                "cvt.u32.u64 $0, $1;", "=r,l", [words], dtype=tl.int32, is_pure=False, pack=1
            )
        else:
            bits = words.to(tl.int32)
        stale = (words >> 32).to(tl.int32) ^ round
    else:
        tag = tl.cast(round, tl.int32) << 16
        words = tl.load(p_words, mask=mask, other=tag, volatile=True)
        if PTX:
            # Opaque to the compiler, which would carry the words to the product's layout, and one after another, before
            # it takes the values out of them.
            bits = tl.inline_asm_elementwise(
                "cvt.u16.u32 $0, $1;", "=h,r", [words], dtype=tl.int16, is_pure=False, pack=1
            )
        else:
            bits = words.to(tl.int16)
        stale = (words ^ tag) >> 16
    return bits.to(io, bitcast=True), stale
