"""The reverse scan with R' of the owned units in registers, beside `backward.gru_backward_kernel`.

    da_n = dh (1 - z) f'(n);   da_z = dh (h - n) g'(z);   da_r = da_n (h R_n + c_n) g'(r)
    dh_before = dh z + da_z R_z' + da_r R_r' + (da_n r) R_n'                                 reset_after
    ds = da_n R_n';  da_r = ds h g'(r);  dh_before = dh z + da_z R_z' + da_r R_r' + ds r     otherwise

A program owns BLOCK_B rows and BLOCK_H units. Invariant at the top of step t: `dh` holds the float32 gradient of the
state leaving t of the owned block. What programs exchange is the pre-activations' gradients, which are results anyway:
they are asked for where they are stored, or in words beside them where rows are not aligned (marked), or lie in the
program's own shared memory (none). Without dropout masks of their own one sum takes all products, so that a third of
the forward scan's values meet. Bytes per step and program: the gates and the state of the block and BLOCK_B * 3U
gradients in, 4 gradients out.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .. import tilings
from .resident_exchange import FETCHED_AHEAD, fetch, multiply_handed, places_of, publish, stores_of, units_of
from .resident_gates import slope
from .resident_layout import EACH
from .resident_product import allocate_kept, allocate_meeting, bring, keep, load_gates, meet, multiply_kept
from .resident_steps import load_back_step, load_drops, load_owned, time_of

_EACH, _MARKED = gl.constexpr(EACH), gl.constexpr(tilings.MARKED)


@gluon.jit(do_not_specialize=["T", "B", "first_tile", "patience"])
def resident_backward_kernel(
    d_out, gates, entering, u, mask, resets, drop, d_gx, d_gh_n, d_fresh, carry, y_carry, words, rows, stops, faults,
    directions, T, B, first_tile, patience, C: gl.constexpr,
):  # fmt: skip
    """Run all steps of one tile of one member, from the last processed one.

    | pointer, contiguous, of M members | shape of one | dtype |
    |---|---|---|
    | d_out | (T,B,U) (HAS_OUT) | io |
    | gates | (4 or 3,T,B,U) z, r, n, h R_n + c_n | io |
    | entering | (T,B,U) the state entering each step | io |
    | u | (U,3U), or the transpose of (3U,U) unless KEYS_FIRST | io |
    | mask, resets | (T,B) | uint8 |
    | drop | (DROPS,B,U) | io |
    | d_gx, d_gh_n | (T,B,3U), (T,B,U) (RESET_AFTER); marks, where they are what is multiplied (DIRECT) | io |
    | d_fresh | (T,B,U) (FRESH_GRADIENT) | io |
    | carry, y_carry | (B,U) gradient of the state, and of the output that masked steps repeat (HAS_MASK) | float32 |
    | rows, stops | (B,) as for `gru_backward_kernel`, the same for all members | int64, int32 |
    | words | (T,3,B,WIDTH) marks, for what is multiplied, unless DIRECT | io |
    | faults | (tiles,) zeros; without an exchange None | int32 |
    | directions | (M,) whether reversed (REVERSE == EACH) | uint8 |
    """
    io: gl.constexpr = d_gx.dtype.element_ty
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
        whole = member * T * step_size
        gates += whole * (4 if C.RESET_AFTER else 3)
        entering += whole
        d_gx += whole * 3
        u += member * (3 * C.U * C.U)
        carry += member * step_size
        if C.HAS_OUT:
            d_out += whole
        if C.RESET_AFTER:
            d_gh_n += whole
        if C.FRESH_GRADIENT:
            d_fresh += whole
        if C.HAS_MASK:
            mask += member * T * B
            y_carry += member * step_size
        if C.HAS_RESET:
            resets += member * T * B
        if C.DROPS > 0:
            drop += member * C.DROPS * step_size
        if MARKED:
            faults += member * tiles
            if not C.DIRECT:
                words += member * T * 3 * part_size

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
    begin = T * 0
    if C.HAS_MASK:
        begin = gl.maximum(0, T - gl.max(gl.load(stops + o_b), 0))

    # Transposed: rows of the sum are the units of the gates. And the places of the gradients in the product.
    if C.KEYS_FIRST:
        w_z, w_r, w_n = load_gates(u, i_h * C.BLOCK_H, 1, 3 * C.U, C.U, C)
    else:
        w_z, w_r, w_n = load_gates(u, i_h * C.BLOCK_H, C.U, 1, C.U * C.U, C)
    zero = gl.zeros([C.WARPS_K, C.BLOCK_B, C.BLOCK_H], gl.float32, C.mma)
    SHARED: gl.constexpr = (C.SHARED_Z, C.SHARED_R, C.SHARED_N)
    weights, nothing = (w_z, w_r), (zero, zero)
    if C.RESET_AFTER:
        weights, nothing = (w_z, w_r, w_n), (zero, zero, zero)
    # Without dropout masks of their own, one sum takes all products.
    p_sum = allocate_meeting(3 if C.DROPS == 3 else 1, C)
    fault = faults
    # What is multiplied of z and r, and of the candidate, lies in rows of so many elements.
    ROW: gl.constexpr = 3 * C.U if C.DIRECT else C.WIDTH
    ROW_N: gl.constexpr = C.U if C.DIRECT and C.RESET_AFTER else ROW
    if MARKED:
        place, last = places_of(rows, i_b, B, ROW, C)
        place_n, last_n = places_of(rows, i_b, B, ROW_N, C)
        k_all = units_of(C)
        own_word = o_b[:, None] * ROW + o_h[None, :]
        own_word_n = o_b[:, None] * ROW_N + o_h[None, :]
        stores = stores_of(m_row, o_h, io, C)
        fault = faults + i_b
    else:
        kept = allocate_kept(io, 3, C)

    # Each row by its owner alone, who writes it in the end.
    dh = gl.load(carry + o_bh, mask=m, other=0.0)
    dy = dh
    if C.HAS_MASK:
        dy = gl.load(y_carry + o_bh, mask=m, other=0.0)
    drops = load_drops(drop, step_size, o_bh, m_h, C)

    # Steps that are masked to the end in every row of the tile: nobody waits, everything is written all the same.
    if C.HAS_MASK:
        none = gl.zeros([C.BLOCK_B, C.BLOCK_H], io, C.own)
        for step in range(begin):
            o_t = time_of(T - 1 - step, T, reverse, C).to(gl.int64) * step_size
            for gate in gl.static_range(3):
                gl.store(d_gx + o_t * 3 + o_bg + gate * C.U, none, mask=m)
            if C.RESET_AFTER:
                gl.store(d_gh_n + o_t + o_bh, none, mask=m)
            if C.FRESH_GRADIENT:
                gl.store(d_fresh + o_t + o_bh, none, mask=m)
            if C.HAS_OUT:
                b_do = load_owned(d_out + o_t + o_bh, m_h, C).to(gl.float32)
                dy = b_do if C.ZERO_MASKED else dy + b_do

    y_z, y_r, y_n, y_g, y_h, y_o, valid_next, again_next = load_back_step(
        d_out, gates, entering, mask, resets, gl.minimum(begin, T - 1), T, B, step_size, o_b, o_bh, m_h, reverse, C
    )
    for step in range(begin, T):
        t = time_of(T - 1 - step, T, reverse, C)
        o_t = t.to(gl.int64) * step_size
        p_g = d_gx + o_t * 3
        p_z, p_r, p_n = p_g, p_g, p_g
        if MARKED:
            later = time_of(T - 1 - gl.minimum(step + FETCHED_AHEAD, T - 1), T, reverse, C) - t
            if C.DIRECT:
                p_z, p_r = p_g + C.GATE_Z * C.U, p_g + C.GATE_R * C.U
                p_n = p_g + 2 * C.U
                if C.RESET_AFTER:
                    p_n = d_gh_n + o_t
            else:
                p_z = words + t.to(gl.int64) * (3 * part_size)
                p_r, p_n = p_z + part_size, p_z + 2 * part_size
            z_stride = 3 * part_size
            n_stride = part_size if C.DIRECT and C.RESET_AFTER else 3 * part_size
            fetch(p_z + later.to(gl.int64) * z_stride + o_b * ROW + i_h * C.BLOCK_H)
            fetch(p_r + later.to(gl.int64) * z_stride + o_b * ROW + i_h * C.BLOCK_H)
            fetch(p_n + later.to(gl.int64) * n_stride + o_b * ROW_N + i_h * C.BLOCK_H)
        b_z, b_r, b_n = y_z.to(gl.float32), y_r.to(gl.float32), y_n.to(gl.float32)
        b_g, b_h = y_g.to(gl.float32), y_h.to(gl.float32)
        valid, again = valid_next, again_next

        # Gradients of the owned pre-activations.
        if C.HAS_OUT:
            b_do = y_o.to(gl.float32)
            if C.HAS_MASK:
                dy = b_do if C.ZERO_MASKED else dy + b_do
                dh = gl.where((valid != 0)[:, None], dh + dy, dh)
                dy = gl.where((valid != 0)[:, None], 0.0, dy)
            else:
                dh += b_do
        g_n = dh * (1.0 - b_z) * slope(b_n, C.ACT)
        g_z = dh * (b_h - b_n) * slope(b_z, C.REC_ACT)
        through = dh * b_z
        if C.HAS_MASK:
            g_n = gl.where((valid != 0)[:, None], g_n, 0.0)
            g_z = gl.where((valid != 0)[:, None], g_z, 0.0)
            through = gl.where((valid != 0)[:, None], through, dh)
        g_r, g_s = g_n, g_n
        if C.RESET_AFTER:
            g_r = g_n * b_g * slope(b_r, C.REC_ACT)
            g_s = g_n * b_r
            if C.HAS_MASK:
                g_r = gl.where((valid != 0)[:, None], g_r, 0.0)
                g_s = gl.where((valid != 0)[:, None], g_s, 0.0)

        # What others wait for goes first.
        if MARKED:
            if C.RESET_AFTER:
                publish(p_z + own_word, g_z, stores, io, C)
                publish(p_r + own_word, g_r, stores, io, C)
            publish(p_n + own_word_n, g_s, stores, io, C)
        elif C.RESET_AFTER:
            keep((g_z, g_r, g_s), kept, io)
        else:
            keep((g_s,), kept, io)
        if C.RESET_AFTER:
            if not C.DIRECT:
                gl.store(p_g + C.GATE_Z * C.U + o_bg, g_z.to(io), mask=m)
                gl.store(p_g + C.GATE_R * C.U + o_bg, g_r.to(io), mask=m)
                gl.store(d_gh_n + o_t + o_bh, g_s.to(io), mask=m)
            gl.store(p_g + 2 * C.U + o_bg, g_n.to(io), mask=m)
        elif not C.DIRECT:
            gl.store(p_g + 2 * C.U + o_bg, g_n.to(io), mask=m)
            gl.store(p_g + C.GATE_Z * C.U + o_bg, g_z.to(io), mask=m)
        y_z, y_r, y_n, y_g, y_h, y_o, valid_next, again_next = load_back_step(
            d_out, gates, entering, mask, resets, gl.minimum(step + 1, T - 1), T, B, step_size, o_b, o_bh, m_h, reverse,
            C,
        )  # fmt: skip

        # Without RESET_AFTER the reset gate's gradient needs da_n of all units first.
        if not C.RESET_AFTER:
            if MARKED:
                sums = multiply_handed(
                    (p_n + place_n,), (p_n + last_n,), (w_n,), (zero,), fault, patience, k_all, io, C.waits_first,
                    (C.SHARED_N,), C,
                )  # fmt: skip
            else:
                sums = multiply_kept(kept[:1], (w_n,), (zero,), (C.SHARED_N,), C)
            bring(p_sum[:1], sums, C)
            d_s = meet(p_sum[0], sums[0], C)
            if C.DROPS > 0:
                d_s = d_s * drops[C.DROPS - 1]
            g_r = d_s * b_h * slope(b_r, C.REC_ACT)
            d_s = d_s * b_r
            if C.HAS_MASK:
                g_r = gl.where((valid != 0)[:, None], g_r, 0.0)
                d_s = gl.where((valid != 0)[:, None], d_s, 0.0)
            through += d_s
            if MARKED:
                publish(p_z + own_word, g_z, stores, io, C)
                publish(p_r + own_word, g_r, stores, io, C)
            else:
                keep((g_z, g_r), kept[1:], io)
            if not C.DIRECT:
                gl.store(p_g + C.GATE_R * C.U + o_bg, g_r.to(io), mask=m)

        # Through the recurrent products to the state before.
        # A sum for each gate, added before they meet: one would make a chain of products three times as long.
        if MARKED:
            p, p_last = (p_z + place, p_r + place), (p_z + last, p_r + last)
            if C.RESET_AFTER:
                p, p_last = p + (p_n + place_n,), p_last + (p_n + last_n,)
            sums = multiply_handed(p, p_last, weights, nothing, fault, patience, k_all, io, C.waits_second, SHARED, C)
        elif C.RESET_AFTER:
            sums = multiply_kept(kept, weights, nothing, SHARED, C)
        else:
            sums = multiply_kept(kept[1:], weights, nothing, SHARED, C)
        if C.DROPS == 3:
            bring(p_sum, sums, C)
            d_before = meet(p_sum[0], sums[0], C) * drops[0] + meet(p_sum[1], sums[1], C) * drops[1]
            if C.RESET_AFTER:
                d_before += meet(p_sum[2], sums[2], C) * drops[2]
        else:
            sum = sums[0] + sums[1]
            if C.RESET_AFTER:
                sum = sum + sums[2]
            bring(p_sum, (sum,), C)
            d_before = meet(p_sum[0], sum, C)
            if C.DROPS > 0:
                d_before = d_before * drops[0]
        dh = through + d_before
        if not C.WHOLE:
            dh = gl.where(m_h, dh, 0.0)
        if C.HAS_RESET:
            restarts = (again != 0)[:, None]
            if C.FRESH_GRADIENT:
                gl.store(d_fresh + o_t + o_bh, gl.where(restarts, dh, 0.0).to(io), mask=m)
            dh = gl.where(restarts, 0.0, dh)

    gl.store(carry + o_bh, dh, mask=m)
    if C.HAS_MASK:
        gl.store(y_carry + o_bh, dy, mask=m)
