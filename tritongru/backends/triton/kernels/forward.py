"""The forward scan: the recurrent weights stay on the chip for the whole sequence.

    z, r = g(gx_z + h R_z), g(gx_r + h R_r);   n = f(gx_n + r * (h R_n + c_n))  or  f(gx_n + (r * h) R_n)
    h' = z * h + (1 - z) * n

With a norm (norms.py) the sums h R, of "joint" gx + h R, are normalised first; one program then holds a whole row.

A program owns BLOCK_B rows and BLOCK_H units with all three gates of those units. Invariant at the top of step t: `b_h`
holds the float32 state entering t of the owned block, and the same state of all units is stored at `p_h`. The inputs of
step t are on their way, and those of the next step are asked for before the wait. Bytes per step and program: reads 3
gx + BLOCK_B * U of the state, writes the state, the output and the saved gates. One body for all schedules: one program
per tile (SINGLE: the state never leaves the registers), several with an exchange per step (WAITS), or one launch per
step and PHASE (0 both, 1 up to the middle exchange, 2 after it). With STREAM the weights are read at every step, else
once. A launch has the batch tiles from `first_tile` on (None: from 0). All that is known before a launch is one value,
`C`: see constants.py.
"""

import triton
import triton.language as tl

from .exchange import announce, await_round
from .gates import activate
from .norms import load_triple, normalize
from .product import load_weights, multiply


@triton.jit
def load_step(gx, mask, resets, step, T, B, U, o_b, o_h, m_b, m_bh, C: tl.constexpr):
    """Return the inputs of a step: the owned block of gx, gates z, r, n; the mask; the resets of the step after it."""
    t = T - 1 - step if C.REVERSE else step
    p = gx + (t.to(tl.int64) * B + o_b[:, None]) * (3 * U) + o_h[None, :]
    x_z = tl.load(p + C.GATE_Z * U, mask=m_bh, other=0.0)
    x_r = tl.load(p + C.GATE_R * U, mask=m_bh, other=0.0)
    x_n = tl.load(p + 2 * U, mask=m_bh, other=0.0)
    keep, again = m_b, m_b
    if mask is not None:
        keep = tl.load(mask + t.to(tl.int64) * B + o_b, mask=m_b, other=0) != 0
    if resets is not None:
        t_next = t - 1 if C.REVERSE else t + 1
        again = tl.load(resets + t_next.to(tl.int64) * B + o_b, mask=m_b & (step + 1 < T), other=0) != 0
    return (x_z, x_r, x_n), keep, again


@triton.jit(do_not_specialize=["T", "B", "step_begin", "step_end", "first_tile", "patience"])
def gru_forward_kernel(
    gx, u, late, h_first, leaving, out, gates, carry, middle, z_carry, mask, resets, fresh, drop, zoneout, rows,
    stops, board, faults, T, B, U, step_begin, step_end, first_tile, patience, s_u_k, s_u_g, s_fresh_t, C: tl.constexpr,
):  # fmt: skip
    """Run steps step_begin..step_end of one tile; equals `eager.continuation.scan_forward`.

    What may be None is not loaded or stored then. Without mask and resets `leaving` is `out`.

    | pointer | shape, contiguous unless noted | dtype | None |
    |---|---|---|---|
    | gx | (T,B,3U) | io | |
    | u | (U,3U), strides s_u_k, s_u_g | io | |
    | late | (U,) c_n; with a norm (4U,), its scale after it; JOINT (7U,), then b, all but c_n | io | zeros |
    | h_first | (B,U) the state entering step_begin | io | |
    | leaving | (T,B,U) the state entering the next step, at this step's index | io | |
    | out | (T,B,U) | io | |
    | gates | (4 or 3,T,B,U) z, r, n, h R_n + c_n | io | not wanted |
    | carry | (B,U) the state before and after, exact | float32 | |
    | middle | (B,U) r * h | io | RESET_AFTER, SINGLE |
    | z_carry | (B,U) z between two phases | float32 | one phase |
    | mask | (T,B) | uint8 | all steps count |
    | resets | (T,B) | uint8 | none |
    | fresh | (B,U), or (T,B,U) with s_fresh_t = B * U: where resets start from | io | zeros |
    | drop | (DROPS,B,U) | io | no dropout |
    | zoneout | (T,B,U), or (U,) without ZONE_ROWS: how much of its new state a unit takes | io | all of it |
    | rows | (B,) the rows in the order in which tiles take them | int64 | their own |
    | stops | (B,) from which step on nothing happens to a row, see stops.py | int32 | no mask |
    | board | (tiles,TILE) of which the first is the tile's counter, zeros, see exchange.py | int32 | nobody waits |
    | faults | (tiles,) zeros | int32 | nobody waits |
    """
    i_h, i_b = tl.program_id(0), tl.program_id(1)
    if first_tile is not None:
        i_b += first_tile
    programs = tl.num_programs(0)
    o_b = i_b * C.BLOCK_B + tl.arange(0, C.BLOCK_B).to(tl.int64)
    m_b = o_b < B
    if rows is not None:
        o_b = tl.load(rows + o_b, mask=m_b, other=0)
    o_h = i_h * C.BLOCK_H + tl.arange(0, C.BLOCK_H)
    o_bh = o_b[:, None] * U + o_h[None, :]
    step_size = B.to(tl.int64) * U
    m_h = o_h < U
    m_bh = m_b[:, None] & m_h[None, :]
    io: tl.constexpr = out.dtype.element_ty
    SEPARATE: tl.constexpr = mask is not None or resets is not None
    p_counter = board
    if C.WAITS:
        p_counter = board + i_b * C.TILE
    stop = step_end
    if mask is not None:
        stop = tl.minimum(step_end, tl.max(tl.load(stops + o_b, mask=m_b, other=0), 0))

    # The weights that stay: C.NK chunks of (BLOCK_K, BLOCK_H) per gate.
    s_u = (s_u_k, s_u_g, s_u_g)
    w = ()
    if not C.STREAM:
        for k in tl.static_range(C.NK):
            w = w + (load_weights(u, k, U, o_h, m_h, s_u, C),)
    b_c = tl.zeros((C.BLOCK_H,), tl.float32)
    if late is not None:
        b_c = tl.load(late + o_h, mask=m_h, other=0.0).to(tl.float32)
    if C.NORM:
        scale = load_triple(late + U, U, o_h, m_h, C)
        if C.JOINT:
            v_z, v_r, v_n = load_triple(late + 4 * U, U, o_h, m_h, C)
            outside = (v_z[None, :], v_r[None, :], v_n[None, :])
    b_h = tl.load(carry + o_bh, mask=m_bh, other=0.0)
    b_y = tl.zeros((C.BLOCK_B, C.BLOCK_H), tl.float32)
    if mask is not None:
        if step_begin > 0:
            t_before = T - step_begin if C.REVERSE else step_begin - 1
            b_y = tl.load(out + t_before.to(tl.int64) * step_size + o_bh, mask=m_bh, other=0.0).to(tl.float32)
    if drop is not None:
        d_n = tl.load(drop + (C.DROPS - 1) * step_size + o_bh, mask=m_bh, other=0.0).to(tl.float32)
    p_h = h_first
    rounds = tl.full((), 0, tl.int32)

    if not C.STREAM:
        x_next, keep_next, again_next = load_step(gx, mask, resets, step_begin, T, B, U, o_b, o_h, m_b, m_bh, C)
    for step in range(step_begin, stop):
        t = T - 1 - step if C.REVERSE else step
        o_t = t.to(tl.int64) * step_size
        if C.STREAM:
            x, keep, again = load_step(gx, mask, resets, step, T, B, U, o_b, o_h, m_b, m_bh, C)
        else:
            x, keep, again = x_next, keep_next, again_next
            x_next, keep_next, again_next = load_step(
                gx, mask, resets, tl.minimum(step + 1, stop - 1), T, B, U, o_b, o_h, m_b, m_bh, C
            )
        if resets is not None:
            b_fresh = tl.zeros((C.BLOCK_B, C.BLOCK_H), io)
            if fresh is not None:
                # What the next step may start from, asked for before the wait.
                t_next = t - 1 if C.REVERSE else t + 1
                p_fresh = fresh + t_next.to(tl.int64) * s_fresh_t + o_bh
                b_fresh = tl.load(p_fresh, mask=m_bh & (step + 1 < T), other=0.0)
        b_takes = b_h
        if zoneout is not None:
            if C.ZONE_ROWS:
                p_takes = zoneout + t.to(tl.int64) * step_size + o_bh
            else:
                p_takes = zoneout + tl.broadcast_to(o_h[None, :], (C.BLOCK_B, C.BLOCK_H))
            b_takes = tl.load(p_takes, mask=m_bh, other=0.0).to(tl.float32)
        # Products with the whole state of the tile's rows.
        if C.PHASE != 2:
            patience = await_round(p_counter, rounds, programs, patience, C)
            b_own = b_h.to(io)
            a_z, a_r, a_n = multiply(
                (p_h, p_h, p_h), (U, U, U), (b_own, b_own, b_own), drop, u, w, s_u,
                U, o_b, o_h, m_b, m_h, step_size, True, C.RESET_AFTER, True, C,
            )  # fmt: skip
            if C.WAITS:
                b_h = tl.where(patience > 0, b_h, float("nan"))
            if C.NORM:
                if C.JOINT:
                    a_z += x[0].to(tl.float32)
                    a_r += x[1].to(tl.float32)
                    a_n += x[2].to(tl.float32)
                    x = outside
                a_z, a_r, a_n = normalize(a_z, a_r, a_n, scale, m_h, U, C)
            b_z = activate(x[0].to(tl.float32) + a_z, C.REC_ACT)
            b_r = activate(x[1].to(tl.float32) + a_r, C.REC_ACT)
        else:
            b_z = tl.load(z_carry + o_bh, mask=m_bh, other=0.0)

        # The candidate; without RESET_AFTER its product needs r of all units first.
        if C.RESET_AFTER:
            b_g = a_n + b_c[None, :]
            b_n = activate(x[2].to(tl.float32) + b_r * b_g, C.ACT)
        else:
            b_rh = b_h
            if C.PHASE != 2:
                b_rh = b_r * b_h
                if drop is not None:
                    b_rh = b_rh * d_n
                rounds += 1
                if not C.SINGLE:
                    tl.store(middle + o_bh, b_rh.to(io), mask=m_bh)
                announce(p_counter, C)
                if gates is not None:
                    tl.store(gates + o_t + o_bh, b_z.to(io), mask=m_bh)
                    tl.store(gates + T * step_size + o_t + o_bh, b_r.to(io), mask=m_bh)
                if C.PHASE == 1:
                    tl.store(z_carry + o_bh, b_z, mask=m_bh)
                patience = await_round(p_counter, rounds, programs, patience, C)
            if C.PHASE != 1:
                p_rows = p_h if middle is None else middle
                b_own = b_rh.to(io)
                _, _, a_n = multiply(
                    (p_rows, p_rows, p_rows), (U, U, U), (b_own, b_own, b_own), None, u, w, s_u,
                    U, o_b, o_h, m_b, m_h, step_size, False, True, True, C,
                )  # fmt: skip
                if C.WAITS:
                    b_h = tl.where(patience > 0, b_h, float("nan"))
                b_n = activate(x[2].to(tl.float32) + a_n, C.ACT)

        if C.PHASE != 1:
            b_stays = b_z
            if zoneout is not None:
                b_stays = 1.0 - b_takes * (1.0 - b_z)
            b_new = b_stays * b_h + (1.0 - b_stays) * b_n
            # What lies outside the tensor must stay finite: it meets zeros of the weights in the next product.
            b_new = tl.where(m_bh, b_new, 0.0)
            if mask is not None:
                b_h = tl.where(keep[:, None], b_new, b_h)
                b_y = tl.where(keep[:, None], b_new, 0.0 if C.ZERO_MASKED else b_y)
            else:
                b_h = b_new
                b_y = b_new
            if resets is not None:
                # The owner applies the next step's reset, so that readers get the state that enters it.
                b_h = tl.where(again[:, None], b_fresh.to(tl.float32), b_h)
            # What others wait for goes first.
            rounds += 1
            tl.store(leaving + o_t + o_bh, b_h.to(io), mask=m_bh)
            p_h = leaving + o_t
            announce(p_counter, C)
            if SEPARATE:
                tl.store(out + o_t + o_bh, b_y.to(io), mask=m_bh)
            if gates is not None:
                tl.store(gates + 2 * T * step_size + o_t + o_bh, b_n.to(io), mask=m_bh)
                if C.RESET_AFTER:
                    tl.store(gates + o_t + o_bh, b_z.to(io), mask=m_bh)
                    tl.store(gates + T * step_size + o_t + o_bh, b_r.to(io), mask=m_bh)
                    tl.store(gates + 3 * T * step_size + o_t + o_bh, b_g.to(io), mask=m_bh)

    # Steps that are masked to the end in every row of the tile: nobody waits, everything is written all the same.
    if mask is not None:
        if C.PHASE != 1:
            b_y = tl.where(m_bh, 0.0 if C.ZERO_MASKED else b_y, 0.0)
            for step in range(tl.maximum(stop, step_begin), step_end):
                t = T - 1 - step if C.REVERSE else step
                o_t = t.to(tl.int64) * step_size
                tl.store(out + o_t + o_bh, b_y.to(io), mask=m_bh)
                tl.store(leaving + o_t + o_bh, b_h.to(io), mask=m_bh)
                if gates is not None:
                    for gate in tl.static_range(4 if C.RESET_AFTER else 3):
                        p_gate = gates + gate * T * step_size + o_t + o_bh
                        tl.store(p_gate, tl.zeros((C.BLOCK_B, C.BLOCK_H), io), mask=m_bh)
    if C.PHASE != 1:
        tl.store(carry + o_bh, b_h, mask=m_bh)
    if C.WAITS:
        if patience == 0:
            tl.store(faults + i_b, 1)
