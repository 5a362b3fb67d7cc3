"""Layer normalisation of the 3U sums of a row, which one program holds: those of gates z, r, n side by side.

    A = (a - mean a) v,  v = 1 / sqrt(var a + epsilon)     normalize
    d_a = v (e - mean e - A mean(e A)),  e = d s           normalize_back, from the gradient d of A s

Sums are (BLOCK_B, BLOCK_H) in float32. What stands past the last unit is zero, stays zero on the way forward, and does
not count; nor do units from COUNTED on, if it is not 0, which stand there for the sake of addresses
(backends/triton/widths.py). The scale s goes as a triple too, each (BLOCK_H,).
"""

import triton
import triton.language as tl


@triton.jit
def load_triple(p, U, o_h, m_h, C: tl.constexpr):
    """Return gates z, r, n of a row (3U,), each (BLOCK_H,) in float32."""
    b_z = tl.load(p + C.GATE_Z * U + o_h, mask=m_h, other=0.0).to(tl.float32)
    b_r = tl.load(p + C.GATE_R * U + o_h, mask=m_h, other=0.0).to(tl.float32)
    b_n = tl.load(p + 2 * U + o_h, mask=m_h, other=0.0).to(tl.float32)
    return b_z, b_r, b_n


@triton.jit
def mean_of_row(b_z, b_r, b_n, U, C: tl.constexpr):
    """Return the means (BLOCK_B,) of the 3U numbers of each row."""
    # Rounded to the nearest: a row without spread then has exactly none.
    if C.COUNTED > 0:
        count = tl.full((C.BLOCK_B,), 3.0 * C.COUNTED, tl.float32)
    else:
        count = tl.full((C.BLOCK_B,), 3.0, tl.float32) * U
    return tl.div_rn(tl.sum(b_z + b_r + b_n, 1), count)


@triton.jit
def normalize(a_z, a_r, a_n, scale, m_h, U, C: tl.constexpr):
    """Return A s of the sums."""
    s_z, s_r, s_n = scale
    if C.COUNTED > 0:
        m_h = tl.arange(0, C.BLOCK_H) < C.COUNTED
    mean = mean_of_row(a_z, a_r, a_n, U, C)[:, None]
    a_z = tl.where(m_h[None, :], a_z - mean, 0.0)
    a_r = tl.where(m_h[None, :], a_r - mean, 0.0)
    a_n = tl.where(m_h[None, :], a_n - mean, 0.0)
    variance = mean_of_row(a_z * a_z, a_r * a_r, a_n * a_n, U, C)
    rstd = tl.rsqrt(variance + C.EPSILON)[:, None]
    a_z = a_z * rstd * s_z[None, :]
    a_r = a_r * rstd * s_r[None, :]
    a_n = a_n * rstd * s_n[None, :]
    return a_z, a_r, a_n


@triton.jit
def load_norm(normal, scale, t, B, U, o_b, o_h, m_b, m_bh, C: tl.constexpr):
    """Return the normalised sums A of a step, gates z, r, n, and v (BLOCK_B,), which stands behind the scale."""
    o_row = t.to(tl.int64) * B + o_b
    p = normal + o_row[:, None] * (3 * U) + o_h[None, :]
    n_z = tl.load(p + C.GATE_Z * U, mask=m_bh, other=0.0)
    n_r = tl.load(p + C.GATE_R * U, mask=m_bh, other=0.0)
    n_n = tl.load(p + 2 * U, mask=m_bh, other=0.0)
    return n_z, n_r, n_n, tl.load(scale + 3 * U + o_row, mask=m_b, other=0.0)


@triton.jit
def normalize_back(g_z, g_r, g_n, normal, scale, kept, U, C: tl.constexpr):
    """Return the gradients of the sums from those of A s; zeros in rows that are not `kept`.

    normal: what `load_norm` returned.
    """
    s_z, s_r, s_n = scale
    n_z, n_r, n_n, rstd = normal
    n_z = n_z.to(tl.float32)
    n_r = n_r.to(tl.float32)
    n_n = n_n.to(tl.float32)
    e_z = g_z * s_z[None, :]
    e_r = g_r * s_r[None, :]
    e_n = g_n * s_n[None, :]
    mean = mean_of_row(e_z, e_r, e_n, U, C)[:, None]
    along = mean_of_row(e_z * n_z, e_r * n_r, e_n * n_n, U, C)[:, None]
    v = rstd[:, None]
    d_z = tl.where(kept, (e_z - mean - n_z * along) * v, 0.0)
    d_r = tl.where(kept, (e_r - mean - n_r * along) * v, 0.0)
    d_n = tl.where(kept, (e_n - mean - n_n * along) * v, 0.0)
    return d_z, d_r, d_n
