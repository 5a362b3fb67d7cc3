"""The gradients that are sums over all steps, of few rows: what a library's products cost to begin would be most of it.

    d_x = d W'    d_W = x' d    d_R = h' d, its n of d_q    biases: d summed

d (N,4U) are the gradients of all rows' pre-activations, [dq | first | second | n] with first and second in the weights'
order; x (N,I) and h (N,U) what entered the products.
"""

from __future__ import annotations

from ..compile import Kernel, helper
from .rows import get, put
from .unpacked import multiply_unpacked, store_3
from .vectors import fma, full, lanes, load, pointer, spread

(
    N, I, U, D, X, X_ROW, W, W_ROW, W_COLUMN, H,
    D_X, D_W, D_U, D_BIAS_X, D_BIAS_H,  # contiguous, 0 where not wanted
    W_BY_COLUMN, U_BY_COLUMN,  # whether D_W is (3U,I) in place of (I,3U), and D_U (3U,U) in place of (U,3U)
) = range(17)  # fmt: skip


@helper
def multiply_transposed(a, i, a_row, M, b, j, b_row, columns, rows, out, o, width):
    """out (M, width)[:, :columns] = a (rows, M)' b (rows, columns)."""
    C, L = 3 * lanes(a), lanes(a)
    if M >= 4 and columns >= C:
        for c in range(0, columns, C):
            column = min(c, columns - C)
            for m in range(0, M, 4):
                first = min(m, M - 4)
                tile(a, i + first, a_row, b, j + column, b_row, rows, out, o + first * width + column, width)
        return
    for m in range(M):
        for c in range(0, columns, L):
            total = full(a, 0.0)
            for n in range(rows):
                total = fma(spread(a, i + m + n * a_row), get(b, j + n * b_row + c, columns - c), total)
            put(out, o + m * width + c, total, columns - c)


@helper
def tile(a, i, a_row, b, j, b_row, rows, out, o, width):
    """Four columns of a by three vectors of b."""
    L = lanes(a)
    a0 = a1 = a2 = b0 = b1 = b2 = c0 = c1 = c2 = d0 = d1 = d2 = full(a, 0.0)
    for _ in range(rows):
        w0, w1, w2 = load(b, j), load(b, j + L), load(b, j + 2 * L)
        v = spread(a, i)
        a0, a1, a2 = fma(v, w0, a0), fma(v, w1, a1), fma(v, w2, a2)
        v = spread(a, i + 1)
        b0, b1, b2 = fma(v, w0, b0), fma(v, w1, b1), fma(v, w2, b2)
        v = spread(a, i + 2)
        c0, c1, c2 = fma(v, w0, c0), fma(v, w1, c1), fma(v, w2, c2)
        v = spread(a, i + 3)
        d0, d1, d2 = fma(v, w0, d0), fma(v, w1, d1), fma(v, w2, d2)
        i += a_row
        j += b_row
    store_3(out, o, a0, a1, a2)
    store_3(out, o + width, b0, b1, b2)
    store_3(out, o + 2 * width, c0, c1, c2)
    store_3(out, o + 3 * width, d0, d1, d2)


@helper
def sum_rows(d, i, width, columns, rows, out, o):
    """out (columns) = the sum of d's rows."""
    for c in range(0, columns, lanes(d)):
        total = get(d, i + c, columns - c)
        for n in range(1, rows):
            total = total + get(d, i + n * width + c, columns - c)
        put(out, o + c, total, columns - c)


def sum_part(plan, like):
    """Write the gradients that are wanted; see above for the plan."""
    rows, inputs, units, x_row = plan[N], plan[I], plan[U], plan[X_ROW]
    d, x, h, w = pointer(plan[D], like), pointer(plan[X], like), pointer(plan[H], like), pointer(plan[W], like)
    d_w, d_u = pointer(plan[D_W], like), pointer(plan[D_U], like)
    d_bias_x, d_bias_h = pointer(plan[D_BIAS_X], like), pointer(plan[D_BIAS_H], like)
    width, gates = 4 * units, 3 * units
    if plan[D_X] != 0:
        d_x = pointer(plan[D_X], like)
        multiply_unpacked(d, units, width, gates, w, plan[W_COLUMN], plan[W_ROW], 0, inputs, d_x, inputs, rows)
    if plan[D_W] != 0 and plan[W_BY_COLUMN] != 0:
        multiply_transposed(d, units, width, gates, x, 0, x_row, inputs, rows, d_w, 0, inputs)
    elif plan[D_W] != 0:
        multiply_transposed(x, 0, x_row, inputs, d, units, width, gates, rows, d_w, 0, gates)
    if plan[D_U] != 0 and plan[U_BY_COLUMN] != 0:
        multiply_transposed(d, units, width, 2 * units, h, 0, units, units, rows, d_u, 0, units)
        multiply_transposed(d, 0, width, units, h, 0, units, units, rows, d_u, 2 * units * units, units)
    elif plan[D_U] != 0:
        multiply_transposed(h, 0, units, units, d, units, width, 2 * units, rows, d_u, 0, gates)
        multiply_transposed(h, 0, units, units, d, 0, width, units, rows, d_u, 2 * units, gates)
    if plan[D_BIAS_X] != 0:
        sum_rows(d, units, width, gates, rows, d_bias_x, 0)
    if plan[D_BIAS_H] != 0:
        sum_rows(d, units, width, 2 * units, rows, d_bias_h, 0)
        sum_rows(d, 0, width, units, rows, d_bias_h, 2 * units)


sums = Kernel(sum_part)
