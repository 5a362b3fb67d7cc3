"""Products of few rows with weights whose columns lie one by one (torch's): dot products, k in vectors.

    1 row by 8 columns, 4 rows by 2: eight dot products at once
    4 rows by 4 with AVX-512, which has registers for sixteen

Columns that do not fill the last group are computed with those before them once more.
"""

from __future__ import annotations

from ..compile import helper
from .vector_type import WIDTH
from .vectors import add_pairs, fma, full, lanes, load, load_first, store, store_first, store_fours, store_pairs

COLUMNS, ACROSS = 8, WIDTH // 16  # of the dot products of one row, and of four


@helper
def by_dots(a, start, next_row, K, w, next_column, first, end, gap, out, begin, width, rows, back):
    fours, ranges, columns = rows // 4 * 4, 3 if gap > 0 else 1, end - first
    for turn in range(ranges):
        left = first + (ranges - 1 - turn if back else turn) * gap
        last, groups = left + columns, (columns + ACROSS - 1) // ACROSS
        for group in range(groups if fours > 0 else 0):
            column = min(left + (groups - 1 - group if back else group) * ACROSS, last - ACROSS)
            for row in range(0, fours, 4):
                i, p, o = start + row * next_row, column * next_column, begin + row * width + column
                dots_4(a, i, next_row, K, w, p, next_column, out, o, width)
        groups = (columns + COLUMNS - 1) // COLUMNS
        for group in range(groups if fours < rows else 0):
            column = min(left + (groups - 1 - group if back else group) * COLUMNS, last - COLUMNS)
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
    """As many columns as `ACROSS` with four rows."""
    L = lanes(a)
    a_sums = b_sums = c_sums = d_sums = zeros_across(a)
    whole = K // L * L
    for k in range(0, whole, L):
        v, j = load_across(w, p + k, s), i + k
        a_sums = fma_across(load(a, j), v, a_sums)
        b_sums = fma_across(load(a, j + next_row), v, b_sums)
        c_sums = fma_across(load(a, j + 2 * next_row), v, c_sums)
        d_sums = fma_across(load(a, j + 3 * next_row), v, d_sums)
    n = K - whole
    if n > 0:
        v, j = load_first_across(w, p + whole, s, n), i + whole
        a_sums = fma_across(load_first(a, j, n), v, a_sums)
        b_sums = fma_across(load_first(a, j + next_row, n), v, b_sums)
        c_sums = fma_across(load_first(a, j + 2 * next_row, n), v, c_sums)
        d_sums = fma_across(load_first(a, j + 3 * next_row, n), v, d_sums)
    first = add_pairs(add_across(a_sums), add_across(b_sums))
    second = add_pairs(add_across(c_sums), add_across(d_sums))
    if L == 4 * ACROSS:
        store_across(out, o, width, add_pairs(first, second))
    else:
        store_across(out, o, width, first)
        store_across(out, o + 2 * width, width, second)


# Of the columns that four rows are multiplied with at once: zeros, their vectors, a vector by each added to their sums,
# and their sums joined, each a part of one vector.
if ACROSS == 4:
    store_across = store_fours

    @helper
    def zeros_across(a):
        zero = full(a, 0.0)
        return zero, zero, zero, zero

    @helper
    def load_across(w, q, s):
        return load(w, q), load(w, q + s), load(w, q + 2 * s), load(w, q + 3 * s)

    @helper
    def load_first_across(w, q, s, n):
        return load_first(w, q, n), load_first(w, q + s, n), load_first(w, q + 2 * s, n), load_first(w, q + 3 * s, n)

    @helper
    def fma_across(v, w, c):
        return fma(v, w[0], c[0]), fma(v, w[1], c[1]), fma(v, w[2], c[2]), fma(v, w[3], c[3])

    @helper
    def add_across(c):
        return add_pairs(add_pairs(c[0], c[1]), add_pairs(c[2], c[3]))
else:
    store_across = store_pairs

    @helper
    def zeros_across(a):
        return full(a, 0.0), full(a, 0.0)

    @helper
    def load_across(w, q, s):
        return load(w, q), load(w, q + s)

    @helper
    def load_first_across(w, q, s, n):
        return load_first(w, q, n), load_first(w, q + s, n)

    @helper
    def fma_across(v, w, c):
        return fma(v, w[0], c[0]), fma(v, w[1], c[1])

    @helper
    def add_across(c):
        return add_pairs(c[0], c[1])
