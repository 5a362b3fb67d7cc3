"""The activations and their derivatives on vectors, of polynomials, in float32 and float64.

    exp x  = 2^n (1 + q(r))    n = the integer nearest x / ln 2, r = x - n ln 2, q(r) = exp r - 1
    tanh x = e / (e + 2)       e = expm1 2x = 2^n q + (2^n - 1), exact near zero

The largest relative errors seen beside float64 (float128 for float64) are in
tests/numba_backend/test_numba_functions.py: 2 units in the last place for exp and sigmoid, 3 for tanh. NaN gives NaN.
Numbers below the smallest normal number are kept.

Source of the polynomials: Cephes (Moshier), expf and exp.
"""

from __future__ import annotations

from numba import types
from numba.extending import overload

from ....activations import LEAKY_SLOPE, SELU_ALPHA, SELU_SCALE, TABLE
from ..compile import helper
from .vectors import Vector, absolute, fma, full, power_of_two, where_above

LINEAR, TANH, SIGMOID, RELU, HARD_SIGMOID, ELU, SELU, SOFTPLUS, SOFTSIGN, EXPONENTIAL, LEAKY_RELU = (
    TABLE[name].kernel_id
    for name in ("linear", "tanh", "sigmoid", "relu", "hard_sigmoid", "elu", "selu", "softplus", "softsign",
                 "exponential", "leaky_relu")
)  # fmt: skip
SELU_EDGE = SELU_SCALE * SELU_ALPHA
LOG2_E = 1.4426950408889634


def is_single(x) -> bool:
    return isinstance(x, Vector) and x.element == types.float32


def split(x):
    """Return n + 1.5 2^m and exp r - 1 of an x whose exp is a normal number; see `power_of_two`."""
    raise NotImplementedError("compiled code alone")


@overload(split)
def _split(x):
    if is_single(x):

        def single(x):
            shifted = fma(x, LOG2_E, 12582912.0)
            n = shifted - 12582912.0
            r = fma(n, 2.12194440e-4, fma(n, -0.693359375, x))
            p = fma(r, 1.9875691500e-4, 1.3981999507e-3)
            p = fma(p, r, 8.3334519073e-3)
            p = fma(p, r, 4.1665795894e-2)
            p = fma(p, r, 1.6666665459e-1)
            p = fma(p, r, 5.0000001201e-1)
            return shifted, fma(p, r * r, r)

        return single

    def double(x):
        shifted = fma(x, LOG2_E, 6755399441055744.0)
        n = shifted - 6755399441055744.0
        r = fma(n, -1.42860682030941723212e-6, fma(n, -6.93145751953125e-1, x))
        s = r * r
        p = fma(fma(s, 1.26177193074810590878e-4, 3.02994407707441961300e-2), s, 9.99999999999999999910e-1) * r
        q = fma(fma(s, 3.00198505138664455042e-6, 2.52448340349684104192e-3), s, 2.27265548208155028766e-1)
        q = fma(q, s, 2.0)
        return shifted, 2.0 * p / (q - p)

    return double


def limits(x):
    """Return the least and the largest x whose exp is a normal number, and beyond which any exp is zero or infinite."""
    raise NotImplementedError("compiled code alone")


@overload(limits)
def _limits(x):
    if is_single(x):
        return lambda x: (-86.5, 88.0, -104.0, 89.0)
    return lambda x: (-707.5, 709.0, -746.0, 710.0)


def half_shift(x):
    """Return 1.5 2^m of `power_of_two`."""
    raise NotImplementedError("compiled code alone")


@overload(half_shift)
def _half_shift(x):
    if is_single(x):
        return lambda x: 12582912.0
    return lambda x: 6755399441055744.0


@helper
def clamp(x, low, high):
    x = where_above(low, x, low, x)
    return where_above(x, high, high, x)


@helper
def exp(x):
    """exp x, infinite where it is; below the least normal number that number."""
    low, _, _, high = limits(x)
    shifted, q = split(clamp(x, low, high))
    # The exponent of the largest numbers is one too many for a normal power of two.
    half = power_of_two(shifted - 1.0)
    return fma(half, q, half) * 2.0


@helper
def exp_everywhere(x):
    """exp x, infinite and denormal results among them."""
    _, _, low, high = limits(x)
    shifted, q = split(clamp(x, low, high))
    shift = half_shift(x)
    n = shifted - shift
    half = fma(n, 0.5, shift)
    other = (n - (half - shift)) + shift
    return (1.0 + q) * power_of_two(half) * power_of_two(other)


@helper
def expm1(x):
    """exp x - 1, limited to finite numbers."""
    low, high, _, _ = limits(x)
    shifted, q = split(clamp(x, low, high))
    power = power_of_two(shifted)
    return fma(power, q, power - 1.0)


@helper
def sigmoid(x):
    return 1.0 / (1.0 + exp(0.0 - x))


def tanh(x):
    """Return e / (e + 2); in float64, whose slopes are held to the last digits, 1 - 2 / (e + 2) where nearer."""
    raise NotImplementedError("compiled code alone")


@overload(tanh)
def _tanh(x):
    if is_single(x):

        def single(x):
            e = expm1(x + x)
            return e / (e + 2.0)

        return single

    def double(x):
        size = absolute(x)
        e = expm1(size + size)
        part = where_above(size, 0.5, 2.0, e) / (e + 2.0)
        positive = where_above(size, 0.5, 1.0 - part, part)
        return where_above(0.0, x, 0.0 - positive, positive)

    return double


def log1p(y):
    """Return log(1 + y) for y in 0..1."""
    raise NotImplementedError("compiled code alone")


@overload(log1p)
def _log1p(y):
    # 2 artanh s = 2 s (1 + s^2/3 + s^4/5 + ...), s = y / (2 + y) <= 1/3: a ninth of the error with every term.
    terms = 9 if is_single(y) else 18

    def of_series(y):
        s = y / (2.0 + y)
        square = s * s
        total = full(y, 1.0 / (2 * terms + 1))
        for k in range(terms - 1, -1, -1):
            total = fma(total, square, 1.0 / (2 * k + 1))
        return 2.0 * s * total

    return of_series


@helper
def activate(kind, x):
    """The activation whose `kernel_id` is `kind`."""
    if kind == TANH:
        return tanh(x)
    if kind == SIGMOID:
        return sigmoid(x)
    return activate_otherwise(kind, x)


@helper
def activate_otherwise(kind, x):
    if kind == RELU:
        return where_above(0.0, x, 0.0, x)
    if kind == HARD_SIGMOID:
        return clamp(fma(x, 0.2, 0.5), 0.0, 1.0)
    if kind == ELU:
        return where_above(x, 0.0, x, expm1(x))
    if kind == SELU:
        return SELU_SCALE * where_above(x, 0.0, x, SELU_ALPHA * expm1(x))
    if kind == SOFTPLUS:
        return where_above(0.0, x, 0.0, x) + log1p(exp_everywhere(0.0 - absolute(x)))
    if kind == SOFTSIGN:
        return x / (1.0 + absolute(x))
    if kind == EXPONENTIAL:
        return exp_everywhere(x)
    if kind == LEAKY_RELU:
        return where_above(x, 0.0, x, LEAKY_SLOPE * x)
    return x


@helper
def slope(kind, y):
    """The derivative of `activate` where its result is y."""
    if kind == TANH:
        return fma(0.0 - y, y, 1.0)
    if kind == SIGMOID:
        return y * (1.0 - y)
    return slope_otherwise(kind, y)


@helper
def slope_otherwise(kind, y):
    if kind == RELU:
        return where_above(y, 0.0, 1.0, 0.0)
    if kind == HARD_SIGMOID:
        return where_above(y, 0.0, where_above(1.0, y, 0.2, 0.0), 0.0)
    if kind == ELU:
        return where_above(y, 0.0, 1.0, y + 1.0)
    if kind == SELU:
        return where_above(y, 0.0, SELU_SCALE, y + SELU_EDGE)
    if kind == SOFTPLUS:
        return 0.0 - expm1(0.0 - y)
    if kind == SOFTSIGN:
        rest = 1.0 - absolute(y)
        return rest * rest
    if kind == EXPONENTIAL:
        return y
    if kind == LEAKY_RELU:
        return where_above(y, 0.0, 1.0, LEAKY_SLOPE)
    return full(y, 1.0)
