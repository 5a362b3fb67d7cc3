"""Products of a tile's rows, of all units, with the recurrent weights of the units a program owns.

    a_g = sum over chunks k of  rows_g[:, chunk k] @ weights_g[k],     g = z, r, n
    forward:  weights = R_g[chunk, owned]        backward:  weights = R_g'[chunk, owned] = R_g[owned, chunk]

Both are the same product with two strides of the weights exchanged. A program that keeps its weights loads their chunks
once, before the time loop; one that streams them loads them at each use.

The rows are what the tile's programs exchange, made visible by a wait. What there is of each gate goes as a triple
z, r, n.
"""

import triton
import triton.language as tl


@triton.jit
def load_weights(u, k, U, o_h, m_h, s_u, C: tl.constexpr):
    """Return chunk `k` (BLOCK_K, BLOCK_H) of the three gates; zeros outside the matrix.

    s_u: strides of the recurrent weights `u`, from unit to unit of the chunk, of the owned, and from column to column.
    """
    s_chunk, s_own, s_column = s_u
    o_k = k * C.BLOCK_K + tl.arange(0, C.BLOCK_K)
    m_kh = (o_k < U)[:, None] & m_h[None, :]
    p_u = u + o_k[:, None].to(tl.int64) * s_chunk + o_h[None, :].to(tl.int64) * s_own
    w_z = tl.load(p_u + C.GATE_Z * U * s_column, mask=m_kh, other=0.0).to(C.DOT)
    w_r = tl.load(p_u + C.GATE_R * U * s_column, mask=m_kh, other=0.0).to(C.DOT)
    w_n = tl.load(p_u + 2 * U * s_column, mask=m_kh, other=0.0).to(C.DOT)
    return w_z, w_r, w_n


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
def load_chunk(p_rows, s_row, k, U, o_b, m_b, KEEP: tl.constexpr, C: tl.constexpr):
    """Return chunk k (BLOCK_B, BLOCK_K) of values with rows s_row apart.

    KEEP: whether many chunks are in flight, and must stay as they were loaded until they are multiplied.
    """
    # The chunk's place is added last, as a constant: so the chunks share the registers of one address.
    o_k = tl.arange(0, C.BLOCK_K)
    m_bk = m_b[:, None] & (o_k < U - k * C.BLOCK_K)[None, :]
    # Past the first-level cache: others have written it.
    p_k = p_rows + (o_b[:, None] * s_row + o_k[None, :]) + k * C.BLOCK_K
    b_k = tl.load(p_k, mask=m_bk, other=0.0, cache_modifier=".cg")
    if KEEP:
        b_k = keep_layout(b_k)
    return b_k


@triton.jit
def load_factor(drop, k, U, o_b, m_b, C: tl.constexpr):
    """Return chunk k (BLOCK_B, BLOCK_K) of a dropout mask (B,U)."""
    o_k = k * C.BLOCK_K + tl.arange(0, C.BLOCK_K)
    return tl.load(drop + o_b[:, None] * U + o_k[None, :], mask=m_b[:, None] & (o_k < U)[None, :], other=0.0)


@triton.jit
def load_rows(
    p_rows, s_rows, own, drop, k, U, o_b, m_b, step_size,
    ZR: tl.constexpr, N: tl.constexpr, SAME: tl.constexpr, KEEP: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Return chunk k of the rows for gates z, r, n, each with its dropout mask."""
    k_z, k_r, k_n = own
    if not C.SINGLE:
        if ZR or SAME:
            k_z = load_chunk(p_rows[0], s_rows[0], k, U, o_b, m_b, KEEP, C)
        k_r, k_n = k_z, k_z
        if not SAME:
            if ZR:
                k_r = load_chunk(p_rows[1], s_rows[1], k, U, o_b, m_b, KEEP, C)
            if N:
                k_n = load_chunk(p_rows[2], s_rows[2], k, U, o_b, m_b, KEEP, C)
    # Multiplied in the products' type: in bfloat16 the interpreter would multiply the bits.
    if drop is not None:
        if C.DROPS == 1:
            k_n = k_n.to(C.DOT) * load_factor(drop, k, U, o_b, m_b, C).to(C.DOT)
            k_z, k_r = k_n, k_n
        else:
            k_z = k_z.to(C.DOT) * load_factor(drop + C.GATE_Z * step_size, k, U, o_b, m_b, C).to(C.DOT)
            k_r = k_r.to(C.DOT) * load_factor(drop + C.GATE_R * step_size, k, U, o_b, m_b, C).to(C.DOT)
            k_n = k_n.to(C.DOT) * load_factor(drop + 2 * step_size, k, U, o_b, m_b, C).to(C.DOT)
    return k_z, k_r, k_n


@triton.jit
def multiply(
    p_rows, s_rows, own, drop, u, w, s_u, U, o_b, o_h, m_b, m_h, step_size,
    ZR: tl.constexpr, N: tl.constexpr, SAME: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Return a_z, a_r (zeros without ZR) and a_n (zeros without N), each (BLOCK_B, BLOCK_H).

    p_rows: the gates' rows, s_rows apart; one array for all if SAME. own: the rows themselves, if SINGLE.
    drop: (DROPS,B,U) dropout masks of the rows, or None.
    w: the chunks of the weights a program keeps; loaded from `u`, of strides s_u (`load_weights`), at each use if
        STREAM.
    """
    a_z = tl.zeros((C.BLOCK_B, C.BLOCK_H), tl.float32)
    a_r = tl.zeros((C.BLOCK_B, C.BLOCK_H), tl.float32)
    a_n = tl.zeros((C.BLOCK_B, C.BLOCK_H), tl.float32)
    if C.STREAM:
        for k in range(C.NK):
            w_z, w_r, w_n = load_weights(u, k, U, o_h, m_h, s_u, C)
            k_z, k_r, k_n = load_rows(p_rows, s_rows, own, drop, k, U, o_b, m_b, step_size, ZR, N, SAME, False, C)
            if ZR:
                a_z = tl.dot(k_z.to(C.DOT), w_z, a_z, input_precision=C.PRECISION)
                a_r = tl.dot(k_r.to(C.DOT), w_r, a_r, input_precision=C.PRECISION)
            if N:
                a_n = tl.dot(k_n.to(C.DOT), w_n, a_n, input_precision=C.PRECISION)
    else:
        # All chunks of a group are asked for before the first is multiplied: a product waits at a block barrier, which
        # no load passes, and each would cost the full latency of the second-level cache.
        # Dropout masks want the registers, so with them the chunks come one by one.
        AHEAD: tl.constexpr = C.GROUP if drop is None else 1
        for first in tl.static_range(0, C.NK, AHEAD):
            rows = ()
            for k in tl.static_range(first, first + AHEAD):
                if k < C.NK:
                    k_z, k_r, k_n = load_rows(
                        p_rows, s_rows, own, drop, k, U, o_b, m_b, step_size, ZR, N, SAME, C.PTX, C
                    )
                    rows = rows + ((k_z, k_r, k_n),)
            for k in tl.static_range(first, first + AHEAD):
                if k < C.NK:
                    k_z, k_r, k_n = rows[k - first]
                    w_z, w_r, w_n = w[k]
                    if ZR:
                        a_z = tl.dot(k_z.to(C.DOT), w_z, a_z, input_precision=C.PRECISION)
                        a_r = tl.dot(k_r.to(C.DOT), w_r, a_r, input_precision=C.PRECISION)
                    if N:
                        a_n = tl.dot(k_n.to(C.DOT), w_n, a_n, input_precision=C.PRECISION)
    return a_z, a_r, a_n
