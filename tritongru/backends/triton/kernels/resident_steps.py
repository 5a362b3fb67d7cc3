"""What a program of the resident kernels loads for one step: the inputs of its rows and units, before they are used."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .resident_layout import EACH

_EACH = gl.constexpr(EACH)


@gluon.jit
def time_of(step, T, reverse, C: gl.constexpr):
    """Return the index of a step; `reverse`: of this member, where each has a direction of its own."""
    if C.REVERSE == _EACH:
        t = gl.where(reverse, T - 1 - step, step)
    elif C.REVERSE:
        t = T - 1 - step
    else:
        t = step
    return t


@gluon.jit
def load_owned(p, m, C: gl.constexpr):
    """Load elements of the owned block: rows are always there, units are not where they end within a block."""
    if C.WHOLE:
        value = gl.load(p)
    else:
        value = gl.load(p, mask=m, other=0.0)
    return value


@gluon.jit
def load_step(gx, mask, resets, step, T, B, step_size, o_b, o_bg, m_h, reverse, C: gl.constexpr):
    """Return the inputs of a step: the owned block of gx, gates z, r, n; the mask; the resets of the step after it."""
    t = time_of(step, T, reverse, C)
    p = gx + t.to(gl.int64) * (3 * step_size) + o_bg
    x_z = load_owned(p + C.GATE_Z * C.U, m_h, C)
    x_r = load_owned(p + C.GATE_R * C.U, m_h, C)
    x_n = load_owned(p + 2 * C.U, m_h, C)
    keep, again = o_b, o_b
    if C.HAS_MASK:
        keep = gl.load(mask + t.to(gl.int64) * B + o_b)
    if C.HAS_RESET:
        t_next = time_of(gl.minimum(step + 1, T - 1), T, reverse, C)
        again = gl.load(resets + t_next.to(gl.int64) * B + o_b)
    return x_z, x_r, x_n, keep, again


@gluon.jit
def load_back_step(
    d_out, gates, entering, mask, resets, step, T, B, step_size, o_b, o_bh, m_h, reverse, C: gl.constexpr
):
    """Return the inputs of a step: z, r, n, h R_n + c_n, the state entering, the output's gradient; mask and resets."""
    t = time_of(T - 1 - step, T, reverse, C)
    o_t = t.to(gl.int64) * step_size + o_bh
    b_z = load_owned(gates + o_t, m_h, C)
    b_r = load_owned(gates + T * step_size + o_t, m_h, C)
    b_n = load_owned(gates + 2 * T * step_size + o_t, m_h, C)
    b_h = load_owned(entering + o_t, m_h, C)
    # What is not there is never used.
    b_g, b_o = b_h, b_h
    if C.RESET_AFTER:
        b_g = load_owned(gates + 3 * T * step_size + o_t, m_h, C)
    if C.HAS_OUT:
        b_o = load_owned(d_out + o_t, m_h, C)
    keep, again = o_b, o_b
    if C.HAS_MASK:
        keep = gl.load(mask + t.to(gl.int64) * B + o_b)
    if C.HAS_RESET:
        again = gl.load(resets + t.to(gl.int64) * B + o_b)
    return b_z, b_r, b_n, b_g, b_h, b_o, keep, again


@gluon.jit
def load_drops(drop, step_size, o_bh, m_h, C: gl.constexpr):
    """Return the owned block of the recurrent dropout masks, float32: of all gates, or of gates z, r, n."""
    drops = ()
    if C.DROPS == 1:
        drops = (load_owned(drop + o_bh, m_h, C).to(gl.float32),)
    elif C.DROPS == 3:
        d_z = load_owned(drop + C.GATE_Z * step_size + o_bh, m_h, C).to(gl.float32)
        d_r = load_owned(drop + C.GATE_R * step_size + o_bh, m_h, C).to(gl.float32)
        d_n = load_owned(drop + 2 * step_size + o_bh, m_h, C).to(gl.float32)
        drops = (d_z, d_r, d_n)
    return drops


@gluon.jit
def times_masks(value, drops):
    """Return a tuple: `value` times each of the masks, or itself where there are none."""
    values = ()
    for i in gl.static_range(len(drops)):
        values = values + (value * drops[i],)
    if len(drops) == 0:
        values = (value,)
    return values
