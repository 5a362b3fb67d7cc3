"""The forward scan: the recurrent weights stay on the chip for the whole sequence.

    z, r = g(gx_z + h R_z), g(gx_r + h R_r);   n = f(gx_n + r * (h R_n + c_n))  or  f(gx_n + (r * h) R_n)
    h' = z * h + (1 - z) * n

A program owns BLOCK_B rows and BLOCK_H units with all three gates of those units. Invariant at the top of step t: `b_h`
holds the float32 state entering t of the owned block, and `p_h` points to the same state of all units, stored.
Bytes per step and program: reads 3 gx + BLOCK_B * U of the state, writes the state, the output and the saved gates.
One body, three schedules: one program per tile (SINGLE: the state never leaves the registers), several with an exchange
per step, or one launch per step and PHASE (0 both, 1 up to the middle exchange, 2 after it).
"""

import triton
import triton.language as tl

from .exchange import announce, await_round
from .gates import activate
from .weights import load_weights


@triton.jit
def load_steps(gx, t, B, U, o_b, o_h, m_bh, GATE_Z: tl.constexpr, GATE_R: tl.constexpr):
    """Return the owned block of gx at step t, gates z, r, n, in float32."""
    p = gx + (t.to(tl.int64) * B + o_b[:, None]) * (3 * U) + o_h[None, :]
    x_z = tl.load(p + GATE_Z * U, mask=m_bh, other=0.0).to(tl.float32)
    x_r = tl.load(p + GATE_R * U, mask=m_bh, other=0.0).to(tl.float32)
    x_n = tl.load(p + 2 * U, mask=m_bh, other=0.0).to(tl.float32)
    return x_z, x_r, x_n


@triton.jit
def load_chunk(p_state, k, U, o_b, m_b, BLOCK_K: tl.constexpr):
    """Return chunk k (BLOCK_B, BLOCK_K) of a stored (B,U) state, past the first-level cache: others have written it."""
    o_k = k * BLOCK_K + tl.arange(0, BLOCK_K)
    m_bk = m_b[:, None] & (o_k < U)[None, :]
    return tl.load(p_state + o_b[:, None] * U + o_k[None, :], mask=m_bk, other=0.0, cache_modifier=".cg")


@triton.jit
def load_states(
    p_h, b_h, drop, k, U, o_b, m_b, step_size, SINGLE: tl.constexpr, DROPS: tl.constexpr, GATE_Z: tl.constexpr,
    GATE_R: tl.constexpr, BLOCK_K: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Return chunk k of the state for gates z, r, n, each with its dropout mask."""
    if SINGLE:
        b_k = b_h.to(p_h.dtype.element_ty)
    else:
        b_k = load_chunk(p_h, k, U, o_b, m_b, BLOCK_K)
    # Multiplied in the products' type: in bfloat16 the interpreter would multiply the bits.
    b_k = b_k.to(DOT)
    h_z, h_r, h_n = b_k, b_k, b_k
    if DROPS == 1:
        h_n = b_k * load_chunk(drop, k, U, o_b, m_b, BLOCK_K).to(DOT)
        h_z, h_r = h_n, h_n
    elif DROPS == 3:
        h_z = b_k * load_chunk(drop + GATE_Z * step_size, k, U, o_b, m_b, BLOCK_K).to(DOT)
        h_r = b_k * load_chunk(drop + GATE_R * step_size, k, U, o_b, m_b, BLOCK_K).to(DOT)
        h_n = b_k * load_chunk(drop + 2 * step_size, k, U, o_b, m_b, BLOCK_K).to(DOT)
    return h_z, h_r, h_n


@triton.jit(do_not_specialize=["T", "B", "step_begin", "step_end", "patience"])
def gru_forward_kernel(
    gx, u, bias_n, h_first, leaving, out, gates, carry, middle, z_carry, mask, resets, fresh, drop, counters, faults,
    T, B, U, step_begin, step_end, patience, s_u_k, s_u_g, s_fresh_t,
    BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr, NK: tl.constexpr,
    SINGLE: tl.constexpr, PERSISTENT: tl.constexpr, STREAM: tl.constexpr, EXCHANGE: tl.constexpr,
    PHASE: tl.constexpr,
    ACT: tl.constexpr, REC_ACT: tl.constexpr, RESET_AFTER: tl.constexpr, ZERO_MASKED: tl.constexpr,
    REVERSE: tl.constexpr, GATE_Z: tl.constexpr, GATE_R: tl.constexpr, DROPS: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_RESET: tl.constexpr, HAS_FRESH: tl.constexpr, HAS_BIAS: tl.constexpr,
    SAVE_GATES: tl.constexpr, SEPARATE: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
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
    | counters, faults | (tiles,) zeros | int32 |
    """
    i_h, i_b = tl.program_id(0), tl.program_id(1)
    programs = tl.num_programs(0)
    o_b = i_b * BLOCK_B + tl.arange(0, BLOCK_B).to(tl.int64)
    o_h = i_h * BLOCK_H + tl.arange(0, BLOCK_H)
    o_bh = o_b[:, None] * U + o_h[None, :]
    step_size = B.to(tl.int64) * U

    m_b, m_h = o_b < B, o_h < U
    m_bh = m_b[:, None] & m_h[None, :]
    io = out.dtype.element_ty

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
    rounds = 0

    t = T - 1 - step_begin if REVERSE else step_begin
    x_z, x_r, x_n = load_steps(gx, t, B, U, o_b, o_h, m_bh, GATE_Z, GATE_R)
    for step in range(step_begin, step_end):
        t = T - 1 - step if REVERSE else step
        o_t = t.to(tl.int64) * step_size
        # Products with the whole state of the tile's rows.
        if PHASE != 2:
            a_z = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
            a_r = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
            a_n = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
            if STREAM:
                for k in range(NK):
                    h_z, h_r, h_n = load_states(
                        p_h, b_h, drop, k, U, o_b, m_b, step_size, SINGLE, DROPS, GATE_Z, GATE_R, BLOCK_K, DOT
                    )
                    c_z, c_r, c_n = load_weights(u, k, U, o_h, m_h, s_u_k, s_u_g, s_u_g, GATE_Z, GATE_R, BLOCK_K, DOT)
                    a_z = tl.dot(h_z.to(DOT), c_z, a_z, input_precision=PRECISION)
                    a_r = tl.dot(h_r.to(DOT), c_r, a_r, input_precision=PRECISION)
                    if RESET_AFTER:
                        a_n = tl.dot(h_n.to(DOT), c_n, a_n, input_precision=PRECISION)
            else:
                for k in tl.static_range(NK):
                    h_z, h_r, h_n = load_states(
                        p_h, b_h, drop, k, U, o_b, m_b, step_size, SINGLE, DROPS, GATE_Z, GATE_R, BLOCK_K, DOT
                    )
                    a_z = tl.dot(h_z.to(DOT), w_z[k], a_z, input_precision=PRECISION)
                    a_r = tl.dot(h_r.to(DOT), w_r[k], a_r, input_precision=PRECISION)
                    if RESET_AFTER:
                        a_n = tl.dot(h_n.to(DOT), w_n[k], a_n, input_precision=PRECISION)

            b_z = activate(x_z + a_z, REC_ACT)
            b_r = activate(x_r + a_r, REC_ACT)
            if SAVE_GATES:
                tl.store(gates + o_t + o_bh, b_z.to(io), mask=m_bh)
                tl.store(gates + T * step_size + o_t + o_bh, b_r.to(io), mask=m_bh)
        else:
            b_z = tl.load(z_carry + o_bh, mask=m_bh, other=0.0)

        # The candidate; without RESET_AFTER its product needs r of all units first.
        if RESET_AFTER:
            b_g = a_n + b_c[None, :]
            b_n = activate(x_n + b_r * b_g, ACT)
            if SAVE_GATES:
                tl.store(gates + 3 * T * step_size + o_t + o_bh, b_g.to(io), mask=m_bh)
        else:
            if PHASE != 2:
                b_rh = b_r * b_h
                if DROPS > 0:
                    b_rh = b_rh * d_n
                if not SINGLE:
                    tl.store(middle + o_bh, b_rh.to(io), mask=m_bh)
            if PHASE == 1:
                tl.store(z_carry + o_bh, b_z, mask=m_bh)
            if PERSISTENT:
                announce(counters + i_b)
                rounds += 1
                patience = await_round(counters + i_b, rounds * programs, patience)
            if PHASE != 1:
                a_n = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
                if STREAM:
                    for k in range(NK):
                        c_z, c_r, c_n = load_weights(
                            u, k, U, o_h, m_h, s_u_k, s_u_g, s_u_g, GATE_Z, GATE_R, BLOCK_K, DOT
                        )
                        b_k = load_chunk(middle, k, U, o_b, m_b, BLOCK_K)
                        a_n = tl.dot(b_k.to(DOT), c_n, a_n, input_precision=PRECISION)
                else:
                    for k in tl.static_range(NK):
                        b_k = b_rh.to(io) if SINGLE else load_chunk(middle, k, U, o_b, m_b, BLOCK_K)
                        a_n = tl.dot(b_k.to(DOT), w_n[k], a_n, input_precision=PRECISION)
                b_n = activate(x_n + a_n, ACT)

        if PHASE != 1:
            if SAVE_GATES:
                tl.store(gates + 2 * T * step_size + o_t + o_bh, b_n.to(io), mask=m_bh)
            b_new = b_z * b_h + (1.0 - b_z) * b_n
            # What lies outside the tensor must stay finite: it meets zeros of the weights in the next product.
            b_new = tl.where(m_bh, b_new, 0.0)
            if HAS_MASK:
                keep = tl.load(mask + t.to(tl.int64) * B + o_b, mask=m_b, other=0)[:, None] != 0
                b_h = tl.where(keep, b_new, b_h)
                b_y = tl.where(keep, b_new, 0.0 if ZERO_MASKED else b_y)
            else:
                b_h = b_new
                b_y = b_new
            if SEPARATE:
                tl.store(out + o_t + o_bh, b_y.to(io), mask=m_bh)
            if HAS_RESET:
                # The owner applies the next step's reset, so that readers get the state that enters it.
                if step + 1 < T:
                    t_next = t - 1 if REVERSE else t + 1
                    again = tl.load(resets + t_next.to(tl.int64) * B + o_b, mask=m_b, other=0)[:, None] != 0
                    b_fresh = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
                    if HAS_FRESH:
                        p_fresh = fresh + t_next.to(tl.int64) * s_fresh_t + o_bh
                        b_fresh = tl.load(p_fresh, mask=m_bh, other=0.0).to(tl.float32)
                    b_h = tl.where(again, b_fresh, b_h)
            tl.store(leaving + o_t + o_bh, b_h.to(io), mask=m_bh)
            p_h = leaving + o_t
            if PERSISTENT:
                announce(counters + i_b)
            if step + 1 < step_end:
                # Asked for before the wait, so that it arrives during it.
                t_next = t - 1 if REVERSE else t + 1
                x_z, x_r, x_n = load_steps(gx, t_next, B, U, o_b, o_h, m_bh, GATE_Z, GATE_R)
                if PERSISTENT:
                    rounds += 1
                    patience = await_round(counters + i_b, rounds * programs, patience)
                    b_h = tl.where(patience > 0, b_h, float("nan"))

    if PHASE != 1:
        tl.store(carry + o_bh, b_h, mask=m_bh)
    if PERSISTENT:
        if patience == 0:
            tl.store(faults + i_b, 1)
