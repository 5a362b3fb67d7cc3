"""One chunk of the recurrent weights, for the units a program owns.

    forward:  R_g[chunk, owned]        backward:  R_g'[chunk, owned] = R_g[owned, chunk]

Both are the same load with the two strides exchanged. A persistent program loads its chunks once, before the time loop;
a program of one step streams them.
"""

import triton
import triton.language as tl


@triton.jit
def load_weights(
    u, k, U, o_h, m_h, s_chunk, s_own, s_gate, GATE_Z: tl.constexpr, GATE_R: tl.constexpr, BLOCK_K: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """Return chunk `k` (BLOCK_K, BLOCK_H) of the three gates z, r, n; zeros outside the matrix."""
    o_k = k * BLOCK_K + tl.arange(0, BLOCK_K)
    m_kh = (o_k < U)[:, None] & m_h[None, :]
    p_u = u + o_k[:, None].to(tl.int64) * s_chunk + o_h[None, :].to(tl.int64) * s_own
    w_z = tl.load(p_u + GATE_Z * U * s_gate, mask=m_kh, other=0.0).to(DOT)
    w_r = tl.load(p_u + GATE_R * U * s_gate, mask=m_kh, other=0.0).to(DOT)
    w_n = tl.load(p_u + 2 * U * s_gate, mask=m_kh, other=0.0).to(DOT)
    return w_z, w_r, w_n
