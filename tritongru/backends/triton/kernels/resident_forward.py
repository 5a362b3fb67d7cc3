"""The forward scan with the recurrent weights in registers, beside `forward.gru_forward_kernel`.

    z, r = g(gx_z + h R_z), g(gx_r + h R_r);   n = f(gx_n + r * (h R_n + c_n))  or  f(gx_n + (r * h) R_n)
    h' = z * h + (1 - z) * n

A program owns BLOCK_B rows and BLOCK_H units. Invariant at the top of step t: `h` holds the float32 state entering t of
the owned block, and the same state of all units has been handed on: stored, announced and to be loaded from `p_z`, ..
of each gate (counter), published in words of the round (tagged), or stored in the program's shared memory (none). The
owner multiplies by the dropout masks and applies the next step's reset before it hands on, so readers take what they
multiply.
Rows beyond the last are those of the last row once more: what they compute is never stored.
Bytes per step and program: 3 gx and BLOCK_B * U of the state in, the state, the output and the saved gates out.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .resident_exchange import announce, await_round, collect_one, collect_three, mark_fault, publish_one, publish_three
from .resident_gates import activate
from .resident_layout import EACH
from .resident_product import add_part, cube, load_gates, load_rows, meet
from .resident_steps import load_owned, load_step, time_of

_EACH = gl.constexpr(EACH)


@gluon.jit(do_not_specialize=["T", "B", "first_tile", "patience"])
def resident_forward_kernel(
    gx, u, bias_n, h_first, states, out, gates, carry, passed, mask, resets, fresh, drop, rows, stops, board, faults,
    directions, T, B, first_tile, patience, s_fresh_t, C: gl.constexpr,
):  # fmt: skip
    """Run all steps of one tile of one member.

    | pointer, contiguous, of M members | shape of one | dtype |
    |---|---|---|
    | gx | (T,B,3U) | io |
    | u | (U,3U), or the transpose of (3U,U) unless KEYS_FIRST | io |
    | bias_n | (U,) | io |
    | h_first | (B,U) the first state, multiplied by nothing; without an exchange None | io |
    | states | (T+1,B,U) entering each step and the last one, the other way round if reversed (SEPARATE) | io |
    | out | (T,B,U) | io |
    | gates | (4 or 3,T,B,U) z, r, n, h R_n + c_n | io |
    | carry | (B,U) the state before and after, exact | float32 |
    | passed | (2,DROPS,B,U) states times dropout masks, then (B,U) r * h, where a counter needs them | io |
    | mask, resets | (T,B) | uint8 |
    | fresh | (B,U), or (T,B,U) with s_fresh_t = B * U | io |
    | drop | (DROPS,B,U) | io |
    | rows, stops | (B,) as for `gru_forward_kernel`, the same for all members | int64, int32 |
    | board | (tiles,32) counters or (2,tiles*BLOCK_B,WIDTH) words, zeros, see resident_exchange.py | int32, int64 |
    | faults | (tiles,) zeros | int32 |
    | directions | (M,) whether reversed (REVERSE == EACH), not of each member | uint8 |
    """
    io: gl.constexpr = out.dtype.element_ty
    TAGGED: gl.constexpr = C.EXCHANGE == "tagged"
    COUNTED: gl.constexpr = C.EXCHANGE == "counter"
    WIDE: gl.constexpr = C.DROPS == 3
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
        if COUNTED:
            h_first += member * step_size
            board += member * tiles * 32
            if passed is not None:
                passed += member * (2 * C.DROPS + (0 if C.RESET_AFTER else 1)) * step_size
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
    if C.WARPS_K > 1:
        # An allocation for each: between stores to parts of one, Triton puts a barrier each.
        p_sum_z = gl.allocate_shared_memory(gl.float32, [C.WARPS_K, C.BLOCK_B, C.BLOCK_H], C.meeting)
        p_sum_r = gl.allocate_shared_memory(gl.float32, [C.WARPS_K, C.BLOCK_B, C.BLOCK_H], C.meeting)
        p_sum_n = gl.allocate_shared_memory(gl.float32, [C.WARPS_K, C.BLOCK_B, C.BLOCK_H], C.meeting)
    else:
        p_sum_z, p_sum_r, p_sum_n = 0, 0, 0
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
        k_all = cube(a_w * C.PART, a_b * 0, a_k)
        word = board + i_b * 32
        fault = faults + i_b
    else:
        kept_z = gl.allocate_shared_memory(io, [1, C.BLOCK_B, C.BLOCK_H], C.state)
        kept_r, kept_n, kept_s = kept_z, kept_z, kept_z
        if C.DROPS == 3:
            kept_r = gl.allocate_shared_memory(io, [1, C.BLOCK_B, C.BLOCK_H], C.state)
            kept_n = gl.allocate_shared_memory(io, [1, C.BLOCK_B, C.BLOCK_H], C.state)
        if not C.RESET_AFTER:
            kept_s = gl.allocate_shared_memory(io, [1, C.BLOCK_B, C.BLOCK_H], C.state)

    c_n = gl.zeros([C.BLOCK_H], gl.float32, gl.SliceLayout(0, C.own))
    if C.HAS_BIAS:
        c_n = gl.load(bias_n + o_h, mask=o_h < C.U, other=0.0).to(gl.float32)
    c_n = c_n[None, :]
    # Each row by its owner alone, who writes it in the end.
    h = gl.load(carry + o_bh, mask=m, other=0.0)
    y = h * 0
    d_z, d_r, d_n = h, h, h
    if C.DROPS > 0:
        d_n = load_owned(drop + (C.DROPS - 1) * step_size + o_bh, m_h, C).to(gl.float32)
        d_z, d_r = d_n, d_n
        if C.DROPS == 3:
            d_z = load_owned(drop + C.GATE_Z * step_size + o_bh, m_h, C).to(gl.float32)
            d_r = load_owned(drop + C.GATE_R * step_size + o_bh, m_h, C).to(gl.float32)

    # The first state is handed on.
    rounds = first
    f_z, f_r, f_n = h, h, h
    if C.DROPS > 0:
        f_z, f_r, f_n = h * d_z, h * d_r, h * d_n
    p_z, p_r, p_n = h_first, h_first, h_first
    if TAGGED:
        rounds += 1
        first_slot = board + (rounds & 1) * board_size
        if WIDE:
            publish_three(first_slot + own_word, f_z, f_r, f_n, rounds, m_word, io)
        else:
            publish_one(first_slot + own_word, f_z, rounds, m_word, io, WIDE)
    elif COUNTED:
        if C.DROPS > 0:
            p_z = passed
            gl.store(passed + o_bh, f_z.to(io), mask=m)
            if C.DROPS == 3:
                p_r = passed + step_size
                p_n = passed + 2 * step_size
                gl.store(p_r + o_bh, f_r.to(io), mask=m)
                gl.store(p_n + o_bh, f_n.to(io), mask=m)
            announce(word)
            rounds += 1
    else:
        kept_z.store(gl.expand_dims(f_z.to(io), 0))
        if C.DROPS == 3:
            kept_r.store(gl.expand_dims(f_r.to(io), 0))
            kept_n.store(gl.expand_dims(f_n.to(io), 0))

    leaving = out
    if C.SEPARATE:
        # At the index of its step, but one further on where time runs forward.
        leaving = states + (1 - time_of(first, first + 2, reverse, C)).to(gl.int64) * step_size
    y_z, y_r, y_n, keep_next, again_next = load_step(
        gx, mask, resets, first, T, B, step_size, o_b, o_bg, m_h, reverse, C
    )
    for step in range(stop):
        t = time_of(step, T, reverse, C)
        o_t = t.to(gl.int64) * step_size
        x_z, x_r, x_n, keep, again = y_z, y_r, y_n, keep_next, again_next
        y_z, y_r, y_n, keep_next, again_next = load_step(
            gx, mask, resets, gl.minimum(step + 1, T - 1), T, B, step_size, o_b, o_bg, m_h, reverse, C
        )
        if C.HAS_RESET:
            b_fresh = h * 0
            if C.HAS_FRESH:
                # What the next step may start from, asked for before the wait.
                t_next = time_of(gl.minimum(step + 1, T - 1), T, reverse, C)
                b_fresh = load_owned(fresh + t_next.to(gl.int64) * s_fresh_t + o_bh, m_h, C)

        # The whole state of the tile's rows, times the weights.
        s_z, s_r, s_n = zero, zero, zero
        if TAGGED:
            slot = board + (rounds & 1) * board_size
            if WIDE:
                a_z, a_r, a_n = collect_three(slot, place, rounds, fault, patience, C, io, C.wait_first)
            else:
                a_z = collect_one(slot, place, rounds, fault, patience, C, io, C.wait_first)
                a_r, a_n = a_z, a_z
            if C.HAS_TAIL:
                a_z = gl.where(k_all < C.U, a_z, 0.0)
                a_r = gl.where(k_all < C.U, a_r, 0.0)
                a_n = gl.where(k_all < C.U, a_n, 0.0)
            rows_z, rows_r, rows_n = (a_z,), (a_r,), (a_n,)
        elif COUNTED:
            patience = await_round(word, gl.num_programs(0) * rounds, patience)
            rows_z = load_rows(p_z, place, k_all, C)
            rows_r, rows_n = rows_z, rows_z
            if C.DROPS == 3:
                rows_r = load_rows(p_r, place, k_all, C)
                rows_n = load_rows(p_n, place, k_all, C)
            # A fault is no silent result: NaN in one warp's sum is NaN in all warps' elements.
            s_z = gl.where(patience > 0, zero, float("nan"))
        else:
            rows_z = (kept_z.load(C.left),)
            rows_r, rows_n = rows_z, rows_z
            if C.DROPS == 3:
                rows_r = (kept_r.load(C.left),)
                rows_n = (kept_n.load(C.left),)
        for i in gl.static_range(C.NK):
            s_z = add_part(rows_z[i], w_z, i, s_z, C.SHARED_Z, C)
            s_r = add_part(rows_r[i], w_r, i, s_r, C.SHARED_R, C)
            if C.RESET_AFTER:
                s_n = add_part(rows_n[i], w_n, i, s_n, C.SHARED_N, C)
        if C.WARPS_K > 1:
            p_sum_z.store(s_z)
            p_sum_r.store(s_r)
            if C.RESET_AFTER:
                p_sum_n.store(s_n)
        b_z = activate(x_z.to(gl.float32) + meet(p_sum_z, s_z, C), C.REC_ACT, C.APPROXIMATE)
        b_r = activate(x_r.to(gl.float32) + meet(p_sum_r, s_r, C), C.REC_ACT, C.APPROXIMATE)

        # The candidate; without RESET_AFTER its product needs r of all units first.
        b_g = h
        if C.RESET_AFTER:
            b_g = meet(p_sum_n, s_n, C) + c_n
            b_n = activate(x_n.to(gl.float32) + b_r * b_g, C.ACT, C.APPROXIMATE)
        else:
            b_s = b_r * h
            if C.DROPS > 0:
                b_s = b_s * d_n
            s_n = zero
            if TAGGED:
                rounds += 1
                slot = board + (rounds & 1) * board_size
                publish_one(slot + own_word, b_s, rounds, m_word, io, WIDE)
                a_n = collect_one(slot, place, rounds, fault, patience, C, io, C.wait_second)
                if C.HAS_TAIL:
                    a_n = gl.where(k_all < C.U, a_n, 0.0)
                rows_n = (a_n,)
            elif COUNTED:
                p_s = passed + 2 * C.DROPS * step_size
                gl.store(p_s + o_bh, b_s.to(io), mask=m)
                announce(word)
                rounds += 1
                patience = await_round(word, gl.num_programs(0) * rounds, patience)
                rows_n = load_rows(p_s, place, k_all, C)
                s_n = gl.where(patience > 0, zero, float("nan"))
            else:
                kept_s.store(gl.expand_dims(b_s.to(io), 0))
                rows_n = (kept_s.load(C.left),)
            for i in gl.static_range(C.NK):
                s_n = add_part(rows_n[i], w_n, i, s_n, C.SHARED_N, C)
            if C.WARPS_K > 1:
                p_sum_n.store(s_n)
            b_n = activate(x_n.to(gl.float32) + meet(p_sum_n, s_n, C), C.ACT, C.APPROXIMATE)

        b_new = b_z * h + (1.0 - b_z) * b_n
        if not C.WHOLE:
            # What lies outside must stay finite: it meets zeros of the weights in the next product.
            b_new = gl.where(m_h, b_new, 0.0)
        if C.HAS_MASK:
            h = gl.where((keep != 0)[:, None], b_new, h)
            y = gl.where((keep != 0)[:, None], b_new, 0.0 if C.ZERO_MASKED else y)
        else:
            h = b_new
            y = b_new
        if C.HAS_RESET:
            h = gl.where((again != 0)[:, None] & (step + 1 < T), b_fresh.to(gl.float32), h)

        # What others wait for goes first.
        h_z, h_r, h_n = h, h, h
        if C.DROPS > 0:
            h_z, h_r, h_n = h * d_z, h * d_r, h * d_n
        rounds += 1
        if TAGGED:
            slot = board + (rounds & 1) * board_size
            if WIDE:
                publish_three(slot + own_word, h_z, h_r, h_n, rounds, m_word, io)
            else:
                publish_one(slot + own_word, h_z, rounds, m_word, io, WIDE)
            gl.store(leaving + o_t + o_bh, h.to(io), mask=m)
        elif COUNTED:
            if C.DROPS > 0:
                p_z = passed + ((step + 1) & 1).to(gl.int64) * (C.DROPS * step_size)
                gl.store(p_z + o_bh, h_z.to(io), mask=m)
                if C.DROPS == 3:
                    p_r = p_z + step_size
                    p_n = p_r + step_size
                    gl.store(p_r + o_bh, h_r.to(io), mask=m)
                    gl.store(p_n + o_bh, h_n.to(io), mask=m)
                announce(word)
                gl.store(leaving + o_t + o_bh, h.to(io), mask=m)
            else:
                p_z = leaving + o_t
                gl.store(p_z + o_bh, h.to(io), mask=m)
                announce(word)
        else:
            kept_z.store(gl.expand_dims(h_z.to(io), 0))
            if C.DROPS == 3:
                kept_r.store(gl.expand_dims(h_r.to(io), 0))
                kept_n.store(gl.expand_dims(h_n.to(io), 0))
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
            y = h * 0
        nothing = gl.zeros([C.BLOCK_B, C.BLOCK_H], io, C.own)
        for step in range(stop, T):
            o_t = time_of(step, T, reverse, C).to(gl.int64) * step_size
            gl.store(out + o_t + o_bh, y.to(io), mask=m)
            gl.store(leaving + o_t + o_bh, h.to(io), mask=m)
            if C.SAVE_GATES:
                for gate in gl.static_range(4 if C.RESET_AFTER else 3):
                    gl.store(gates + gate * T * step_size + o_t + o_bh, nothing, mask=m)
    gl.store(carry + o_bh, h, mask=m)
    if COUNTED:
        mark_fault(fault, patience)
