"""The reverse scan: gradients of the pre-activations, with the transposed recurrent weights on the chip.

    da_n = dh (1 - z) f'(n);   da_z = dh (h - n) g'(z);   da_r = da_n (h R_n + c_n) g'(r)
    dh_before = dh z + da_z R_z' + da_r R_r' + (da_n r) R_n'                                 reset_after
    ds = da_n R_n';  da_r = ds h g'(r);  dh_before = dh z + da_z R_z' + da_r R_r' + ds r     otherwise

A program owns BLOCK_B rows and BLOCK_H units. Invariant at the top of step t: `b_dh` holds the float32 gradient of the
state leaving t of the owned block. What programs exchange is the pre-activations' gradients, which are results anyway.
Bytes per step and program: reads the gates, the state and BLOCK_B * 3U gradients, writes its part of the gradients.
One body, three schedules, as in forward.py; PHASE 1, 2, 3 are the parts between exchanges (0: all).
"""

import triton
import triton.language as tl

from .exchange import announce, await_round
from .gates import slope
from .weights import load_weights


@triton.jit
def load_gradients(p_gate, k, U, s_row, o_b, m_b, BLOCK_K: tl.constexpr):
    """Return chunk k (BLOCK_B, BLOCK_K) of one gate's gradients, rows s_row apart, past the first-level cache."""
    o_k = k * BLOCK_K + tl.arange(0, BLOCK_K)
    m_bk = m_b[:, None] & (o_k < U)[None, :]
    return tl.load(p_gate + o_b[:, None] * s_row + o_k[None, :], mask=m_bk, other=0.0, cache_modifier=".cg")


@triton.jit(do_not_specialize=["T", "B", "step_begin", "step_end", "patience"])
def gru_backward_kernel(
    d_out, gates, entering, u, mask, resets, drop, d_gx, d_gh_n, d_fresh, carry, y_carry, counters, faults,
    T, B, U, step_begin, step_end, patience, s_u_k, s_u_g,
    BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr, NK: tl.constexpr,
    SINGLE: tl.constexpr, PERSISTENT: tl.constexpr, STREAM: tl.constexpr, EXCHANGE: tl.constexpr,
    PHASE: tl.constexpr,
    ACT: tl.constexpr, REC_ACT: tl.constexpr, RESET_AFTER: tl.constexpr, ZERO_MASKED: tl.constexpr,
    REVERSE: tl.constexpr, GATE_Z: tl.constexpr, GATE_R: tl.constexpr, DROPS: tl.constexpr,
    HAS_OUT: tl.constexpr, HAS_MASK: tl.constexpr, HAS_RESET: tl.constexpr, FRESH_GRADIENT: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
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
    | counters, faults | (tiles,) zeros | int32 |
    """
    i_h, i_b = tl.program_id(0), tl.program_id(1)
    programs = tl.num_programs(0)
    o_b = i_b * BLOCK_B + tl.arange(0, BLOCK_B).to(tl.int64)
    o_h = i_h * BLOCK_H + tl.arange(0, BLOCK_H)
    o_bh = o_b[:, None] * U + o_h[None, :]
    o_bg = o_b[:, None] * (3 * U) + o_h[None, :]
    step_size = B.to(tl.int64) * U

    m_b, m_h = o_b < B, o_h < U
    m_bh = m_b[:, None] & m_h[None, :]
    io = d_gx.dtype.element_ty

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
    rounds = 0

    for step in range(step_begin, step_end):
        t = step if REVERSE else T - 1 - step
        o_t = t.to(tl.int64) * step_size
        p_gates = gates + o_t + o_bh
        b_h = tl.load(entering + o_t + o_bh, mask=m_bh, other=0.0).to(tl.float32)
        b_r = tl.load(p_gates + T * step_size, mask=m_bh, other=0.0).to(tl.float32)
        keep = m_b[:, None]
        if HAS_MASK:
            keep = tl.load(mask + t.to(tl.int64) * B + o_b, mask=m_b, other=0)[:, None] != 0

        # Gradients of the owned pre-activations.
        if PHASE <= 1:
            b_z = tl.load(p_gates, mask=m_bh, other=0.0).to(tl.float32)
            b_n = tl.load(p_gates + 2 * T * step_size, mask=m_bh, other=0.0).to(tl.float32)
            if HAS_OUT:
                b_do = tl.load(d_out + o_t + o_bh, mask=m_bh, other=0.0).to(tl.float32)
                if HAS_MASK:
                    b_dy = b_do if ZERO_MASKED else b_dy + b_do
                    b_dh = tl.where(keep, b_dh + b_dy, b_dh)
                    b_dy = tl.where(keep, 0.0, b_dy)
                else:
                    b_dh += b_do
            g_n = tl.where(keep, b_dh * (1.0 - b_z) * slope(b_n, ACT), 0.0)
            g_z = tl.where(keep, b_dh * (b_h - b_n) * slope(b_z, REC_ACT), 0.0)
            p_g = d_gx + o_t * 3 + o_bg
            tl.store(p_g + 2 * U, g_n.to(io), mask=m_bh)
            tl.store(p_g + GATE_Z * U, g_z.to(io), mask=m_bh)
            if RESET_AFTER:
                b_g = tl.load(p_gates + 3 * T * step_size, mask=m_bh, other=0.0).to(tl.float32)
                g_r = tl.where(keep, g_n * b_g * slope(b_r, REC_ACT), 0.0)
                g_s = tl.where(keep, g_n * b_r, 0.0)
                tl.store(p_g + GATE_R * U, g_r.to(io), mask=m_bh)
                tl.store(d_gh_n + o_t + o_bh, g_s.to(io), mask=m_bh)
            b_dh = tl.where(keep, b_dh * b_z, b_dh)
        if PERSISTENT:
            announce(counters + i_b)
            rounds += 1
            patience = await_round(counters + i_b, rounds * programs, patience)
            b_dh = tl.where(patience > 0, b_dh, float("nan"))

        # Without RESET_AFTER the reset gate's gradient needs da_n of all units first.
        if not RESET_AFTER:
            if PHASE == 0 or PHASE == 2:
                a_s = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
                p_n = d_gx + o_t * 3 + 2 * U
                if STREAM:
                    for k in range(NK):
                        c_z, c_r, c_n = load_weights(
                            u, k, U, o_h, m_h, s_u_g, s_u_k, s_u_g, GATE_Z, GATE_R, BLOCK_K, DOT
                        )
                        k_n = load_gradients(p_n, k, U, 3 * U, o_b, m_b, BLOCK_K)
                        a_s = tl.dot(k_n.to(DOT), c_n, a_s, input_precision=PRECISION)
                else:
                    for k in tl.static_range(NK):
                        k_n = g_n.to(io) if SINGLE else load_gradients(p_n, k, U, 3 * U, o_b, m_b, BLOCK_K)
                        a_s = tl.dot(k_n.to(DOT), w_n[k], a_s, input_precision=PRECISION)
                if DROPS > 0:
                    a_s = a_s * d_n
                g_r = tl.where(keep, a_s * b_h * slope(b_r, REC_ACT), 0.0)
                tl.store(d_gx + o_t * 3 + o_bg + GATE_R * U, g_r.to(io), mask=m_bh)
                b_dh += tl.where(keep, a_s * b_r, 0.0)
            if PERSISTENT:
                announce(counters + i_b)
                rounds += 1
                patience = await_round(counters + i_b, rounds * programs, patience)
                b_dh = tl.where(patience > 0, b_dh, float("nan"))

        # Through the recurrent products to the state before.
        if PHASE == 0 or PHASE == 3:
            a_z = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
            a_r = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
            a_n = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
            p_z = d_gx + o_t * 3 + GATE_Z * U
            p_r = d_gx + o_t * 3 + GATE_R * U
            if STREAM:
                for k in range(NK):
                    c_z, c_r, c_n = load_weights(u, k, U, o_h, m_h, s_u_g, s_u_k, s_u_g, GATE_Z, GATE_R, BLOCK_K, DOT)
                    k_z = load_gradients(p_z, k, U, 3 * U, o_b, m_b, BLOCK_K)
                    k_r = load_gradients(p_r, k, U, 3 * U, o_b, m_b, BLOCK_K)
                    a_z = tl.dot(k_z.to(DOT), c_z, a_z, input_precision=PRECISION)
                    a_r = tl.dot(k_r.to(DOT), c_r, a_r, input_precision=PRECISION)
                    if RESET_AFTER:
                        k_s = load_gradients(d_gh_n + o_t, k, U, U, o_b, m_b, BLOCK_K)
                        a_n = tl.dot(k_s.to(DOT), c_n, a_n, input_precision=PRECISION)
            else:
                for k in tl.static_range(NK):
                    k_z = g_z.to(io) if SINGLE else load_gradients(p_z, k, U, 3 * U, o_b, m_b, BLOCK_K)
                    k_r = g_r.to(io) if SINGLE else load_gradients(p_r, k, U, 3 * U, o_b, m_b, BLOCK_K)
                    a_z = tl.dot(k_z.to(DOT), w_z[k], a_z, input_precision=PRECISION)
                    a_r = tl.dot(k_r.to(DOT), w_r[k], a_r, input_precision=PRECISION)
                    if RESET_AFTER:
                        k_s = g_s.to(io) if SINGLE else load_gradients(d_gh_n + o_t, k, U, U, o_b, m_b, BLOCK_K)
                        a_n = tl.dot(k_s.to(DOT), w_n[k], a_n, input_precision=PRECISION)
            if DROPS > 0:
                a_z = a_z * d_z
                a_r = a_r * d_r
                a_n = a_n * d_n
            b_dh += a_z + a_r + a_n
            b_dh = tl.where(m_bh, b_dh, 0.0)
            if HAS_RESET:
                again = tl.load(resets + t.to(tl.int64) * B + o_b, mask=m_b, other=0)[:, None] != 0
                if FRESH_GRADIENT:
                    tl.store(d_fresh + o_t + o_bh, tl.where(again, b_dh, 0.0).to(io), mask=m_bh)
                b_dh = tl.where(again, 0.0, b_dh)

    tl.store(carry + o_bh, b_dh, mask=m_bh)
    if HAS_MASK:
        if PHASE <= 1:
            tl.store(y_carry + o_bh, b_dy, mask=m_bh)
    if PERSISTENT:
        if patience == 0:
            tl.store(faults + i_b, 1)
