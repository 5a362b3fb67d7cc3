"""The reverse scan: gradients of the pre-activations, with the transposed recurrent weights on the chip.

    da_n = dh (1 - z) f'(n);   da_z = dh (h - n) g'(z);   da_r = da_n (h R_n + c_n) g'(r)
    dh_before = dh z + da_z R_z' + da_r R_r' + (da_n r) R_n'                                 reset_after
    ds = da_n R_n';  da_r = ds h g'(r);  dh_before = dh z + da_z R_z' + da_r R_r' + ds r     otherwise

With a norm (norms.py) the gradients of the sums before it, which one program has of a whole row, take their place in
dh_before: the reset product has RESET_AFTER.

A program owns BLOCK_B rows and BLOCK_H units. Invariant at the top of step t: `b_dh` holds the float32 gradient of the
state leaving t of the owned block; the inputs of t are on their way, and those of the next step are asked for before
the wait. What programs exchange is the pre-activations' gradients, which are results anyway.
Bytes per step and program: reads the gates, the state and BLOCK_B * 3U gradients, writes its part of the gradients.
One body for all schedules and one value `C` of constants, as in forward.py; PHASE 1, 2, 3 are the parts between
exchanges (0: all).
"""

import triton
import triton.language as tl

from .exchange import announce, await_round
from .gates import slope
from .norms import load_norm, load_triple, normalize_back
from .product import load_weights, multiply


@triton.jit
def load_step(d_out, gates, entering, mask, resets, step, T, B, step_size, o_b, o_bh, m_b, m_bh, C: tl.constexpr):
    """Return the inputs of a step: z, r, n, h R_n + c_n, the state entering, the output's gradient; mask and resets."""
    t = step if C.REVERSE else T - 1 - step
    o_t = t.to(tl.int64) * step_size + o_bh
    b_h = tl.load(entering + o_t, mask=m_bh, other=0.0)
    b_r = tl.load(gates + T * step_size + o_t, mask=m_bh, other=0.0)
    # What is not there is never used.
    b_z, b_n, b_g, b_do = b_h, b_h, b_h, b_h
    if C.PHASE <= 1:
        b_z = tl.load(gates + o_t, mask=m_bh, other=0.0)
        b_n = tl.load(gates + 2 * T * step_size + o_t, mask=m_bh, other=0.0)
        if C.RESET_AFTER:
            b_g = tl.load(gates + 3 * T * step_size + o_t, mask=m_bh, other=0.0)
        if d_out is not None:
            b_do = tl.load(d_out + o_t, mask=m_bh, other=0.0)
    keep, again = m_b, m_b
    if mask is not None:
        keep = tl.load(mask + t.to(tl.int64) * B + o_b, mask=m_b, other=0) != 0
    if resets is not None:
        again = tl.load(resets + t.to(tl.int64) * B + o_b, mask=m_b, other=0) != 0
    return b_z, b_r, b_n, b_g, b_h, b_do, keep, again


@triton.jit(do_not_specialize=["T", "B", "step_begin", "step_end", "first_tile", "patience"])
def gru_backward_kernel(
    d_out, gates, entering, u, mask, resets, drop, zoneout, d_gx, d_gh_n, d_fresh, normal, scale, carry, y_carry, rows,
    stops, board, faults, T, B, U, step_begin, step_end, first_tile, patience, s_u_k, s_u_g, clip, C: tl.constexpr,
):  # fmt: skip
    """Run steps step_begin..step_end, counted from the last processed one; equals `eager.continuation.scan_backward`.

    What may be None is not loaded or stored then.

    | pointer | shape, contiguous unless noted | dtype | None |
    |---|---|---|---|
    | d_out | (T,B,U) | io | zeros |
    | gates | (4 or 3,T,B,U) z, r, n, h R_n + c_n | io | |
    | entering | (T,B,U) the state entering each step | io | |
    | u | (U,3U), strides s_u_k, s_u_g | io | |
    | mask | (T,B) | uint8 | all steps count |
    | resets | (T,B) | uint8 | none |
    | drop | (DROPS,B,U) | io | no dropout |
    | zoneout | (T,B,U), or (U,) without ZONE_ROWS | io | new states are taken whole |
    | d_gx | (T,B,3U); with a norm (2,T,B,3U), the second of the sums before it | io | |
    | d_gh_n | (T,B,U) | io | without RESET_AFTER |
    | d_fresh | (T,B,U) | io | not wanted |
    | normal | (T,B,3U) the normalised sums | io | no norm |
    | scale | (3U + T * B,) the norm's scale, then 1 / standard deviation of each row's sums | float32 | no norm |
    | carry | (B,U) gradient of the state | float32 | |
    | y_carry | (B,U) gradient of the output that masked steps repeat | float32 | no mask |
    | rows | (B,) the rows in the order in which tiles take them | int64 | their own |
    | stops | (B,) from which step on nothing happens to a row, see stops.py | int32 | no mask |
    | board | (tiles,TILE) of which the first is the tile's counter, zeros, see exchange.py | int32 | nobody waits |
    | faults | (tiles,) zeros | int32 | nobody waits |
    | clip | a number: the bound of the state's gradient | float32 | none |
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
    o_bg = o_b[:, None] * (3 * U) + o_h[None, :]
    step_size = B.to(tl.int64) * U
    m_h = o_h < U
    m_bh = m_b[:, None] & m_h[None, :]
    io: tl.constexpr = d_gx.dtype.element_ty
    p_counter = board
    if C.WAITS:
        p_counter = board + i_b * C.TILE
    begin = step_begin
    if mask is not None:
        stop = tl.max(tl.load(stops + o_b, mask=m_b, other=0), 0)
        begin = tl.minimum(tl.maximum(step_begin, T - stop), step_end)

    # R' of the owned units: C.NK chunks of (BLOCK_K, BLOCK_H) per gate.
    s_u = (s_u_g, s_u_k, s_u_g)
    w = ()
    if not C.STREAM:
        for k in tl.static_range(C.NK):
            w = w + (load_weights(u, k, U, o_h, m_h, s_u, C),)
    b_dh = tl.load(carry + o_bh, mask=m_bh, other=0.0)
    b_dy = tl.zeros((C.BLOCK_B, C.BLOCK_H), tl.float32)
    if mask is not None:
        b_dy = tl.load(y_carry + o_bh, mask=m_bh, other=0.0)
    if drop is not None:
        d_n = tl.load(drop + (C.DROPS - 1) * step_size + o_bh, mask=m_bh, other=0.0).to(tl.float32)
        d_z = d_n
        d_r = d_n
        if C.DROPS == 3:
            d_z = tl.load(drop + C.GATE_Z * step_size + o_bh, mask=m_bh, other=0.0).to(tl.float32)
            d_r = tl.load(drop + C.GATE_R * step_size + o_bh, mask=m_bh, other=0.0).to(tl.float32)
    rounds = tl.full((), 0, tl.int32)
    p_sums = d_gx
    if C.NORM:
        b_scale = load_triple(scale, U, o_h, m_h, C)
        p_sums = d_gx + T * step_size * 3

    # Steps that are masked to the end in every row of the tile: nobody waits, everything is written all the same.
    if mask is not None:
        if C.PHASE <= 1:
            nothing = tl.zeros((C.BLOCK_B, C.BLOCK_H), io)
            for step in range(step_begin, begin):
                t = step if C.REVERSE else T - 1 - step
                o_t = t.to(tl.int64) * step_size
                for gate in tl.static_range(3):
                    tl.store(d_gx + o_t * 3 + o_bg + gate * U, nothing, mask=m_bh)
                    if C.NORM:
                        tl.store(p_sums + o_t * 3 + o_bg + gate * U, nothing, mask=m_bh)
                if C.RESET_AFTER:
                    tl.store(d_gh_n + o_t + o_bh, nothing, mask=m_bh)
                if d_fresh is not None:
                    tl.store(d_fresh + o_t + o_bh, nothing, mask=m_bh)
                if d_out is not None:
                    b_do = tl.load(d_out + o_t + o_bh, mask=m_bh, other=0.0).to(tl.float32)
                    b_dy = b_do if C.ZERO_MASKED else b_dy + b_do

    if not C.STREAM:
        j_z, j_r, j_n, j_g, j_s, j_o, keep_next, again_next = load_step(
            d_out, gates, entering, mask, resets, tl.minimum(begin, T - 1), T, B, step_size, o_b, o_bh, m_b, m_bh, C
        )
    if C.NORM:
        first = tl.minimum(begin, T - 1)
        normal_next = load_norm(normal, scale, first if C.REVERSE else T - 1 - first, B, U, o_b, o_h, m_b, m_bh, C)
    for step in range(begin, step_end):
        t = step if C.REVERSE else T - 1 - step
        o_t = t.to(tl.int64) * step_size
        if C.STREAM:
            i_z, i_r, i_n, i_g, i_s, i_o, keep, again = load_step(
                d_out, gates, entering, mask, resets, step, T, B, step_size, o_b, o_bh, m_b, m_bh, C
            )
        else:
            i_z, i_r, i_n, i_g, i_s, i_o, keep, again = j_z, j_r, j_n, j_g, j_s, j_o, keep_next, again_next
            step_next = tl.minimum(step + 1, step_end - 1)
            j_z, j_r, j_n, j_g, j_s, j_o, keep_next, again_next = load_step(
                d_out, gates, entering, mask, resets, step_next, T, B, step_size, o_b, o_bh, m_b, m_bh, C
            )
        if C.NORM:
            b_normal = normal_next
            t_next = step_next if C.REVERSE else T - 1 - step_next
            normal_next = load_norm(normal, scale, t_next, B, U, o_b, o_h, m_b, m_bh, C)
        b_h = i_s.to(tl.float32)
        b_r = i_r.to(tl.float32)
        kept = keep[:, None]
        b_takes = b_h
        if zoneout is not None:
            if C.ZONE_ROWS:
                p_takes = zoneout + t.to(tl.int64) * step_size + o_bh
            else:
                p_takes = zoneout + tl.broadcast_to(o_h[None, :], (C.BLOCK_B, C.BLOCK_H))
            b_takes = tl.load(p_takes, mask=m_bh, other=0.0).to(tl.float32)

        # Gradients of the owned pre-activations.
        p_g = d_gx + o_t * 3 + o_bg
        rounds += 1
        g_z, g_r, g_n, g_s = b_h, b_h, b_h, b_h
        if C.PHASE <= 1:
            b_z = i_z.to(tl.float32)
            b_n = i_n.to(tl.float32)
            if d_out is not None:
                b_do = i_o.to(tl.float32)
                if mask is not None:
                    b_dy = b_do if C.ZERO_MASKED else b_dy + b_do
                    b_dh = tl.where(kept, b_dh + b_dy, b_dh)
                    b_dy = tl.where(kept, 0.0, b_dy)
                else:
                    b_dh += b_do
            g_n = tl.where(kept, b_dh * (1.0 - b_z) * slope(b_n, C.ACT), 0.0)
            g_z = tl.where(kept, b_dh * (b_h - b_n) * slope(b_z, C.REC_ACT), 0.0)
            if zoneout is not None:
                g_n *= b_takes
                g_z *= b_takes
                b_z = 1.0 - b_takes * (1.0 - b_z)
            if C.RESET_AFTER:
                g_r = tl.where(kept, g_n * i_g.to(tl.float32) * slope(b_r, C.REC_ACT), 0.0)
                g_s = tl.where(kept, g_n * b_r, 0.0)
            tl.store(p_g + C.GATE_Z * U, g_z.to(io), mask=m_bh)
            if C.RESET_AFTER:
                tl.store(p_g + C.GATE_R * U, g_r.to(io), mask=m_bh)
                tl.store(d_gh_n + o_t + o_bh, g_s.to(io), mask=m_bh)
            else:
                tl.store(p_g + 2 * U, g_n.to(io), mask=m_bh)
            b_dh = tl.where(kept, b_dh * b_z, b_dh)
        announce(p_counter, C)
        if C.RESET_AFTER:
            # Nobody else reads this one.
            if C.PHASE <= 1:
                tl.store(p_g + 2 * U, g_n.to(io), mask=m_bh)
        patience = await_round(p_counter, rounds, programs, patience, C)

        # Without RESET_AFTER the reset gate's gradient needs da_n of all units first.
        p_z = d_gx + o_t * 3 + C.GATE_Z * U
        p_r = d_gx + o_t * 3 + C.GATE_R * U
        p_n = d_gx + o_t * 3 + 2 * U
        if not C.RESET_AFTER:
            if C.PHASE == 0 or C.PHASE == 2:
                b_own = g_n.to(io)
                _, _, a_s = multiply(
                    (p_z, p_r, p_n), (3 * U, 3 * U, 3 * U), (b_own, b_own, b_own), None, u, w, s_u,
                    U, o_b, o_h, m_b, m_h, step_size, False, True, False, C,
                )  # fmt: skip
                if drop is not None:
                    a_s = a_s * d_n
                g_r = tl.where(kept, a_s * b_h * slope(b_r, C.REC_ACT), 0.0)
                rounds += 1
                tl.store(p_g + C.GATE_R * U, g_r.to(io), mask=m_bh)
                b_dh += tl.where(kept, a_s * b_r, 0.0)
            announce(p_counter, C)
            patience = await_round(p_counter, rounds, programs, patience, C)

        # Through the recurrent products to the state before.
        if C.PHASE == 0 or C.PHASE == 3:
            p_s = p_n
            if C.RESET_AFTER:
                p_s = d_gh_n + o_t
            if C.NORM:
                g_z, g_r, g_s = normalize_back(g_z, g_r, g_s, b_normal, b_scale, kept, U, C)
                tl.store(p_sums + o_t * 3 + o_bg + C.GATE_Z * U, g_z.to(io), mask=m_bh)
                tl.store(p_sums + o_t * 3 + o_bg + C.GATE_R * U, g_r.to(io), mask=m_bh)
                tl.store(p_sums + o_t * 3 + o_bg + 2 * U, g_s.to(io), mask=m_bh)
            own = (g_z.to(io), g_r.to(io), g_s.to(io))
            a_z, a_r, a_n = multiply(
                (p_z, p_r, p_s), (3 * U, 3 * U, U), own, None, u, w, s_u, U, o_b, o_h, m_b, m_h, step_size,
                True, C.RESET_AFTER, False, C,
            )  # fmt: skip
            if drop is not None:
                a_z = a_z * d_z
                a_r = a_r * d_r
                a_n = a_n * d_n
            b_dh += a_z + a_r + a_n
            b_dh = tl.where(m_bh, b_dh, 0.0)
            if clip is not None:
                # A NaN stays one.
                b_bound = tl.where(b_dh > clip, clip, tl.where(b_dh < -clip, -clip, b_dh))
                b_dh = tl.where(kept, b_bound, b_dh)
            if C.WAITS:
                b_dh = tl.where(patience > 0, b_dh, float("nan"))
            if resets is not None:
                if d_fresh is not None:
                    tl.store(d_fresh + o_t + o_bh, tl.where(again[:, None], b_dh, 0.0).to(io), mask=m_bh)
                b_dh = tl.where(again[:, None], 0.0, b_dh)

    tl.store(carry + o_bh, b_dh, mask=m_bh)
    if mask is not None:
        if C.PHASE <= 1:
            tl.store(y_carry + o_bh, b_dy, mask=m_bh)
    if C.WAITS:
        if patience == 0:
            tl.store(faults + i_b, 1)
