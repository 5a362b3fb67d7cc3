"""How the programs of a batch tile hand each other their part of a step, in the resident kernels.

    "counter"  one word per tile. Each program adds 1 after its stores, a release; each warp polls the word for itself
               and loads what the others have stored.                           counter - programs * round >= 0
    "tagged"   each value travels in one word with its round, so that the load that brings the value also tells whether
               it is fresh: no fence, no broadcast, no block barrier.           all tags == round

A tagged word is 32 bits, a value of 16 bits below 16 bits of round, or 64 bits, three values below. A warp asks in one
block of assembly for all words that it will multiply, and again until all carry the round: it waits for those programs
alone whose units it sums over. Stores and loads of words are relaxed, in the scope of the GPU; nothing else is ordered
by them, and nothing needs to be. The board has two slots, by the round's parity: a slot is written again two rounds
later, by programs that have read the whole round between, which nobody publishes before all warps of its program have
read the slot: their sums have met, or each warp reads all words itself.

Every wait is bounded. Who waits longer marks the tile's fault and multiplies a NaN, so that a fault is neither a hang
nor a silent result; the fault then ends the waits of the whole tile.
"""

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def poll(word):
    """Return a word, by every lane of every warp for itself: no broadcast, no block barrier."""
    return gl.inline_asm_elementwise(
        # The order of one lane becomes that of the warp at the barrier.
        "ld.acquire.gpu.global.u32 $0, [$1]; bar.warp.sync -1;",
        "=r,l",
        [word],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def await_round(word, target, patience):
    """Wait until the word has reached `target`; return the patience left to this warp, 0 after a fault."""
    ahead = poll(word) - target
    spins = 0
    while (ahead < 0) & (spins < patience):
        ahead = poll(word) - target
        spins += 1
    return gl.where(ahead < 0, 0, patience)


@gluon.jit
def announce(word):
    """Tell the tile that this program's stores are done."""
    tl.debug_barrier()  # gl.barrier is gl.thread_barrier in Triton 3.6
    gl.atomic_add(word, 1, sem="release")


@gluon.jit
def mark_fault(fault, patience):
    """Note a fault of any warp: each has a patience of its own, and a store of a number is the first warp's alone."""
    gl.inline_asm_elementwise(
        "red.relaxed.gpu.global.or.b32 [$1], $2; mov.b32 $0, 0;", "=r,l,r", [fault, gl.where(patience > 0, 0, 1)],
        dtype=gl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def bits_of(value, io: gl.constexpr, word: gl.constexpr):
    """Return `value`, rounded to `io` of 16 bits, in the low bits of a word."""
    return value.to(io).to(gl.int16, bitcast=True).to(word) & 0xFFFF


@gluon.jit
def publish_one(p_words, value, round, mask, io: gl.constexpr, WIDE: gl.constexpr):
    """Store values, each in a word with its round; without a wait."""
    if WIDE:
        _store_wide(p_words, bits_of(value, io, gl.int64) | _wide_tag(round), mask)
    else:
        gl.inline_asm_elementwise(
            "@$3 st.relaxed.gpu.global.b32 [$1], $2; mov.b32 $0, 0;", "=r,l,r,b",
            [p_words, bits_of(value, io, gl.int32) | (round << 16), mask], dtype=gl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@gluon.jit
def publish_three(p_words, a, b, c, round, mask, io: gl.constexpr):
    """Store three values beside each other in a word of 64 bits."""
    word = bits_of(a, io, gl.int64) | (bits_of(b, io, gl.int64) << 16) | (bits_of(c, io, gl.int64) << 32)
    _store_wide(p_words, word | _wide_tag(round), mask)


@gluon.jit
def _wide_tag(round):
    return (round & 0xFFFF).to(gl.int64) << 48


@gluon.jit
def _store_wide(p_words, word, mask):
    gl.inline_asm_elementwise(
        "@$3 st.relaxed.gpu.global.b64 [$1], $2; mov.b32 $0, 0;", "=r,l,l,b", [p_words, word, mask], dtype=gl.int32,
        is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def collect_one(slot, place, round, fault, patience, C: gl.constexpr, io: gl.constexpr, wait: gl.constexpr):
    """Wait for the groups of 8 words at `slot + place`; return their values (WARPS_K, BLOCK_B, PART).

    `wait`: `resident_waits.Wait` for one value of a word.
    """
    q0, q1, q2, q3 = gl.inline_asm_elementwise(
        wait.text, wait.constraints, _asked(slot, place, round, fault, patience),
        dtype=(gl.int32, gl.int32, gl.int32, gl.int32), is_pure=False, pack=wait.groups,
    )  # fmt: skip
    return _unpack(q0, q1, q2, q3, C, io)


@gluon.jit
def collect_two(slot, place, round, fault, patience, C: gl.constexpr, io: gl.constexpr, wait: gl.constexpr):
    """The same for two values of a word."""
    q0, q1, q2, q3, q4, q5, q6, q7 = gl.inline_asm_elementwise(
        wait.text, wait.constraints, _asked(slot, place, round, fault, patience),
        dtype=(gl.int32, gl.int32, gl.int32, gl.int32, gl.int32, gl.int32, gl.int32, gl.int32), is_pure=False,
        pack=wait.groups,
    )  # fmt: skip
    return _unpack(q0, q1, q2, q3, C, io), _unpack(q4, q5, q6, q7, C, io)


@gluon.jit
def collect_three(slot, place, round, fault, patience, C: gl.constexpr, io: gl.constexpr, wait: gl.constexpr):
    """The same for three values of a word."""
    q0, q1, q2, q3, q4, q5, q6, q7, q8, q9, qa, qb = gl.inline_asm_elementwise(
        wait.text, wait.constraints, _asked(slot, place, round, fault, patience),
        dtype=(
            gl.int32, gl.int32, gl.int32, gl.int32, gl.int32, gl.int32, gl.int32, gl.int32, gl.int32, gl.int32,
            gl.int32, gl.int32,
        ), is_pure=False, pack=wait.groups,
    )  # fmt: skip
    return _unpack(q0, q1, q2, q3, C, io), _unpack(q4, q5, q6, q7, C, io), _unpack(q8, q9, qa, qb, C, io)


@gluon.jit
def _asked(slot, place, round, fault, patience):
    """Return what a wait is told of each group; the same for all but the first."""
    same = place * 0
    # Two kinds of pointers cannot be told to one block of assembly.
    return slot + place, same + (round << 16), fault.to(gl.int64) + same, same + patience


@gluon.jit
def _unpack(q0, q1, q2, q3, C: gl.constexpr, io: gl.constexpr):
    """Return (WARPS_K, BLOCK_B, PART) values of four tensors of pairs (.., PART / 8)."""
    pairs = gl.permute(gl.join(gl.join(q0, q1), gl.join(q2, q3)), [0, 1, 2, 4, 3])
    low = (pairs & 0xFFFF).to(gl.int16).to(io, bitcast=True)
    high = (pairs >> 16).to(gl.int16).to(io, bitcast=True)
    values = gl.reshape(gl.join(low, high), [C.WARPS_K, C.BLOCK_B, C.PART])
    return gl.convert_layout(values, C.left)
