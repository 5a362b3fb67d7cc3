"""Products of a tile's rows, of all units, with the recurrent weights of the units a program owns.

    a_g = sum over chunks k of  rows_g[:, chunk k] @ weights_g[k],     g = z, r, n

The rows are what the tile's programs exchange: plain values that a wait has made visible, or tagged words. Tagged words
are multiplied as they come, while the wait would last anyway, and the product is taken again until every word was
fresh.
"""

import triton
import triton.language as tl

from .exchange import collect
from .weights import load_weights


@triton.jit
def keep_layout(values):
    """Return `values` through an instruction that the compiler does not look into.

    Triton 3.6 would otherwise carry each chunk to the product's layout as soon as it is loaded. Many warps hold the
    same values there, so the chunks in flight would take several times the registers, and spill.
    """
    if values.dtype == tl.float32:
        values = tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=f,f", [values], dtype=values.dtype, is_pure=False, pack=1
        )
    else:
        values = tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r", [values], dtype=values.dtype, is_pure=False, pack=2
        )
    return values


@triton.jit
def load_chunk(
    p_rows, words, stale, round, k, U, s_row, o_b, m_b, BLOCK_K: tl.constexpr, TAGGED: tl.constexpr,
    PTX: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Return chunk k (BLOCK_B, BLOCK_K) of values with rows s_row apart, or of (B,U) words; and `stale`, updated.

    KEEP: whether many chunks are in flight, and must stay as they were loaded until they are multiplied.
    """
    # The chunk's place is added last, as a constant: so the chunks share the registers of one address.
    o_k = tl.arange(0, BLOCK_K)
    m_bk = m_b[:, None] & (o_k < U - k * BLOCK_K)[None, :]
    if TAGGED:
        p_words = words + (o_b[:, None] * U + o_k[None, :]) + k * BLOCK_K
        b_k, is_stale = collect(p_words, round, m_bk, p_rows.dtype.element_ty, PTX)
        # Integers and not truth values: of those a thread has few registers, and would keep the words instead.
        stale = stale | is_stale
    else:
        # Past the first-level cache: others have written it.
        p_k = p_rows + (o_b[:, None] * s_row + o_k[None, :]) + k * BLOCK_K
        b_k = tl.load(p_k, mask=m_bk, other=0.0, cache_modifier=".cg")
        if KEEP:
            b_k = keep_layout(b_k)
    return b_k, stale


@triton.jit
def load_factor(drop, k, U, o_b, m_b, BLOCK_K: tl.constexpr):
    """Return chunk k (BLOCK_B, BLOCK_K) of a dropout mask (B,U)."""
    o_k = k * BLOCK_K + tl.arange(0, BLOCK_K)
    return tl.load(drop + o_b[:, None] * U + o_k[None, :], mask=m_b[:, None] & (o_k < U)[None, :], other=0.0)


@triton.jit
def multiply_once(
    p_z, p_r, p_n, s_zr, s_n, words_z, words_r, words_n, round, own_z, own_r, own_n, drop,
    u, w_z, w_r, w_n, U, o_b, o_h, m_b, m_h, step_size, s_chunk, s_own, s_gate,
    ZR: tl.constexpr, N: tl.constexpr, SAME: tl.constexpr, SINGLE: tl.constexpr, STREAM: tl.constexpr,
    TAGGED: tl.constexpr, PTX: tl.constexpr, DROPS: tl.constexpr, GATE_Z: tl.constexpr, GATE_R: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr, NK: tl.constexpr, GROUP: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`multiply` without the wait; returns also how many words were stale."""
    a_z = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    a_r = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    a_n = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    if STREAM:
        for k in range(NK):
            c_z, c_r, c_n = load_weights(u, k, U, o_h, m_h, s_chunk, s_own, s_gate, GATE_Z, GATE_R, BLOCK_K, DOT)
            # Nothing is stale here; a number, since Triton 3.6 lets no function return None.
            k_z, k_r, k_n, _ = load_rows(
                p_z, p_r, p_n, s_zr, s_n, words_z, words_r, words_n, 0, round, own_z, own_r, own_n, drop,
                k, U, o_b, m_b, step_size, ZR, N, SAME, SINGLE, TAGGED, PTX, False, DROPS, GATE_Z, GATE_R, BLOCK_K,
                DOT,
            )  # fmt: skip
            if ZR:
                a_z = tl.dot(k_z.to(DOT), c_z, a_z, input_precision=PRECISION)
                a_r = tl.dot(k_r.to(DOT), c_r, a_r, input_precision=PRECISION)
            if N:
                a_n = tl.dot(k_n.to(DOT), c_n, a_n, input_precision=PRECISION)
        stale = 0
    else:
        stale = tl.zeros((BLOCK_B, BLOCK_K), tl.int32)
        # All chunks of a group are asked for before the first is multiplied: a product waits at a block barrier, which
        # no load passes, and each would cost the full latency of the second-level cache.
        # Dropout masks want the registers, so with them the chunks come one by one.
        AHEAD: tl.constexpr = 1 if DROPS > 0 else GROUP
        for first in tl.static_range(0, NK, AHEAD):
            rows_z, rows_r, rows_n = (), (), ()
            for k in tl.static_range(first, first + AHEAD):
                if k < NK:
                    k_z, k_r, k_n, stale = load_rows(
                        p_z, p_r, p_n, s_zr, s_n, words_z, words_r, words_n, stale, round, own_z, own_r, own_n, drop,
                        k, U, o_b, m_b, step_size, ZR, N, SAME, SINGLE, TAGGED, PTX, PTX, DROPS, GATE_Z, GATE_R,
                        BLOCK_K, DOT,
                    )  # fmt: skip
                    rows_z, rows_r, rows_n = rows_z + (k_z,), rows_r + (k_r,), rows_n + (k_n,)
            for k in tl.static_range(first, first + AHEAD):
                if k < NK:
                    if ZR:
                        a_z = tl.dot(rows_z[k - first].to(DOT), w_z[k], a_z, input_precision=PRECISION)
                        a_r = tl.dot(rows_r[k - first].to(DOT), w_r[k], a_r, input_precision=PRECISION)
                    if N:
                        a_n = tl.dot(rows_n[k - first].to(DOT), w_n[k], a_n, input_precision=PRECISION)
        if TAGGED:
            # Over all warps, so that they agree, and none still reads what another takes for read.
            stale = tl.max((stale != 0).to(tl.int32))
    return a_z, a_r, a_n, stale


@triton.jit
def load_rows(
    p_z, p_r, p_n, s_zr, s_n, words_z, words_r, words_n, stale, round, own_z, own_r, own_n, drop,
    k, U, o_b, m_b, step_size, ZR: tl.constexpr, N: tl.constexpr, SAME: tl.constexpr, SINGLE: tl.constexpr,
    TAGGED: tl.constexpr, PTX: tl.constexpr, KEEP: tl.constexpr, DROPS: tl.constexpr, GATE_Z: tl.constexpr,
    GATE_R: tl.constexpr, BLOCK_K: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Return chunk k of the rows for gates z, r, n, each with its dropout mask, and `stale`, updated."""
    k_z, k_r, k_n = own_z, own_r, own_n
    if not SINGLE:
        if ZR or SAME:
            k_z, stale = load_chunk(p_z, words_z, stale, round, k, U, s_zr, o_b, m_b, BLOCK_K, TAGGED, PTX, KEEP)
        k_r, k_n = k_z, k_z
        if not SAME:
            if ZR:
                k_r, stale = load_chunk(p_r, words_r, stale, round, k, U, s_zr, o_b, m_b, BLOCK_K, TAGGED, PTX, KEEP)
            if N:
                k_n, stale = load_chunk(p_n, words_n, stale, round, k, U, s_n, o_b, m_b, BLOCK_K, TAGGED, PTX, KEEP)
    # Multiplied in the products' type: in bfloat16 the interpreter would multiply the bits.
    if DROPS == 1:
        k_n = k_n.to(DOT) * load_factor(drop, k, U, o_b, m_b, BLOCK_K).to(DOT)
        k_z, k_r = k_n, k_n
    elif DROPS == 3:
        k_z = k_z.to(DOT) * load_factor(drop + GATE_Z * step_size, k, U, o_b, m_b, BLOCK_K).to(DOT)
        k_r = k_r.to(DOT) * load_factor(drop + GATE_R * step_size, k, U, o_b, m_b, BLOCK_K).to(DOT)
        k_n = k_n.to(DOT) * load_factor(drop + 2 * step_size, k, U, o_b, m_b, BLOCK_K).to(DOT)
    return k_z, k_r, k_n, stale


@triton.jit
def multiply(
    p_z, p_r, p_n, s_zr, s_n, words_z, words_r, words_n, round, patience, own_z, own_r, own_n, drop,
    u, w_z, w_r, w_n, U, o_b, o_h, m_b, m_h, step_size, s_chunk, s_own, s_gate,
    ZR: tl.constexpr, N: tl.constexpr, SAME: tl.constexpr, SINGLE: tl.constexpr, STREAM: tl.constexpr,
    TAGGED: tl.constexpr, PTX: tl.constexpr, DROPS: tl.constexpr, GATE_Z: tl.constexpr, GATE_R: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr, NK: tl.constexpr, GROUP: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return a_z, a_r (zeros without ZR), a_n (zeros without N), each (BLOCK_B, BLOCK_H), and the patience left.

    p_z, p_r, p_n: the gates' rows, s_zr and s_n apart; one array for all if SAME; typed as the words' values if TAGGED.
    words_z, words_r, words_n: (B,U) words of `round`, if TAGGED. own_z, own_r, own_n: the rows themselves, if SINGLE.
    w_z, w_r, w_n: the chunks of the weights a program keeps; loaded from `u` at each use if STREAM.
    """
    if TAGGED:
        a_z = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
        a_r = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
        a_n = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
        stale = 1
        spins = 0
        while (stale > 0) & (spins < patience):
            a_z, a_r, a_n, stale = multiply_once(
                p_z, p_r, p_n, s_zr, s_n, words_z, words_r, words_n, round, own_z, own_r, own_n, drop,
                u, w_z, w_r, w_n, U, o_b, o_h, m_b, m_h, step_size, s_chunk, s_own, s_gate,
                ZR, N, SAME, SINGLE, STREAM, TAGGED, PTX, DROPS, GATE_Z, GATE_R, BLOCK_B, BLOCK_H, BLOCK_K, NK, GROUP,
                DOT, PRECISION,
            )  # fmt: skip
            spins += 1
        patience = tl.where(stale > 0, 0, patience)
    else:
        a_z, a_r, a_n, _ = multiply_once(
            p_z, p_r, p_n, s_zr, s_n, words_z, words_r, words_n, round, own_z, own_r, own_n, drop,
            u, w_z, w_r, w_n, U, o_b, o_h, m_b, m_h, step_size, s_chunk, s_own, s_gate,
            ZR, N, SAME, SINGLE, STREAM, TAGGED, PTX, DROPS, GATE_Z, GATE_R, BLOCK_B, BLOCK_H, BLOCK_K, NK, GROUP, DOT,
            PRECISION,
        )  # fmt: skip
    return a_z, a_r, a_n, patience
