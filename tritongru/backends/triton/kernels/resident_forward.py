"""The forward scan with the recurrent weights in registers, beside `forward.gru_forward_kernel`.

    z, r = g(gx_z + h R_z), g(gx_r + h R_r);   n = f(gx_n + r * (h R_n + c_n))  or  f(gx_n + (r * h) R_n)
    h' = z * h + (1 - z) * n

A program owns BLOCK_B rows and BLOCK_H units. Invariant at the top of step t: `h` holds the float32 state entering t of
the owned block, and what all programs multiply of it is handed on: published at `p_read` (marked), or stored in the
program's shared memory (none). The owner multiplies by the dropout masks and applies the next step's reset before it
hands on, so readers take what they multiply.
Rows beyond the last are those of the last row once more: what they compute is never stored.
Bytes per step and program: 3 gx and BLOCK_B * U of the state in, the state, the output and the saved gates out.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .. import tilings
from .resident_exchange import (
    FETCHED_AHEAD,
    fetch,
    multiply_handed,
    places_of,
    publish,
    publish_all,
    spread,
    stores_of,
    units_of,
)
from .resident_gates import activate
from .resident_layout import EACH
from .resident_product import allocate_kept, allocate_meeting, bring, keep, load_gates, meet, multiply_kept
from .resident_steps import load_drops, load_owned, load_step, time_of, times_masks

_EACH, _MARKED = gl.constexpr(EACH), gl.constexpr(tilings.MARKED)


@gluon.jit(do_not_specialize=["T", "B", "first_tile", "patience"])
def resident_forward_kernel(
    gx, u, bias_n, states, out, gates, carry, given, words, passed, mask, resets, fresh, drop, rows, stops, faults,
    directions, T, B, first_tile, patience, s_fresh_t, C: gl.constexpr,
):  # fmt: skip
    """Run all steps of one tile of one member.

    | pointer, contiguous, of M members | shape of one | dtype |
    |---|---|---|
    | gx | (T,B,3U) | io |
    | u | (U,3U), or the transpose of (3U,U) unless KEYS_FIRST | io |
    | bias_n | (U,) | io |
    | states | (T+1,B,U) entering each step and the last one, the other way round if reversed (SEPARATE) | io |
    | out | (T,B,U); these or, SEPARATE, the states marks where they are what is multiplied (DIRECT) | io |
    | gates | (4 or 3,T,B,U) z, r, n, h R_n + c_n | io |
    | carry | (B,U) the state before and after, exact | float32 |
    | given | (VALUES,B,WIDTH) marks, for what is multiplied in the first step | io |
    | words | (T,VALUES,B,WIDTH) marks, for that of the others, unless states or outputs are it (DIRECT) | io |
    | passed | (T,B,WIDTH) marks, for r * h (not RESET_AFTER) | io |
    | mask, resets | (T,B) | uint8 |
    | fresh | (B,U), or (T,B,U) with s_fresh_t = B * U | io |
    | drop | (DROPS,B,U) | io |
    | rows, stops | (B,) as for `gru_forward_kernel`, the same for all members | int64, int32 |
    | faults | (tiles,) zeros | int32 |
    | directions | (M,) whether reversed (REVERSE == EACH), not of each member | uint8 |

    Without an exchange `given`, `words`, `passed` and `faults` are None.
    """
    io: gl.constexpr = out.dtype.element_ty
    MARKED: gl.constexpr = C.EXCHANGE == _MARKED
    i_h, i_b = gl.program_id(0), gl.program_id(1)
    tiles = gl.num_programs(1)
    if first_tile is not None:
        i_b += first_tile
        tiles = (B + C.BLOCK_B - 1) // C.BLOCK_B
    step_size = B.to(gl.int64) * C.U
    part_size = B.to(gl.int64) * C.WIDTH
    reverse = i_h < 0
    if C.MEMBERS:
        i_m = gl.program_id(2)
        member = i_m.to(gl.int64)
        if C.REVERSE == _EACH:
            reverse = gl.load(directions + i_m) != 0
        gx += member * T * (3 * step_size)
        u += member * (3 * C.U * C.U)
        out += member * T * step_size
        carry += member * step_size
        if C.HAS_MASK:
            mask += member * T * B
        if C.HAS_RESET:
            resets += member * T * B
        if C.HAS_BIAS:
            bias_n += member * C.U
        if C.SEPARATE:
            states += member * (T + 1) * step_size
        if C.SAVE_GATES:
            gates += member * (4 if C.RESET_AFTER else 3) * T * step_size
        if C.HAS_FRESH:
            fresh += member * gl.where(s_fresh_t > 0, T * step_size, step_size)
        if C.DROPS > 0:
            drop += member * C.DROPS * step_size
        if MARKED:
            faults += member * tiles
            given += member * C.VALUES * part_size
            if not C.DIRECT:
                words += member * T * C.VALUES * part_size
            if not C.RESET_AFTER:
                passed += member * T * part_size

    # The owned elements, and where they lie in each array.
    o_row = gl.minimum(i_b * C.BLOCK_B + gl.arange(0, C.BLOCK_B, gl.SliceLayout(1, C.own)), B - 1)
    m_row = i_b * C.BLOCK_B + gl.arange(0, C.BLOCK_B, gl.SliceLayout(1, C.own)) < B
    o_b = o_row
    if C.HAS_ROWS:
        o_b = gl.load(rows + o_row).to(gl.int32)
    o_h = i_h * C.BLOCK_H + gl.arange(0, C.BLOCK_H, gl.SliceLayout(0, C.own))
    m_h = (o_h < C.U)[None, :]
    m = m_row[:, None] & m_h
    o_bh = o_b[:, None] * C.U + o_h[None, :]
    o_bg = o_b[:, None] * (3 * C.U) + o_h[None, :]
    first = T * 0
    stop = T
    if C.HAS_MASK:
        stop = gl.minimum(T, gl.max(gl.load(stops + o_b), 0))

    # The weights that stay, and the places of the state in the product.
    if C.KEYS_FIRST:
        w_z, w_r, w_n = load_gates(u, i_h * C.BLOCK_H, 3 * C.U, 1, C.U, C)
    else:
        w_z, w_r, w_n = load_gates(u, i_h * C.BLOCK_H, 1, C.U, C.U * C.U, C)
    zero = gl.zeros([C.WARPS_K, C.BLOCK_B, C.BLOCK_H], gl.float32, C.mma)
    SHARED: gl.constexpr = (C.SHARED_Z, C.SHARED_R, C.SHARED_N)
    weights, nothing = (w_z, w_r), (zero, zero)
    if C.RESET_AFTER:
        weights, nothing = (w_z, w_r, w_n), (zero, zero, zero)
    p_sum = allocate_meeting(3, C)
    fault = faults
    if MARKED:
        place, last = places_of(rows, i_b, B, C.WIDTH, C)
        k_all = units_of(C)
        own_word = o_b[:, None] * C.WIDTH + o_h[None, :]
        stores = stores_of(m_row, o_h, io, C)
        fault = faults + i_b
    else:
        kept = allocate_kept(io, C.VALUES, C)
        if not C.RESET_AFTER:
            kept_s = allocate_kept(io, 1, C)

    c_n = gl.zeros([C.BLOCK_H], gl.float32, gl.SliceLayout(0, C.own))
    if C.HAS_BIAS:
        c_n = gl.load(bias_n + o_h, mask=o_h < C.U, other=0.0).to(gl.float32)
    c_n = c_n[None, :]
    # Each row by its owner alone, who writes it in the end.
    h = gl.load(carry + o_bh, mask=m, other=0.0)
    clear = gl.zeros([C.BLOCK_B, C.BLOCK_H], gl.float32, C.own)
    y = clear
    drops = load_drops(drop, step_size, o_bh, m_h, C)

    leaving = out
    if C.SEPARATE:
        # At the index of its step, but one further on where time runs forward.
        leaving = states + (1 - time_of(first, first + 2, reverse, C)).to(gl.int64) * step_size

    # The first state is handed on.
    p_read, p_words = given, words
    if MARKED:
        if C.DIRECT:
            p_words = leaving
        publish_all(given + own_word, part_size, times_masks(h, drops[: C.VALUES]), stores, io, C)
    else:
        keep(times_masks(h, drops[: C.VALUES]), kept, io)

    y_z, y_r, y_n, valid_next, again_next = load_step(
        gx, mask, resets, first, T, B, step_size, o_b, o_bg, m_h, reverse, C
    )
    for step in range(stop):
        t = time_of(step, T, reverse, C)
        o_t = t.to(gl.int64) * step_size
        if MARKED:
            later = time_of(gl.minimum(step + FETCHED_AHEAD, T - 1), T, reverse, C).to(gl.int64) * part_size
            p_later = o_b * C.WIDTH + i_h * C.BLOCK_H
            for value in gl.static_range(C.VALUES):
                fetch(p_words + later * C.VALUES + value * part_size + p_later)
            if not C.RESET_AFTER:
                fetch(passed + later + p_later)
        x_z, x_r, x_n, valid, again = y_z, y_r, y_n, valid_next, again_next
        y_z, y_r, y_n, valid_next, again_next = load_step(
            gx, mask, resets, gl.minimum(step + 1, T - 1), T, B, step_size, o_b, o_bg, m_h, reverse, C
        )
        if C.HAS_RESET:
            b_fresh = clear
            if C.HAS_FRESH:
                # What the next step may start from, asked for before the wait.
                t_next = time_of(gl.minimum(step + 1, T - 1), T, reverse, C)
                b_fresh = load_owned(fresh + t_next.to(gl.int64) * s_fresh_t + o_bh, m_h, C)

        # The whole state of the tile's rows, times the weights.
        if MARKED:
            sums = multiply_handed(
                spread(p_read + place, part_size, C.VALUES), spread(p_read + last, part_size, C.VALUES), weights,
                nothing, fault, patience, k_all, io, C.waits_first, SHARED, C,
            )  # fmt: skip
        else:
            sums = multiply_kept(kept, weights, nothing, SHARED, C)
        bring(p_sum, sums, C)
        b_z = activate(x_z.to(gl.float32) + meet(p_sum[0], sums[0], C), C.REC_ACT, C.APPROXIMATE)
        b_r = activate(x_r.to(gl.float32) + meet(p_sum[1], sums[1], C), C.REC_ACT, C.APPROXIMATE)

        # The candidate; without RESET_AFTER its product needs r of all units first.
        b_g = h
        if C.RESET_AFTER:
            b_g = meet(p_sum[2], sums[2], C) + c_n
            b_n = activate(x_n.to(gl.float32) + b_r * b_g, C.ACT, C.APPROXIMATE)
        else:
            b_s = b_r * h
            if C.DROPS > 0:
                b_s = b_s * drops[C.DROPS - 1]
            if MARKED:
                p_s = passed + t.to(gl.int64) * part_size
                publish(p_s + own_word, b_s, stores, io, C)
                sums = multiply_handed(
                    (p_s + place,), (p_s + last,), (w_n,), (zero,), fault, patience, k_all, io, C.waits_second,
                    (C.SHARED_N,), C,
                )  # fmt: skip
            else:
                keep((b_s,), kept_s, io)
                sums = multiply_kept(kept_s, (w_n,), (zero,), (C.SHARED_N,), C)
            bring((p_sum[2],), sums, C)
            b_n = activate(x_n.to(gl.float32) + meet(p_sum[2], sums[0], C), C.ACT, C.APPROXIMATE)

        b_new = b_z * h + (1.0 - b_z) * b_n
        if not C.WHOLE:
            # What lies outside must stay finite: it meets zeros of the weights in the next product.
            b_new = gl.where(m_h, b_new, 0.0)
        if C.HAS_MASK:
            h = gl.where((valid != 0)[:, None], b_new, h)
            y = gl.where((valid != 0)[:, None], b_new, 0.0 if C.ZERO_MASKED else y)
        else:
            h = b_new
            y = b_new
        if C.HAS_RESET:
            h = gl.where((again != 0)[:, None] & (step + 1 < T), b_fresh.to(gl.float32), h)

        # What others wait for goes first.
        if MARKED:
            p_read = p_words + t.to(gl.int64) * (C.VALUES * part_size)
            publish_all(p_read + own_word, part_size, times_masks(h, drops[: C.VALUES]), stores, io, C)
        else:
            keep(times_masks(h, drops[: C.VALUES]), kept, io)
        if not C.DIRECT:
            gl.store(leaving + o_t + o_bh, h.to(io), mask=m)
        if C.SEPARATE:
            gl.store(out + o_t + o_bh, y.to(io), mask=m)
        if C.SAVE_GATES:
            p_gate = gates + o_t + o_bh
            gl.store(p_gate, b_z.to(io), mask=m)
            gl.store(p_gate + T * step_size, b_r.to(io), mask=m)
            gl.store(p_gate + 2 * T * step_size, b_n.to(io), mask=m)
            if C.RESET_AFTER:
                gl.store(p_gate + 3 * T * step_size, b_g.to(io), mask=m)

    # Steps that are masked to the end in every row of the tile: nobody waits, everything is written all the same.
    if C.HAS_MASK:
        if C.ZERO_MASKED:
            y = clear
        for step in range(stop, T):
            o_t = time_of(step, T, reverse, C).to(gl.int64) * step_size
            gl.store(out + o_t + o_bh, y.to(io), mask=m)
            gl.store(leaving + o_t + o_bh, h.to(io), mask=m)
            if C.SAVE_GATES:
                for gate in gl.static_range(4 if C.RESET_AFTER else 3):
                    gl.store(gates + gate * T * step_size + o_t + o_bh, clear.to(io), mask=m)
    gl.store(carry + o_bh, h, mask=m)
