"""The pointwise maths of the kernels: activations and their derivatives, the latter from the output alone.

    y = f(a)        activate(a, KIND)
    dy/da = f'(y)   slope(y, KIND)

KIND is `kernel_id` of `tritongru.activations.TABLE`. Everything is float32.
"""

import triton
import triton.language as tl

LINEAR = tl.constexpr(0)
TANH = tl.constexpr(1)
SIGMOID = tl.constexpr(2)
RELU = tl.constexpr(3)
HARD_SIGMOID = tl.constexpr(4)
ELU = tl.constexpr(5)
SELU = tl.constexpr(6)
SOFTPLUS = tl.constexpr(7)
SOFTSIGN = tl.constexpr(8)
EXPONENTIAL = tl.constexpr(9)
LEAKY_RELU = tl.constexpr(10)
SELU_ALPHA = tl.constexpr(1.6732632423543772)
SELU_SCALE = tl.constexpr(1.0507009873554805)


@triton.jit
def sigmoid(a):
    return 1.0 / (1.0 + tl.exp(-a))


@triton.jit
def tanh(a):
    # From e <= 1 nothing overflows and no digits are lost near 1. Near 0, where they are, five terms of the series do.
    e = tl.exp(-2.0 * tl.abs(a))
    y = 1.0 - 2.0 * e / (1.0 + e)
    s = a * a
    series = a * (1.0 + s * (-1.0 / 3.0 + s * (2.0 / 15.0 + s * (-17.0 / 315.0 + s * (62.0 / 2835.0)))))
    return tl.where(s < 0.0625, series, tl.where(a < 0.0, -y, y))


@triton.jit
def expm1(a):
    """exp(a) - 1 for a <= 0, with all digits near 0."""
    return tanh(0.5 * a) * (tl.exp(a) + 1.0)


@triton.jit
def log1p(e):
    """log(1 + e) for e >= 0, with all digits near 0: what 1 + e rounds away is put right by the factor."""
    u = 1.0 + e
    rounded = u - 1.0
    return tl.where(rounded == 0.0, e, tl.log(u) * (e / tl.where(rounded == 0.0, 1.0, rounded)))


@triton.jit
def activate(a, KIND: tl.constexpr):
    """f(a). Comparisons are written so that NaN stays NaN, as in torch."""
    y = a
    if KIND == TANH:
        y = tanh(a)
    elif KIND == SIGMOID:
        y = sigmoid(a)
    elif KIND == RELU:
        y = tl.where(a < 0.0, 0.0, a)
    elif KIND == HARD_SIGMOID:
        y = 0.2 * a + 0.5
        y = tl.where(y < 0.0, 0.0, y)
        y = tl.where(y > 1.0, 1.0, y)
    elif KIND == ELU:
        y = tl.where(a > 0.0, a, expm1(tl.where(a > 0.0, 0.0, a)))
    elif KIND == SELU:
        y = SELU_SCALE * tl.where(a > 0.0, a, SELU_ALPHA * expm1(tl.where(a > 0.0, 0.0, a)))
    elif KIND == SOFTPLUS:
        y = tl.where(a < 0.0, 0.0, a) + log1p(tl.exp(-tl.abs(a)))
    elif KIND == SOFTSIGN:
        y = a / (1.0 + tl.abs(a))
    elif KIND == EXPONENTIAL:
        y = tl.exp(a)
    elif KIND == LEAKY_RELU:
        y = tl.where(a > 0.0, a, 0.2 * a)
    return y


@triton.jit
def slope(y, KIND: tl.constexpr):
    """f'(a) written in y = f(a)."""
    d = tl.where(y == y, 1.0, 1.0)  # of y's shape, and of its layout
    if KIND == TANH:
        d = 1.0 - y * y
    elif KIND == SIGMOID:
        d = y * (1.0 - y)
    elif KIND == RELU:
        d = tl.where(y > 0.0, 1.0, 0.0)
    elif KIND == HARD_SIGMOID:
        d = tl.where((y > 0.0) & (y < 1.0), 0.2, 0.0)
    elif KIND == ELU:
        d = tl.where(y > 0.0, 1.0, y + 1.0)
    elif KIND == SELU:
        d = tl.where(y > 0.0, SELU_SCALE, y + SELU_SCALE * SELU_ALPHA)
    elif KIND == SOFTPLUS:
        d = -expm1(-y)
    elif KIND == SOFTSIGN:
        d = (1.0 - tl.abs(y)) * (1.0 - tl.abs(y))
    elif KIND == EXPONENTIAL:
        d = y
    elif KIND == LEAKY_RELU:
        d = tl.where(y > 0.0, 1.0, 0.2)
    return d
