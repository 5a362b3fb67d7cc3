"""The gates of the resident kernels: those of `gates`, or the hardware's own tanh, exact to 11 bits."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from . import gates

TANH = gl.constexpr(1)
SIGMOID = gl.constexpr(2)

exact = gluon.jit(gates.activate.fn)
slope = gluon.jit(gates.slope.fn)


@gluon.jit
def tanh_of_hardware(a):
    """tanh(a) with a relative error of at most 2^-11 (PTX ISA, "tanh")."""
    return gl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [a], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def activate(a, KIND: gl.constexpr, APPROXIMATE: gl.constexpr):
    """f(a)."""
    if APPROXIMATE and KIND == TANH:
        y = tanh_of_hardware(a)
    elif APPROXIMATE and KIND == SIGMOID:
        y = 0.5 * tanh_of_hardware(0.5 * a) + 0.5
    else:
        y = exact(a, KIND)
    return y
