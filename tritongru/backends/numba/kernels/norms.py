"""Layer normalisation of a row of sums: 3U numbers, each gate's U filled up to P, in order z, r, n (docs/math.md).

    A = (a - mean a) v,  v = 1 / sqrt(var a + epsilon)     on the way forward, the result is A s
    d_a = v (e - mean e - A mean(e A)),  e = d s           on the way back, from the gradient d of A s

What fills a row up is zero, stays zero, and does not count. The scale s (3U,) is in the weights' order of the gates.
"""

from __future__ import annotations

from ..compile import helper
from .rows import get, put
from .vectors import add_pairs, fma, full, lanes, load, square_root, store


@helper
def sum_lanes(total):
    """The sum of all numbers of a vector, in each lane."""
    total = add_pairs(total, total)
    total = add_pairs(total, total)
    if lanes(total) >= 8:
        total = add_pairs(total, total)
    if lanes(total) == 16:
        total = add_pairs(total, total)
    return total


@helper
def normalize_row(sums, a, gx, i, is_joint, scale, z_at, r_at, U, P, epsilon):
    """sums[a : a + 3P] = A s of what stands there; of the sum with gx[i : i + 3P] where joint, which is then zero.

    Args:
        z_at, r_at: where z and r begin in `scale`. epsilon: one number, behind a pointer.
    """
    L, zero = lanes(sums), full(sums, 0.0)
    total = square = zero
    for j in range(0, 3 * P, L):
        value = load(sums, a + j)
        if is_joint:
            value = value + load(gx, i + j)
            store(sums, a + j, value)
            store(gx, i + j, zero)
        total = total + value
    mean = sum_lanes(total) / (3.0 * U)
    for gate in range(3):
        for j in range(0, P, L):
            o = a + gate * P + j
            put(sums, o, load(sums, o) - mean, U - j)
            value = get(sums, o, U - j)
            square = fma(value, value, square)
    rstd = 1.0 / square_root(sum_lanes(square) / (3.0 * U) + epsilon[0])
    for gate in range(3):
        at = z_at if gate == 0 else r_at if gate == 1 else 2 * U
        for j in range(0, P, L):
            o = a + gate * P + j
            store(sums, o, load(sums, o) * rstd * get(scale, at + j, U - j))


@helper
def normalize_row_back(d, a, U, P, normal, d_sums, i, rstd, row, scale, z_at, r_at):
    """d[a : a + 3P] = d_a of what stands there, the order n, z, r; d_sums[i : i + 3U] the same numbers.

    Args:
        normal: A, row by row as `d_sums` is, with n at 0, z at U + z_at and r at U + r_at. rstd: v by row.
    """
    L, zero = lanes(d), full(d, 0.0)
    total = along = zero
    for gate in range(3):
        at = -U if gate == 0 else z_at if gate == 1 else r_at
        of_scale = 2 * U if gate == 0 else at
        for j in range(0, P, L):
            o = a + gate * P + j
            value = load(d, o) * get(scale, of_scale + j, U - j)
            store(d, o, value)
            total = total + value
            along = fma(value, get(normal, i + U + at + j, U - j), along)
    mean, mean_along = sum_lanes(total) / (3.0 * U), sum_lanes(along) / (3.0 * U)
    for gate in range(3):
        at = -U if gate == 0 else z_at if gate == 1 else r_at
        for j in range(0, P, L):
            o, k = a + gate * P + j, i + U + at + j
            value = (load(d, o) - mean - get(normal, k, U - j) * mean_along) * rstd[row]
            put(d, o, value, U - j)
            put(d_sums, k, value, U - j)
