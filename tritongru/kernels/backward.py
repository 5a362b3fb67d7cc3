"""The reverse scan: gradients of the pre-activations, with the transposed recurrent weights on the chip.

    da_n = dh (1 - z) f'(n);   da_z = dh (h - n) g'(z);   da_r = da_n (h R_n + c_n) g'(r)
    dh_before = dh z + da_z R_z' + da_r R_r' + (da_n r) R_n'                                 reset_after
    ds = da_n R_n';  da_r = ds h g'(r);  dh_before = dh z + da_z R_z' + da_r R_r' + ds r     otherwise

A program owns BLOCK_B rows and BLOCK_H units. Invariant at the top of step t: `b_dh` holds the float32 gradient of the
state leaving t of the owned block; the inputs of t are on their way, and those of the next step are asked for before
the wait. What programs exchange is the pre-activations' gradients, which are results anyway.
Bytes per step and program: reads the gates, the state and BLOCK_B * 3U gradients, writes its part of the gradients.
One body for all schedules, as in forward.py; PHASE 1, 2, 3 are the parts between exchanges (0: all).
"""

import triton
import triton.language as tl

from .exchange import announce, await_round, publish
from .gates import slope
from .product import multiply
from .weights import load_weights


@triton.jit
def load_step(
    d_out, gates, entering, mask, resets, step, T, B, step_size, o_b, o_bh, m_b, m_bh, PHASE: tl.constexpr,
    RESET_AFTER: tl.constexpr, REVERSE: tl.constexpr, HAS_OUT: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_RESET: tl.constexpr,
):  # fmt: skip
    """Return the inputs of a step: z, r, n, h R_n + c_n, the state entering, the output's gradient; mask and resets."""
    t = step if REVERSE else T - 1 - step
    o_t = t.to(tl.int64) * step_size + o_bh
    b_h = tl.load(entering + o_t, mask=m_bh, other=0.0)
    b_r = tl.load(gates + T * step_size + o_t, mask=m_bh, other=0.0)
    # What is not there is never used.
    b_z, b_n, b_g, b_do = b_h, b_h, b_h, b_h
    if PHASE <= 1:
        b_z = tl.load(gates + o_t, mask=m_bh, other=0.0)
        b_n = tl.load(gates + 2 * T * step_size + o_t, mask=m_bh, other=0.0)
        if RESET_AFTER:
            b_g = tl.load(gates + 3 * T * step_size + o_t, mask=m_bh, other=0.0)
        if HAS_OUT:
            b_do = tl.load(d_out + o_t, mask=m_bh, other=0.0)
    keep, again = m_b, m_b
    if HAS_MASK:
        keep = tl.load(mask + t.to(tl.int64) * B + o_b, mask=m_b, other=0) != 0
    if HAS_RESET:
        again = tl.load(resets + t.to(tl.int64) * B + o_b, mask=m_b, other=0) != 0
    return b_z, b_r, b_n, b_g, b_h, b_do, keep, again


@triton.jit(do_not_specialize=["T", "B", "step_begin", "step_end", "first_tile", "patience"])
def gru_backward_kernel(
    d_out, gates, entering, u, mask, resets, drop, d_gx, d_gh_n, d_fresh, carry, y_carry, rows, stops, board, faults,
    T, B, U, step_begin, step_end, first_tile, patience, s_u_k, s_u_g, s_tile,
    BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr, NK: tl.constexpr,
    GROUP: tl.constexpr, SINGLE: tl.constexpr, PERSISTENT: tl.constexpr, STREAM: tl.constexpr,
    EXCHANGE: tl.constexpr, POLLS: tl.constexpr, PTX: tl.constexpr, PHASE: tl.constexpr,
    ACT: tl.constexpr, REC_ACT: tl.constexpr, RESET_AFTER: tl.constexpr, ZERO_MASKED: tl.constexpr,
    REVERSE: tl.constexpr, GATE_Z: tl.constexpr, GATE_R: tl.constexpr, DROPS: tl.constexpr,
    HAS_OUT: tl.constexpr, HAS_MASK: tl.constexpr, HAS_RESET: tl.constexpr, HAS_ROWS: tl.constexpr,
    FRESH_GRADIENT: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Run steps step_begin..step_end, counted from the last processed one; equals `eager.scan_backward`.

    | pointer | shape, contiguous unless noted | dtype |
    |---|---|---|
    | d_out | (T,B,U) | io |
    | gates | (4 or 3,T,B,U) z, r, n, h R_n + c_n | io |
    | entering | (T,B,U) the state entering each step | io |
    | u | (U,3U), strides s_u_k, s_u_g | io |
    | mask, resets | (T,B) | uint8 |
    | drop | (DROPS,B,U) | io |
    | d_gx, d_gh_n | (T,B,3U), (T,B,U) (RESET_AFTER) | io |
    | d_fresh | (T,B,U) | io |
    | carry, y_carry | (B,U) gradient of the state, and of the output that masked steps repeat | float32 |
    | rows | (B,) the rows in the order in which tiles take them (HAS_ROWS) | int64 |
    | stops | (B,) from which step on nothing happens to a row, see stops.py (HAS_MASK) | int32 |
    | board | (tiles,s_tile) signals or (2,3,B,U) words of gates z, r, n, zeros, see exchange.py | int32, int64 |
    | faults | (tiles,) zeros | int32 |
    """
    i_h, i_b = tl.program_id(0), tl.program_id(1)
    if first_tile is not None:
        i_b += first_tile
    programs = tl.num_programs(0)
    o_b = i_b * BLOCK_B + tl.arange(0, BLOCK_B).to(tl.int64)
    m_b = o_b < B
    if HAS_ROWS:
        o_b = tl.load(rows + o_b, mask=m_b, other=0)
    o_h = i_h * BLOCK_H + tl.arange(0, BLOCK_H)
    o_bh = o_b[:, None] * U + o_h[None, :]
    o_bg = o_b[:, None] * (3 * U) + o_h[None, :]
    step_size = B.to(tl.int64) * U
    m_h = o_h < U
    m_bh = m_b[:, None] & m_h[None, :]
    io: tl.constexpr = d_gx.dtype.element_ty
    TAGGED: tl.constexpr = PERSISTENT and EXCHANGE == "tagged"
    p_signals = board
    if PERSISTENT and not TAGGED:
        p_signals = board + i_b * s_tile
    begin = step_begin
    if HAS_MASK:
        stop = tl.max(tl.load(stops + o_b, mask=m_b, other=0), 0)
        begin = tl.minimum(tl.maximum(step_begin, T - stop), step_end)

    # R' of the owned units: NK chunks of (BLOCK_K, BLOCK_H) per gate.
    w_z, w_r, w_n = (), (), ()
    if not STREAM:
        for k in tl.static_range(NK):
            c_z, c_r, c_n = load_weights(u, k, U, o_h, m_h, s_u_g, s_u_k, s_u_g, GATE_Z, GATE_R, BLOCK_K, DOT)
            w_z, w_r, w_n = w_z + (c_z,), w_r + (c_r,), w_n + (c_n,)
    b_dh = tl.load(carry + o_bh, mask=m_bh, other=0.0)
    b_dy = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    if HAS_MASK:
        b_dy = tl.load(y_carry + o_bh, mask=m_bh, other=0.0)
    if DROPS > 0:
        d_n = tl.load(drop + (DROPS - 1) * step_size + o_bh, mask=m_bh, other=0.0).to(tl.float32)
        d_z = d_n
        d_r = d_n
        if DROPS == 3:
            d_z = tl.load(drop + GATE_Z * step_size + o_bh, mask=m_bh, other=0.0).to(tl.float32)
            d_r = tl.load(drop + GATE_R * step_size + o_bh, mask=m_bh, other=0.0).to(tl.float32)
    rounds = tl.full((), 0, tl.int32)

    # Steps that are masked to the end in every row of the tile: nobody waits, everything is written all the same.
    if HAS_MASK:
        if PHASE <= 1:
            nothing = tl.zeros((BLOCK_B, BLOCK_H), io)
            for step in range(step_begin, begin):
                t = step if REVERSE else T - 1 - step
                o_t = t.to(tl.int64) * step_size
                for gate in tl.static_range(3):
                    tl.store(d_gx + o_t * 3 + o_bg + gate * U, nothing, mask=m_bh)
                if RESET_AFTER:
                    tl.store(d_gh_n + o_t + o_bh, nothing, mask=m_bh)
                if FRESH_GRADIENT:
                    tl.store(d_fresh + o_t + o_bh, nothing, mask=m_bh)
                if HAS_OUT:
                    b_do = tl.load(d_out + o_t + o_bh, mask=m_bh, other=0.0).to(tl.float32)
                    b_dy = b_do if ZERO_MASKED else b_dy + b_do

    if not STREAM:
        j_z, j_r, j_n, j_g, j_s, j_o, keep_next, again_next = load_step(
            d_out, gates, entering, mask, resets, tl.minimum(begin, T - 1), T, B, step_size, o_b, o_bh, m_b, m_bh,
            PHASE, RESET_AFTER, REVERSE, HAS_OUT, HAS_MASK, HAS_RESET,
        )  # fmt: skip
    for step in range(begin, step_end):
        t = step if REVERSE else T - 1 - step
        o_t = t.to(tl.int64) * step_size
        if STREAM:
            i_z, i_r, i_n, i_g, i_s, i_o, keep, again = load_step(
                d_out, gates, entering, mask, resets, step, T, B, step_size, o_b, o_bh, m_b, m_bh, PHASE, RESET_AFTER,
                REVERSE, HAS_OUT, HAS_MASK, HAS_RESET,
            )  # fmt: skip
        else:
            i_z, i_r, i_n, i_g, i_s, i_o, keep, again = j_z, j_r, j_n, j_g, j_s, j_o, keep_next, again_next
            j_z, j_r, j_n, j_g, j_s, j_o, keep_next, again_next = load_step(
                d_out, gates, entering, mask, resets, tl.minimum(step + 1, step_end - 1), T, B, step_size, o_b, o_bh,
                m_b, m_bh, PHASE, RESET_AFTER, REVERSE, HAS_OUT, HAS_MASK, HAS_RESET,
            )  # fmt: skip
        b_h = i_s.to(tl.float32)
        b_r = i_r.to(tl.float32)
        kept = keep[:, None]

        # Gradients of the owned pre-activations.
        p_g = d_gx + o_t * 3 + o_bg
        rounds += 1
        q_z = board
        q_r = board
        q_n = board
        if TAGGED:
            q_z = board + (rounds & 1) * 3 * step_size
            q_r = q_z + step_size
            q_n = q_r + step_size
        g_z, g_r, g_n, g_s = b_h, b_h, b_h, b_h
        if PHASE <= 1:
            b_z = i_z.to(tl.float32)
            b_n = i_n.to(tl.float32)
            if HAS_OUT:
                b_do = i_o.to(tl.float32)
                if HAS_MASK:
                    b_dy = b_do if ZERO_MASKED else b_dy + b_do
                    b_dh = tl.where(kept, b_dh + b_dy, b_dh)
                    b_dy = tl.where(kept, 0.0, b_dy)
                else:
                    b_dh += b_do
            g_n = tl.where(kept, b_dh * (1.0 - b_z) * slope(b_n, ACT), 0.0)
            g_z = tl.where(kept, b_dh * (b_h - b_n) * slope(b_z, REC_ACT), 0.0)
            if RESET_AFTER:
                g_r = tl.where(kept, g_n * i_g.to(tl.float32) * slope(b_r, REC_ACT), 0.0)
                g_s = tl.where(kept, g_n * b_r, 0.0)
            if TAGGED:
                if RESET_AFTER:
                    publish(q_z + o_bh, rounds, g_z, m_bh, io)
                    publish(q_r + o_bh, rounds, g_r, m_bh, io)
                    publish(q_n + o_bh, rounds, g_s, m_bh, io)
                else:
                    publish(q_n + o_bh, rounds, g_n, m_bh, io)
            tl.store(p_g + GATE_Z * U, g_z.to(io), mask=m_bh)
            if RESET_AFTER:
                tl.store(p_g + GATE_R * U, g_r.to(io), mask=m_bh)
                tl.store(d_gh_n + o_t + o_bh, g_s.to(io), mask=m_bh)
            else:
                tl.store(p_g + 2 * U, g_n.to(io), mask=m_bh)
            b_dh = tl.where(kept, b_dh * b_z, b_dh)
        if PERSISTENT:
            announce(p_signals, i_h, rounds, EXCHANGE)
        if RESET_AFTER:
            # Nobody else reads this one.
            if PHASE <= 1:
                tl.store(p_g + 2 * U, g_n.to(io), mask=m_bh)
        if PERSISTENT:
            patience = await_round(p_signals, rounds, programs, patience, EXCHANGE, POLLS, PTX)

        # Without RESET_AFTER the reset gate's gradient needs da_n of all units first.
        p_z = d_gx + o_t * 3 + GATE_Z * U
        p_r = d_gx + o_t * 3 + GATE_R * U
        p_n = d_gx + o_t * 3 + 2 * U
        if not RESET_AFTER:
            if PHASE == 0 or PHASE == 2:
                b_own = g_n.to(io)
                _, _, a_s, patience = multiply(
                    p_z, p_r, p_n, 3 * U, 3 * U, q_z, q_r, q_n, rounds, patience, b_own, b_own, b_own, drop,
                    u, w_z, w_r, w_n, U, o_b, o_h, m_b, m_h, step_size, s_u_g, s_u_k, s_u_g,
                    False, True, False, SINGLE, STREAM, TAGGED, PTX, 0, GATE_Z, GATE_R, BLOCK_B, BLOCK_H, BLOCK_K, NK,
                    GROUP, DOT, PRECISION,
                )  # fmt: skip
                if DROPS > 0:
                    a_s = a_s * d_n
                g_r = tl.where(kept, a_s * b_h * slope(b_r, REC_ACT), 0.0)
                rounds += 1
                if TAGGED:
                    q_z = board + (rounds & 1) * 3 * step_size
                    q_r = q_z + step_size
                    publish(q_z + o_bh, rounds, g_z, m_bh, io)
                    publish(q_r + o_bh, rounds, g_r, m_bh, io)
                tl.store(p_g + GATE_R * U, g_r.to(io), mask=m_bh)
                b_dh += tl.where(kept, a_s * b_r, 0.0)
            if PERSISTENT:
                announce(p_signals, i_h, rounds, EXCHANGE)
                patience = await_round(p_signals, rounds, programs, patience, EXCHANGE, POLLS, PTX)

        # Through the recurrent products to the state before.
        if PHASE == 0 or PHASE == 3:
            p_s = p_n
            if RESET_AFTER:
                p_s = d_gh_n + o_t
            a_z, a_r, a_n, patience = multiply(
                p_z, p_r, p_s, 3 * U, U, q_z, q_r, q_n, rounds, patience,
                g_z.to(io), g_r.to(io), g_s.to(io), drop, u, w_z, w_r, w_n, U, o_b, o_h, m_b, m_h, step_size,
                s_u_g, s_u_k, s_u_g, True, RESET_AFTER, False, SINGLE, STREAM, TAGGED, PTX, 0, GATE_Z, GATE_R, BLOCK_B,
                BLOCK_H, BLOCK_K, NK, GROUP, DOT, PRECISION,
            )  # fmt: skip
            if DROPS > 0:
                a_z = a_z * d_z
                a_r = a_r * d_r
                a_n = a_n * d_n
            b_dh += a_z + a_r + a_n
            b_dh = tl.where(m_bh, b_dh, 0.0)
            if PERSISTENT:
                b_dh = tl.where(patience > 0, b_dh, float("nan"))
            if HAS_RESET:
                if FRESH_GRADIENT:
                    tl.store(d_fresh + o_t + o_bh, tl.where(again[:, None], b_dh, 0.0).to(io), mask=m_bh)
                b_dh = tl.where(again[:, None], 0.0, b_dh)

    tl.store(carry + o_bh, b_dh, mask=m_bh)
    if HAS_MASK:
        if PHASE <= 1:
            tl.store(y_carry + o_bh, b_dy, mask=m_bh)
    if PERSISTENT:
        if patience == 0:
            tl.store(faults + i_b, 1)
