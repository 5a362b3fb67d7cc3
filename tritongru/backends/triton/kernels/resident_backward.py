"""The reverse scan with R' of the owned units in registers, beside `backward.gru_backward_kernel`.

    da_n = dh (1 - z) f'(n);   da_z = dh (h - n) g'(z);   da_r = da_n (h R_n + c_n) g'(r)
    dh_before = dh z + da_z R_z' + da_r R_r' + (da_n r) R_n'                                 reset_after
    ds = da_n R_n';  da_r = ds h g'(r);  dh_before = dh z + da_z R_z' + da_r R_r' + ds r     otherwise

A program owns BLOCK_B rows and BLOCK_H units. Invariant at the top of step t: `dh` holds the float32 gradient of the
state leaving t of the owned block. What programs exchange is the pre-activations' gradients, which are results anyway:
they are loaded from where they were stored (counter), from words that carry all three (tagged), or from the program's
own shared memory (none). Without dropout masks of their own one sum takes all products, so that a third of the forward
scan's values meet. Bytes per step and program: the gates and the state of the block and BLOCK_B * 3U gradients in, 4
gradients out.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .resident_exchange import (
    announce,
    await_round,
    collect_one,
    collect_three,
    collect_two,
    mark_fault,
    publish_one,
    publish_three,
)
from .resident_gates import slope
from .resident_layout import EACH
from .resident_product import add_part, cube, load_gates, load_rows, meet
from .resident_steps import load_back_step, load_owned, time_of

_EACH = gl.constexpr(EACH)


@gluon.jit(do_not_specialize=["T", "B", "first_tile", "patience"])
def resident_backward_kernel(
    d_out, gates, entering, u, mask, resets, drop, d_gx, d_gh_n, d_fresh, carry, y_carry, rows, stops, board, faults,
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
    | d_gx, d_gh_n | (T,B,3U), (T,B,U) (RESET_AFTER) | io |
    | d_fresh | (T,B,U) (FRESH_GRADIENT) | io |
    | carry, y_carry | (B,U) gradient of the state, and of the output that masked steps repeat (HAS_MASK) | float32 |
    | rows, stops | (B,) as for `gru_backward_kernel`, the same for all members | int64, int32 |
    | board | (tiles,32) counters or (2,tiles*BLOCK_B,WIDTH) words, zeros, see resident_exchange.py | int32, int64 |
    | faults | (tiles,) zeros | int32 |
    | directions | (M,) whether reversed (REVERSE == EACH) | uint8 |
    """
    io: gl.constexpr = d_gx.dtype.element_ty
    TAGGED: gl.constexpr = C.EXCHANGE == "tagged"
    COUNTED: gl.constexpr = C.EXCHANGE == "counter"
    # Without masks of their own, one sum takes all three products.
    APART: gl.constexpr = C.DROPS == 3
    i_h, i_b = gl.program_id(0), gl.program_id(1)
    tiles = gl.num_programs(1)
    if first_tile is not None:
        i_b += first_tile
        tiles = (B + C.BLOCK_B - 1) // C.BLOCK_B
    step_size = B.to(gl.int64) * C.U
    board_size = tiles.to(gl.int64) * (C.BLOCK_B * C.WIDTH)
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
        if COUNTED:
            board += member * tiles * 32
        if TAGGED:
            board += member * 2 * board_size
        if C.EXCHANGE != "none":
            faults += member * tiles

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
    if C.WARPS_K > 1:
        p_sum = gl.allocate_shared_memory(gl.float32, [C.WARPS_K, C.BLOCK_B, C.BLOCK_H], C.meeting)
        p_sum_r, p_sum_n = p_sum, p_sum
        if APART:
            p_sum_r = gl.allocate_shared_memory(gl.float32, [C.WARPS_K, C.BLOCK_B, C.BLOCK_H], C.meeting)
            p_sum_n = gl.allocate_shared_memory(gl.float32, [C.WARPS_K, C.BLOCK_B, C.BLOCK_H], C.meeting)
    else:
        p_sum, p_sum_r, p_sum_n = 0, 0, 0
    fault = faults
    if TAGGED:
        a_w = gl.arange(0, C.WARPS_K, gl.SliceLayout(1, gl.SliceLayout(2, C.groups)))
        a_b = i_b * C.BLOCK_B + gl.arange(0, C.BLOCK_B, gl.SliceLayout(0, gl.SliceLayout(2, C.groups)))
        a_g = gl.arange(0, C.PART // 8, gl.SliceLayout(0, gl.SliceLayout(1, C.groups)))
        # Past the last row and the last unit the last ones are asked for once more.
        place = cube(a_w * 0, gl.minimum(a_b, B - 1) * C.WIDTH, a_g * 0) + gl.minimum(
            cube(a_w * C.PART, a_b * 0, a_g * 8), C.WIDTH - 8
        )
        k_all = cube(
            gl.arange(0, C.WARPS_K, gl.SliceLayout(1, gl.SliceLayout(2, C.left))) * C.PART,
            gl.arange(0, C.BLOCK_B, gl.SliceLayout(0, gl.SliceLayout(2, C.left))) * 0,
            gl.arange(0, C.PART, gl.SliceLayout(0, gl.SliceLayout(1, C.left))),
        )
        own_word = o_row[:, None] * C.WIDTH + o_h[None, :]
        m_word = m_row[:, None] & (o_h < C.WIDTH)[None, :]
        fault = faults + i_b
    elif COUNTED:
        a_w = gl.arange(0, C.WARPS_K, gl.SliceLayout(1, gl.SliceLayout(2, C.left)))
        a_b = gl.minimum(i_b * C.BLOCK_B + gl.arange(0, C.BLOCK_B, gl.SliceLayout(0, gl.SliceLayout(2, C.left))), B - 1)
        if C.HAS_ROWS:
            a_b = gl.load(rows + a_b).to(gl.int32)
        a_k = gl.arange(0, C.PART, gl.SliceLayout(0, gl.SliceLayout(1, C.left)))
        place = cube(a_w * C.PART, a_b * C.U, a_k)
        place_3 = cube(a_w * C.PART, a_b * (3 * C.U), a_k)
        k_all = cube(a_w * C.PART, a_b * 0, a_k)
        word = board + i_b * 32
        fault = faults + i_b
    else:
        kept_z = gl.allocate_shared_memory(io, [1, C.BLOCK_B, C.BLOCK_H], C.state)
        kept_r = gl.allocate_shared_memory(io, [1, C.BLOCK_B, C.BLOCK_H], C.state)
        kept_n = gl.allocate_shared_memory(io, [1, C.BLOCK_B, C.BLOCK_H], C.state)

    # Each row by its owner alone, who writes it in the end.
    dh = gl.load(carry + o_bh, mask=m, other=0.0)
    dy = dh
    if C.HAS_MASK:
        dy = gl.load(y_carry + o_bh, mask=m, other=0.0)
    d_z, d_r, d_n = dh, dh, dh
    if C.DROPS > 0:
        d_n = load_owned(drop + (C.DROPS - 1) * step_size + o_bh, m_h, C).to(gl.float32)
        d_z, d_r = d_n, d_n
        if C.DROPS == 3:
            d_z = load_owned(drop + C.GATE_Z * step_size + o_bh, m_h, C).to(gl.float32)
            d_r = load_owned(drop + C.GATE_R * step_size + o_bh, m_h, C).to(gl.float32)
    rounds = T * 0

    # Steps that are masked to the end in every row of the tile: nobody waits, everything is written all the same.
    if C.HAS_MASK:
        nothing = gl.zeros([C.BLOCK_B, C.BLOCK_H], io, C.own)
        for step in range(begin):
            o_t = time_of(T - 1 - step, T, reverse, C).to(gl.int64) * step_size
            for gate in gl.static_range(3):
                gl.store(d_gx + o_t * 3 + o_bg + gate * C.U, nothing, mask=m)
            if C.RESET_AFTER:
                gl.store(d_gh_n + o_t + o_bh, nothing, mask=m)
            if C.FRESH_GRADIENT:
                gl.store(d_fresh + o_t + o_bh, nothing, mask=m)
            if C.HAS_OUT:
                b_do = load_owned(d_out + o_t + o_bh, m_h, C).to(gl.float32)
                dy = b_do if C.ZERO_MASKED else dy + b_do

    y_z, y_r, y_n, y_g, y_h, y_o, keep_next, again_next = load_back_step(
        d_out, gates, entering, mask, resets, gl.minimum(begin, T - 1), T, B, step_size, o_b, o_bh, m_h, reverse, C
    )
    for step in range(begin, T):
        t = time_of(T - 1 - step, T, reverse, C)
        o_t = t.to(gl.int64) * step_size
        b_z, b_r, b_n = y_z.to(gl.float32), y_r.to(gl.float32), y_n.to(gl.float32)
        b_g, b_h = y_g.to(gl.float32), y_h.to(gl.float32)
        keep, again = keep_next, again_next

        # Gradients of the owned pre-activations.
        if C.HAS_OUT:
            b_do = y_o.to(gl.float32)
            if C.HAS_MASK:
                dy = b_do if C.ZERO_MASKED else dy + b_do
                dh = gl.where((keep != 0)[:, None], dh + dy, dh)
                dy = gl.where((keep != 0)[:, None], 0.0, dy)
            else:
                dh += b_do
        g_n = dh * (1.0 - b_z) * slope(b_n, C.ACT)
        g_z = dh * (b_h - b_n) * slope(b_z, C.REC_ACT)
        through = dh * b_z
        if C.HAS_MASK:
            g_n = gl.where((keep != 0)[:, None], g_n, 0.0)
            g_z = gl.where((keep != 0)[:, None], g_z, 0.0)
            through = gl.where((keep != 0)[:, None], through, dh)
        g_r, g_s = g_n, g_n
        if C.RESET_AFTER:
            g_r = g_n * b_g * slope(b_r, C.REC_ACT)
            g_s = g_n * b_r
            if C.HAS_MASK:
                g_r = gl.where((keep != 0)[:, None], g_r, 0.0)
                g_s = gl.where((keep != 0)[:, None], g_s, 0.0)

        # What others wait for goes first.
        p_g = d_gx + o_t * 3
        rounds += 1
        slot = board
        if TAGGED:
            slot = board + (rounds & 1) * board_size
            if C.RESET_AFTER:
                publish_three(slot + own_word, g_z, g_r, g_s, rounds, m_word, io)
            else:
                publish_one(slot + own_word, g_n, rounds, m_word, io, True)
        elif C.EXCHANGE == "none":
            if C.RESET_AFTER:
                kept_z.store(gl.expand_dims(g_z.to(io), 0))
                kept_r.store(gl.expand_dims(g_r.to(io), 0))
            kept_n.store(gl.expand_dims(g_s.to(io), 0))
        if C.RESET_AFTER:
            gl.store(p_g + C.GATE_Z * C.U + o_bg, g_z.to(io), mask=m)
            gl.store(p_g + C.GATE_R * C.U + o_bg, g_r.to(io), mask=m)
            gl.store(d_gh_n + o_t + o_bh, g_s.to(io), mask=m)
            if COUNTED:
                announce(word)
            gl.store(p_g + 2 * C.U + o_bg, g_n.to(io), mask=m)
        else:
            gl.store(p_g + 2 * C.U + o_bg, g_n.to(io), mask=m)
            if COUNTED:
                announce(word)
            gl.store(p_g + C.GATE_Z * C.U + o_bg, g_z.to(io), mask=m)
        y_z, y_r, y_n, y_g, y_h, y_o, keep_next, again_next = load_back_step(
            d_out, gates, entering, mask, resets, gl.minimum(step + 1, T - 1), T, B, step_size, o_b, o_bh, m_h, reverse,
            C,
        )  # fmt: skip

        # Without RESET_AFTER the reset gate's gradient needs da_n of all units first.
        s_z, s_r, s_n = zero, zero, zero
        if not C.RESET_AFTER:
            if TAGGED:
                a_n = collect_one(slot, place, rounds, fault, patience, C, io, C.wait_first)
                if C.HAS_TAIL:
                    a_n = gl.where(k_all < C.U, a_n, 0.0)
                rows_n = (a_n,)
            elif COUNTED:
                patience = await_round(word, gl.num_programs(0) * rounds, patience)
                rows_n = load_rows(p_g + 2 * C.U, place_3, k_all, C)
                s_n = gl.where(patience > 0, zero, float("nan"))
            else:
                rows_n = (kept_n.load(C.left),)
            for i in gl.static_range(C.NK):
                s_n = add_part(rows_n[i], w_n, i, s_n, C.SHARED_N, C)
            if C.WARPS_K > 1:
                p_sum_n.store(s_n)
            d_s = meet(p_sum_n, s_n, C)
            if C.DROPS > 0:
                d_s = d_s * d_n
            g_r = d_s * b_h * slope(b_r, C.REC_ACT)
            d_s = d_s * b_r
            if C.HAS_MASK:
                g_r = gl.where((keep != 0)[:, None], g_r, 0.0)
                d_s = gl.where((keep != 0)[:, None], d_s, 0.0)
            through += d_s
            rounds += 1
            if TAGGED:
                slot = board + (rounds & 1) * board_size
                publish_three(slot + own_word, g_z, g_r, g_r, rounds, m_word, io)
            elif C.EXCHANGE == "none":
                kept_z.store(gl.expand_dims(g_z.to(io), 0))
                kept_r.store(gl.expand_dims(g_r.to(io), 0))
            gl.store(p_g + C.GATE_R * C.U + o_bg, g_r.to(io), mask=m)
            if COUNTED:
                announce(word)

        # Through the recurrent products to the state before.
        if TAGGED:
            if C.RESET_AFTER:
                a_z, a_r, a_n = collect_three(slot, place, rounds, fault, patience, C, io, C.wait_first)
            else:
                a_z, a_r = collect_two(slot, place, rounds, fault, patience, C, io, C.wait_second)
                a_n = a_r
            if C.HAS_TAIL:
                a_z = gl.where(k_all < C.U, a_z, 0.0)
                a_r = gl.where(k_all < C.U, a_r, 0.0)
                a_n = gl.where(k_all < C.U, a_n, 0.0)
            rows_z, rows_r, rows_n = (a_z,), (a_r,), (a_n,)
        elif COUNTED:
            patience = await_round(word, gl.num_programs(0) * rounds, patience)
            rows_z = load_rows(p_g + C.GATE_Z * C.U, place_3, k_all, C)
            rows_r = load_rows(p_g + C.GATE_R * C.U, place_3, k_all, C)
            rows_n = rows_r
            if C.RESET_AFTER:
                rows_n = load_rows(d_gh_n + o_t, place, k_all, C)
            s_z = gl.where(patience > 0, zero, float("nan"))
        else:
            rows_z, rows_r = (kept_z.load(C.left),), (kept_r.load(C.left),)
            rows_n = rows_r
            if C.RESET_AFTER:
                rows_n = (kept_n.load(C.left),)
        s_n = zero
        # A sum for each gate, added before they meet: one would make a chain of products three times as long.
        for i in gl.static_range(C.NK):
            s_z = add_part(rows_z[i], w_z, i, s_z, C.SHARED_Z, C)
            s_r = add_part(rows_r[i], w_r, i, s_r, C.SHARED_R, C)
            if C.RESET_AFTER:
                s_n = add_part(rows_n[i], w_n, i, s_n, C.SHARED_N, C)
        if APART:
            if C.WARPS_K > 1:
                p_sum.store(s_z)
                p_sum_r.store(s_r)
                if C.RESET_AFTER:
                    p_sum_n.store(s_n)
            d_before = meet(p_sum, s_z, C) * d_z + meet(p_sum_r, s_r, C) * d_r
            if C.RESET_AFTER:
                d_before += meet(p_sum_n, s_n, C) * d_n
        else:
            s_z = s_z + s_r
            if C.RESET_AFTER:
                s_z = s_z + s_n
            if C.WARPS_K > 1:
                p_sum.store(s_z)
            d_before = meet(p_sum, s_z, C)
            if C.DROPS > 0:
                d_before = d_before * d_n
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
    if COUNTED:
        mark_fault(fault, patience)
