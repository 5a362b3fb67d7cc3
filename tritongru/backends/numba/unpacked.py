"""Products of few rows with weights as they lie in memory, in either layout: for calls too short to pack anything.

    columns side by side (Keras, (K,N)):   4 rows or 1 by 24 columns, as the packed tiles with rows of W further apart
    columns one by one (torch, (N,K)):     4 rows by 3 columns or 1 row by 12: twelve dot products, k in vectors

Columns that do not fill the last group are computed with those before them once more.
"""

from __future__ import annotations

from .compile import helper
from .vectors import fma, full, lanes, load, load_first, spread, store, sum_lanes

COLUMNS = 12  # of one row's dot products


@helper
def multiply_unpacked(a, start, next_row, K, w, next_k, next_column, first, end, out, width, rows):
    """out (rows, width)[:, first:end] = a (rows, K) W[:, first:end]."""
    if next_column == 1 and end - first >= 3 * lanes(a):
        by_columns(a, start, next_row, K, w, next_k, first, end, out, width, rows)
    elif next_k == 1 and end - first >= COLUMNS:
        by_dots(a, start, next_row, K, w, next_column, first, end, out, width, rows)
    else:
        for row in range(rows):
            for column in range(first, end):
                total = a[0] * 0
                for k in range(K):
                    total += a[start + row * next_row + k] * w[k * next_k + column * next_column]
                out[row * width + column] = total


@helper
def by_columns(a, start, next_row, K, w, next_k, first, end, out, width, rows):
    C, fours = 3 * lanes(a), rows // 4 * 4
    for c in range(first, end, C):
        column = min(c, end - C)
        for row in range(0, fours, 4):
            columns_4(a, start + row * next_row, next_row, K, w, column, next_k, out, row * width + column, width)
        for row in range(fours, rows):
            columns_1(a, start + row * next_row, K, w, column, next_k, out, row * width + column)


@helper
def columns_1(a, i, K, w, p, next_k, out, o):
    L = lanes(a)
    a0 = a1 = a2 = b0 = b1 = b2 = c0 = c1 = c2 = d0 = d1 = d2 = full(a, 0.0)
    whole = K // 4 * 4
    for k in range(0, whole, 4):
        v = spread(a, i + k)
        a0, a1, a2 = fma(v, load(w, p), a0), fma(v, load(w, p + L), a1), fma(v, load(w, p + 2 * L), a2)
        p += next_k
        v = spread(a, i + k + 1)
        b0, b1, b2 = fma(v, load(w, p), b0), fma(v, load(w, p + L), b1), fma(v, load(w, p + 2 * L), b2)
        p += next_k
        v = spread(a, i + k + 2)
        c0, c1, c2 = fma(v, load(w, p), c0), fma(v, load(w, p + L), c1), fma(v, load(w, p + 2 * L), c2)
        p += next_k
        v = spread(a, i + k + 3)
        d0, d1, d2 = fma(v, load(w, p), d0), fma(v, load(w, p + L), d1), fma(v, load(w, p + 2 * L), d2)
        p += next_k
    for k in range(whole, K):
        v = spread(a, i + k)
        a0, a1, a2 = fma(v, load(w, p), a0), fma(v, load(w, p + L), a1), fma(v, load(w, p + 2 * L), a2)
        p += next_k
    store(out, o, (a0 + b0) + (c0 + d0))
    store(out, o + L, (a1 + b1) + (c1 + d1))
    store(out, o + 2 * L, (a2 + b2) + (c2 + d2))


@helper
def columns_4(a, i, next_row, K, w, p, next_k, out, o, width):
    L = lanes(a)
    a0 = a1 = a2 = b0 = b1 = b2 = c0 = c1 = c2 = d0 = d1 = d2 = full(a, 0.0)
    for k in range(i, i + K):
        w0, w1, w2 = load(w, p), load(w, p + L), load(w, p + 2 * L)
        v = spread(a, k)
        a0, a1, a2 = fma(v, w0, a0), fma(v, w1, a1), fma(v, w2, a2)
        v = spread(a, k + next_row)
        b0, b1, b2 = fma(v, w0, b0), fma(v, w1, b1), fma(v, w2, b2)
        v = spread(a, k + 2 * next_row)
        c0, c1, c2 = fma(v, w0, c0), fma(v, w1, c1), fma(v, w2, c2)
        v = spread(a, k + 3 * next_row)
        d0, d1, d2 = fma(v, w0, d0), fma(v, w1, d1), fma(v, w2, d2)
        p += next_k
    store_3(out, o, a0, a1, a2)
    store_3(out, o + width, b0, b1, b2)
    store_3(out, o + 2 * width, c0, c1, c2)
    store_3(out, o + 3 * width, d0, d1, d2)


@helper
def store_3(out, o, a, b, c):
    store(out, o, a)
    store(out, o + lanes(out), b)
    store(out, o + 2 * lanes(out), c)


@helper
def by_dots(a, start, next_row, K, w, next_column, first, end, out, width, rows):
    fours = rows // 4 * 4
    for row in range(0, fours, 4):
        for c in range(first, end, 3):
            column = min(c, end - 3)
            dots_4(a, start + row * next_row, next_row, K, w, column * next_column, next_column,
                   out, row * width + column, width)  # fmt: skip
    for row in range(fours, rows):
        for c in range(first, end, COLUMNS):
            column = min(c, end - COLUMNS)
            o = row * width + column
            dots_1(a, start + row * next_row, K, w, column * next_column, next_column, out, o)


@helper
def part_of(start, index, count):
    """Read a vector of which `count` numbers are there, or all."""
    return load(start, index) if count >= lanes(start) else load_first(start, index, count)


@helper
def dots_1(a, i, K, w, p, s, out, o):
    """Twelve columns, `s` apart from p on, with one row."""
    L = lanes(a)
    c0 = c1 = c2 = c3 = c4 = c5 = c6 = c7 = c8 = c9 = c10 = c11 = full(a, 0.0)
    for k in range(0, K, L):
        n = K - k
        v = part_of(a, i + k, n)
        q = p + k
        if n < L:
            c0, c1, c2 = fma(v, load_first(w, q, n), c0), fma(v, load_first(w, q + s, n), c1), c2
            c2, c3 = fma(v, load_first(w, q + 2 * s, n), c2), fma(v, load_first(w, q + 3 * s, n), c3)
            c4, c5 = fma(v, load_first(w, q + 4 * s, n), c4), fma(v, load_first(w, q + 5 * s, n), c5)
            c6, c7 = fma(v, load_first(w, q + 6 * s, n), c6), fma(v, load_first(w, q + 7 * s, n), c7)
            c8, c9 = fma(v, load_first(w, q + 8 * s, n), c8), fma(v, load_first(w, q + 9 * s, n), c9)
            c10, c11 = fma(v, load_first(w, q + 10 * s, n), c10), fma(v, load_first(w, q + 11 * s, n), c11)
        else:
            c0, c1, c2 = fma(v, load(w, q), c0), fma(v, load(w, q + s), c1), fma(v, load(w, q + 2 * s), c2)
            q += 3 * s
            c3, c4, c5 = fma(v, load(w, q), c3), fma(v, load(w, q + s), c4), fma(v, load(w, q + 2 * s), c5)
            q += 3 * s
            c6, c7, c8 = fma(v, load(w, q), c6), fma(v, load(w, q + s), c7), fma(v, load(w, q + 2 * s), c8)
            q += 3 * s
            c9, c10, c11 = fma(v, load(w, q), c9), fma(v, load(w, q + s), c10), fma(v, load(w, q + 2 * s), c11)
    sum_3(out, o, c0, c1, c2)
    sum_3(out, o + 3, c3, c4, c5)
    sum_3(out, o + 6, c6, c7, c8)
    sum_3(out, o + 9, c9, c10, c11)


@helper
def sum_3(out, o, a, b, c):
    out[o] = sum_lanes(a)
    out[o + 1] = sum_lanes(b)
    out[o + 2] = sum_lanes(c)


@helper
def dots_4(a, i, next_row, K, w, p, s, out, o, width):
    """Three columns with four rows."""
    L = lanes(a)
    a0 = a1 = a2 = b0 = b1 = b2 = c0 = c1 = c2 = d0 = d1 = d2 = full(a, 0.0)
    for k in range(0, K, L):
        n, q, j = K - k, p + k, i + k
        w0, w1, w2 = part_of(w, q, n), part_of(w, q + s, n), part_of(w, q + 2 * s, n)
        v = part_of(a, j, n)
        a0, a1, a2 = fma(v, w0, a0), fma(v, w1, a1), fma(v, w2, a2)
        v = part_of(a, j + next_row, n)
        b0, b1, b2 = fma(v, w0, b0), fma(v, w1, b1), fma(v, w2, b2)
        v = part_of(a, j + 2 * next_row, n)
        c0, c1, c2 = fma(v, w0, c0), fma(v, w1, c1), fma(v, w2, c2)
        v = part_of(a, j + 3 * next_row, n)
        d0, d1, d2 = fma(v, w0, d0), fma(v, w1, d1), fma(v, w2, d2)
    sum_3(out, o, a0, a1, a2)
    sum_3(out, o + width, b0, b1, b2)
    sum_3(out, o + 2 * width, c0, c1, c2)
    sum_3(out, o + 3 * width, d0, d1, d2)
