"""The forward scan: the recurrent weights stay on the chip for the whole sequence.

    z, r = g(gx_z + h R_z), g(gx_r + h R_r);   n = f(gx_n + r * (h R_n + c_n))  or  f(gx_n + (r * h) R_n)
    h' = z * h + (1 - z) * n

A program owns BLOCK_B rows and BLOCK_H units with all three gates of those units. Invariant at the top of step t: `b_h`
holds the float32 state entering t of the owned block, and the same state of all units is stored at `p_h`, or published
as words of round `rounds`. The inputs of step t are on their way, and those of the next step are asked for before the
wait. Bytes per step and program: reads 3 gx + BLOCK_B * U of the state, writes the state, the output and the saved
gates. One body for all schedules: one program per tile (SINGLE: the state never leaves the registers), several with an
exchange per step (PERSISTENT), or one launch per step and PHASE (0 both, 1 up to the middle exchange, 2 after it). With
STREAM the weights are read at every step, else once. A launch has the batch tiles from `first_tile` on (None: from 0).
"""

import triton
import triton.language as tl

from .exchange import announce, await_round, publish
from .gates import activate
from .product import multiply
from .weights import load_weights


@triton.jit
def load_step(
    gx, mask, resets, step, T, B, U, o_b, o_h, m_b, m_bh, REVERSE: tl.constexpr, GATE_Z: tl.constexpr,
    GATE_R: tl.constexpr, HAS_MASK: tl.constexpr, HAS_RESET: tl.constexpr,
):  # fmt: skip
    """Return the inputs of a step: the owned block of gx, gates z, r, n; the mask; the resets of the step after it."""
    t = T - 1 - step if REVERSE else step
    p = gx + (t.to(tl.int64) * B + o_b[:, None]) * (3 * U) + o_h[None, :]
    x_z = tl.load(p + GATE_Z * U, mask=m_bh, other=0.0)
    x_r = tl.load(p + GATE_R * U, mask=m_bh, other=0.0)
    x_n = tl.load(p + 2 * U, mask=m_bh, other=0.0)
    keep, again = m_b, m_b
    if HAS_MASK:
        keep = tl.load(mask + t.to(tl.int64) * B + o_b, mask=m_b, other=0) != 0
    if HAS_RESET:
        t_next = t - 1 if REVERSE else t + 1
        again = tl.load(resets + t_next.to(tl.int64) * B + o_b, mask=m_b & (step + 1 < T), other=0) != 0
    return x_z, x_r, x_n, keep, again


@triton.jit(do_not_specialize=["T", "B", "step_begin", "step_end", "first_tile", "patience"])
def gru_forward_kernel(
    gx, u, bias_n, h_first, leaving, out, gates, carry, middle, z_carry, mask, resets, fresh, drop, rows, stops,
    board, faults, T, B, U, step_begin, step_end, first_tile, patience, s_u_k, s_u_g, s_fresh_t, s_tile,
    BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr, NK: tl.constexpr,
    GROUP: tl.constexpr, SINGLE: tl.constexpr, PERSISTENT: tl.constexpr, STREAM: tl.constexpr,
    EXCHANGE: tl.constexpr, POLLS: tl.constexpr, PTX: tl.constexpr, PHASE: tl.constexpr,
    ACT: tl.constexpr, REC_ACT: tl.constexpr, RESET_AFTER: tl.constexpr, ZERO_MASKED: tl.constexpr,
    REVERSE: tl.constexpr, GATE_Z: tl.constexpr, GATE_R: tl.constexpr, DROPS: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_RESET: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_FRESH: tl.constexpr,
    HAS_BIAS: tl.constexpr, SAVE_GATES: tl.constexpr, SEPARATE: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Run steps step_begin..step_end of one tile; equals `eager.scan_forward`.

    | pointer | shape, contiguous unless noted | dtype |
    |---|---|---|
    | gx | (T,B,3U) | io |
    | u | (U,3U), strides s_u_k, s_u_g | io |
    | bias_n | (U,) | io |
    | h_first | (B,U) the state entering step_begin | io |
    | leaving | (T,B,U) the state entering the next step, at this step's index; `out` unless SEPARATE | io |
    | out | (T,B,U) | io |
    | gates | (4 or 3,T,B,U) z, r, n, h R_n + c_n | io |
    | carry | (B,U) the state before and after, exact | float32 |
    | middle, z_carry | (B,U) r * h, and z between two phases; without RESET_AFTER | io, float32 |
    | mask, resets | (T,B) | uint8 |
    | fresh | (B,U), or (T,B,U) with s_fresh_t = B * U | io |
    | drop | (DROPS,B,U) | io |
    | rows | (B,) the rows in the order in which tiles take them (HAS_ROWS) | int64 |
    | stops | (B,) from which step on nothing happens to a row, see stops.py (HAS_MASK) | int32 |
    | board | (tiles,s_tile) signals or (2,B,U) words, zeros, see exchange.py | int32, int64 |
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
    step_size = B.to(tl.int64) * U
    m_h = o_h < U
    m_bh = m_b[:, None] & m_h[None, :]
    io: tl.constexpr = out.dtype.element_ty
    TAGGED: tl.constexpr = PERSISTENT and EXCHANGE == "tagged"
    p_signals = board
    if PERSISTENT and not TAGGED:
        p_signals = board + i_b * s_tile
    stop = step_end
    if HAS_MASK:
        stop = tl.minimum(step_end, tl.max(tl.load(stops + o_b, mask=m_b, other=0), 0))

    # The weights that stay: NK chunks of (BLOCK_K, BLOCK_H) per gate.
    w_z, w_r, w_n = (), (), ()
    if not STREAM:
        for k in tl.static_range(NK):
            c_z, c_r, c_n = load_weights(u, k, U, o_h, m_h, s_u_k, s_u_g, s_u_g, GATE_Z, GATE_R, BLOCK_K, DOT)
            w_z, w_r, w_n = w_z + (c_z,), w_r + (c_r,), w_n + (c_n,)
    b_c = tl.zeros((BLOCK_H,), tl.float32)
    if HAS_BIAS:
        b_c = tl.load(bias_n + o_h, mask=m_h, other=0.0).to(tl.float32)
    b_h = tl.load(carry + o_bh, mask=m_bh, other=0.0)
    b_y = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    if HAS_MASK:
        if step_begin > 0:
            t_before = T - step_begin if REVERSE else step_begin - 1
            b_y = tl.load(out + t_before.to(tl.int64) * step_size + o_bh, mask=m_bh, other=0.0).to(tl.float32)
    if DROPS > 0:
        d_n = tl.load(drop + (DROPS - 1) * step_size + o_bh, mask=m_bh, other=0.0).to(tl.float32)
    p_h = h_first
    rounds = tl.full((), 0, tl.int32)
    if TAGGED:
        rounds += 1
        publish(board + (rounds & 1) * step_size + o_bh, rounds, b_h, m_bh, io)

    if not STREAM:
        y_z, y_r, y_n, keep_next, again_next = load_step(
            gx, mask, resets, step_begin, T, B, U, o_b, o_h, m_b, m_bh, REVERSE, GATE_Z, GATE_R, HAS_MASK, HAS_RESET
        )
    for step in range(step_begin, stop):
        t = T - 1 - step if REVERSE else step
        o_t = t.to(tl.int64) * step_size
        if STREAM:
            x_z, x_r, x_n, keep, again = load_step(
                gx, mask, resets, step, T, B, U, o_b, o_h, m_b, m_bh, REVERSE, GATE_Z, GATE_R, HAS_MASK, HAS_RESET
            )
        else:
            x_z, x_r, x_n, keep, again = y_z, y_r, y_n, keep_next, again_next
            y_z, y_r, y_n, keep_next, again_next = load_step(
                gx, mask, resets, tl.minimum(step + 1, stop - 1), T, B, U, o_b, o_h, m_b, m_bh, REVERSE, GATE_Z,
                GATE_R, HAS_MASK, HAS_RESET,
            )  # fmt: skip
        if HAS_RESET:
            b_fresh = tl.zeros((BLOCK_B, BLOCK_H), io)
            if HAS_FRESH:
                # What the next step may start from, asked for before the wait.
                t_next = t - 1 if REVERSE else t + 1
                p_fresh = fresh + t_next.to(tl.int64) * s_fresh_t + o_bh
                b_fresh = tl.load(p_fresh, mask=m_bh & (step + 1 < T), other=0.0)
        # Products with the whole state of the tile's rows.
        if PHASE != 2:
            if PERSISTENT:
                patience = await_round(p_signals, rounds, programs, patience, EXCHANGE, POLLS, PTX)
            p_words = board
            if TAGGED:
                p_words = board + (rounds & 1) * step_size
            b_own = b_h.to(io)
            a_z, a_r, a_n, patience = multiply(
                p_h, p_h, p_h, U, U, p_words, p_words, p_words, rounds, patience, b_own, b_own, b_own, drop,
                u, w_z, w_r, w_n, U, o_b, o_h, m_b, m_h, step_size, s_u_k, s_u_g, s_u_g,
                True, RESET_AFTER, True, SINGLE, STREAM, TAGGED, PTX, DROPS, GATE_Z, GATE_R, BLOCK_B, BLOCK_H,
                BLOCK_K, NK, GROUP, DOT, PRECISION,
            )  # fmt: skip
            if PERSISTENT:
                b_h = tl.where(patience > 0, b_h, float("nan"))
            b_z = activate(x_z.to(tl.float32) + a_z, REC_ACT)
            b_r = activate(x_r.to(tl.float32) + a_r, REC_ACT)
        else:
            b_z = tl.load(z_carry + o_bh, mask=m_bh, other=0.0)

        # The candidate; without RESET_AFTER its product needs r of all units first.
        if RESET_AFTER:
            b_g = a_n + b_c[None, :]
            b_n = activate(x_n.to(tl.float32) + b_r * b_g, ACT)
        else:
            b_rh = b_h
            if PHASE != 2:
                b_rh = b_r * b_h
                if DROPS > 0:
                    b_rh = b_rh * d_n
                rounds += 1
                if TAGGED:
                    publish(board + (rounds & 1) * step_size + o_bh, rounds, b_rh, m_bh, io)
                elif not SINGLE:
                    tl.store(middle + o_bh, b_rh.to(io), mask=m_bh)
                if PERSISTENT:
                    announce(p_signals, i_h, rounds, EXCHANGE)
                if SAVE_GATES:
                    tl.store(gates + o_t + o_bh, b_z.to(io), mask=m_bh)
                    tl.store(gates + T * step_size + o_t + o_bh, b_r.to(io), mask=m_bh)
                if PHASE == 1:
                    tl.store(z_carry + o_bh, b_z, mask=m_bh)
                if PERSISTENT:
                    patience = await_round(p_signals, rounds, programs, patience, EXCHANGE, POLLS, PTX)
            if PHASE != 1:
                p_middle = p_h if middle is None else middle
                p_words = board
                if TAGGED:
                    p_words = board + (rounds & 1) * step_size
                b_own = b_rh.to(io)
                _, _, a_n, patience = multiply(
                    p_middle, p_middle, p_middle, U, U, p_words, p_words, p_words, rounds, patience, b_own, b_own,
                    b_own, drop, u, w_z, w_r, w_n, U, o_b, o_h, m_b, m_h, step_size, s_u_k, s_u_g, s_u_g,
                    False, True, True, SINGLE, STREAM, TAGGED, PTX, 0, GATE_Z, GATE_R, BLOCK_B, BLOCK_H, BLOCK_K, NK,
                    GROUP, DOT, PRECISION,
                )  # fmt: skip
                if PERSISTENT:
                    b_h = tl.where(patience > 0, b_h, float("nan"))
                b_n = activate(x_n.to(tl.float32) + a_n, ACT)

        if PHASE != 1:
            b_new = b_z * b_h + (1.0 - b_z) * b_n
            # What lies outside the tensor must stay finite: it meets zeros of the weights in the next product.
            b_new = tl.where(m_bh, b_new, 0.0)
            if HAS_MASK:
                b_h = tl.where(keep[:, None], b_new, b_h)
                b_y = tl.where(keep[:, None], b_new, 0.0 if ZERO_MASKED else b_y)
            else:
                b_h = b_new
                b_y = b_new
            if HAS_RESET:
                # The owner applies the next step's reset, so that readers get the state that enters it.
                b_h = tl.where(again[:, None], b_fresh.to(tl.float32), b_h)
            # What others wait for goes first.
            rounds += 1
            if TAGGED:
                publish(board + (rounds & 1) * step_size + o_bh, rounds, b_h, m_bh, io)
            tl.store(leaving + o_t + o_bh, b_h.to(io), mask=m_bh)
            p_h = leaving + o_t
            if PERSISTENT:
                announce(p_signals, i_h, rounds, EXCHANGE)
            if SEPARATE:
                tl.store(out + o_t + o_bh, b_y.to(io), mask=m_bh)
            if SAVE_GATES:
                tl.store(gates + 2 * T * step_size + o_t + o_bh, b_n.to(io), mask=m_bh)
                if RESET_AFTER:
                    tl.store(gates + o_t + o_bh, b_z.to(io), mask=m_bh)
                    tl.store(gates + T * step_size + o_t + o_bh, b_r.to(io), mask=m_bh)
                    tl.store(gates + 3 * T * step_size + o_t + o_bh, b_g.to(io), mask=m_bh)

    # Steps that are masked to the end in every row of the tile: nobody waits, everything is written all the same.
    if HAS_MASK:
        if PHASE != 1:
            b_y = tl.where(m_bh, 0.0 if ZERO_MASKED else b_y, 0.0)
            for step in range(tl.maximum(stop, step_begin), step_end):
                t = T - 1 - step if REVERSE else step
                o_t = t.to(tl.int64) * step_size
                tl.store(out + o_t + o_bh, b_y.to(io), mask=m_bh)
                tl.store(leaving + o_t + o_bh, b_h.to(io), mask=m_bh)
                if SAVE_GATES:
                    for gate in tl.static_range(4 if RESET_AFTER else 3):
                        p_gate = gates + gate * T * step_size + o_t + o_bh
                        tl.store(p_gate, tl.zeros((BLOCK_B, BLOCK_H), io), mask=m_bh)
    if PHASE != 1:
        tl.store(carry + o_bh, b_h, mask=m_bh)
    if PERSISTENT:
        if patience == 0:
            tl.store(faults + i_b, 1)
