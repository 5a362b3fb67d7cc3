"""Products of few rows with weights whose columns lie one by one (torch's): dot products, k in vectors.

    1 row by 8 columns, 4 rows by 2: eight dot products at once

Columns that do not fill the last group are computed with those before them once more.
"""

from __future__ import annotations

from ..compile import helper
from .vectors import add_pairs, fma, full, lanes, load, load_first, pick, store, store_first

COLUMNS, PAIR = 8, 2  # of the dot products of one row, and of four


@helper
def by_dots(a, start, next_row, K, w, next_column, first, end, gap, out, begin, width, rows):
    fours = rows // 4 * 4
    for place in range(0, 3 * gap if gap > 0 else 1, max(gap, 1)):
        last = end + place
        for c in range(first + place, last, PAIR):
            column = min(c, last - PAIR)
            for row in range(0, fours, 4):
                dots_4(a, start + row * next_row, next_row, K, w, column * next_column, next_column,
                       out, begin + row * width + column, width)  # fmt: skip
        for c in range(first + place, last, COLUMNS):
            column = min(c, last - COLUMNS)
            for row in range(fours, rows):
                o = begin + row * width + column
                dots_1(a, start + row * next_row, K, w, column * next_column, next_column, out, o)


@helper
def dots_1(a, i, K, w, p, s, out, o):
    """Eight columns, `s` apart from p on, with one row."""
    L = lanes(a)
    c0 = c1 = c2 = c3 = c4 = c5 = c6 = c7 = full(a, 0.0)
    q, p4 = p, p + 4 * s
    whole = K // L * L
    for k in range(0, whole, L):
        v = load(a, i + k)
        c0, c1 = fma(v, load(w, q), c0), fma(v, load(w, q + s), c1)
        c2, c3 = fma(v, load(w, q + 2 * s), c2), fma(v, load(w, q + 3 * s), c3)
        c4, c5 = fma(v, load(w, p4), c4), fma(v, load(w, p4 + s), c5)
        c6, c7 = fma(v, load(w, p4 + 2 * s), c6), fma(v, load(w, p4 + 3 * s), c7)
        q += L
        p4 += L
    n = K - whole
    if n > 0:
        v = load_first(a, i + whole, n)
        c0, c1 = fma(v, load_first(w, q, n), c0), fma(v, load_first(w, q + s, n), c1)
        c2, c3 = fma(v, load_first(w, q + 2 * s, n), c2), fma(v, load_first(w, q + 3 * s, n), c3)
        c4, c5 = fma(v, load_first(w, p4, n), c4), fma(v, load_first(w, p4 + s, n), c5)
        c6, c7 = fma(v, load_first(w, p4 + 2 * s, n), c6), fma(v, load_first(w, p4 + 3 * s, n), c7)
    first = add_pairs(add_pairs(c0, c1), add_pairs(c2, c3))
    second = add_pairs(add_pairs(c4, c5), add_pairs(c6, c7))
    if L == 16:
        both = add_pairs(first, second)
        store_first(out, o, add_pairs(both, both), 8)
    elif L == 8:
        store(out, o, add_pairs(first, second))
    else:
        store(out, o, first)
        store(out, o + 4, second)


@helper
def dots_4(a, i, next_row, K, w, p, s, out, o, width):
    """Two columns with four rows."""
    L = lanes(a)
    a0 = a1 = b0 = b1 = c0 = c1 = d0 = d1 = full(a, 0.0)
    whole = K // L * L
    for k in range(0, whole, L):
        w0, w1, j = load(w, p + k), load(w, p + k + s), i + k
        v = load(a, j)
        a0, a1 = fma(v, w0, a0), fma(v, w1, a1)
        v = load(a, j + next_row)
        b0, b1 = fma(v, w0, b0), fma(v, w1, b1)
        v = load(a, j + 2 * next_row)
        c0, c1 = fma(v, w0, c0), fma(v, w1, c1)
        v = load(a, j + 3 * next_row)
        d0, d1 = fma(v, w0, d0), fma(v, w1, d1)
    n = K - whole
    if n > 0:
        w0, w1, j = load_first(w, p + whole, n), load_first(w, p + whole + s, n), i + whole
        v = load_first(a, j, n)
        a0, a1 = fma(v, w0, a0), fma(v, w1, a1)
        v = load_first(a, j + next_row, n)
        b0, b1 = fma(v, w0, b0), fma(v, w1, b1)
        v = load_first(a, j + 2 * next_row, n)
        c0, c1 = fma(v, w0, c0), fma(v, w1, c1)
        v = load_first(a, j + 3 * next_row, n)
        d0, d1 = fma(v, w0, d0), fma(v, w1, d1)
    first = add_pairs(add_pairs(a0, a1), add_pairs(b0, b1))
    second = add_pairs(add_pairs(c0, c1), add_pairs(d0, d1))
    if L >= 8:
        both = add_pairs(first, second)
        both = add_pairs(both, both) if L == 16 else both
        put_pair(both, 0, out, o)
        put_pair(both, 2, out, o + width)
        put_pair(both, 4, out, o + 2 * width)
        put_pair(both, 6, out, o + 3 * width)
    else:
        put_pair(first, 0, out, o)
        put_pair(first, 2, out, o + width)
        put_pair(second, 0, out, o + 2 * width)
        put_pair(second, 2, out, o + 3 * width)


@helper
def put_pair(vector, lane, out, o):
    out[o] = pick(vector, lane)
    out[o + 1] = pick(vector, lane + 1)
