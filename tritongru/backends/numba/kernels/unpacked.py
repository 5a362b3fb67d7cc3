"""Products of few rows with weights as they lie in memory, in either layout: for calls too short to pack anything.

    columns side by side (Keras, (K,N)):   4 rows or 1 by 3 vectors, as the packed tiles with rows of W further apart;
                                           1 row by a matrix beyond the second cache, four rows of W from end to end;
                                           1 row by a vector where there are fewer columns
    columns one by one (torch, (N,K)):     4 rows by 2 columns or 1 row by 8: eight dot products, k in vectors;
                                           from 8 rows on 3 vectors of columns are turned, and 4 rows multiplied by them

Columns that do not fill the last group are computed with those before them once more.
"""

from __future__ import annotations

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..compile import helper
from .vector_type import PANEL, count_lanes
from .vectors import (
    add_pairs,
    fma,
    full,
    item_size,
    lanes,
    load,
    load_first,
    pick,
    spread,
    store,
    store_first,
    store_turned,
)

COLUMNS, PAIR = 8, 2  # of the dot products of one row, and of four
# Rows from which turning columns takes less time than it saves (seen on an AMD EPYC with AVX2, no other was tried), and
# how long the parts are that are turned at a time.
TURNED_ROWS, BLOCK = 8, 256
# Bytes of a matrix from which one row reads it in order: tiles of a few columns jump from row to row, which costs the
# more the further away the matrix lies. On an AMD EPYC with 512 KiB of second cache.
LARGE = 1 << 18


@helper
def multiply_unpacked(a, start, next_row, K, w, next_k, next_column, first, end, out, width, rows):
    """out (rows, width)[:, first:end] = a (rows, K) W[:, first:end]."""
    if next_column == 1 and end - first < 3 * lanes(a):
        by_vectors(a, start, next_row, K, w, next_k, first, end, out, width, rows)
    elif next_column == 1:
        by_columns(a, start, next_row, K, w, next_k, first, end, out, width, rows)
    elif next_k == 1 and rows >= TURNED_ROWS and end - first >= 3 * lanes(a):
        by_turned_columns(a, start, next_row, K, w, next_column, first, end, out, width, rows)
    elif next_k == 1 and end - first >= COLUMNS:
        by_dots(a, start, next_row, K, w, next_column, first, end, out, 0, width, rows)
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
    is_large = K * (end - first) * item_size(a[0]) >= LARGE
    for c in range(first, end, C):
        column = min(c, end - C)
        for row in range(0, fours, 4):
            i, o = start + row * next_row, row * width + column
            columns_4(a, i, next_row, 1, K, w, column, next_k, out, o, width, False)
        for row in range(fours, 0 if is_large else rows):
            columns_1(a, start + row * next_row, K, w, column, next_k, out, row * width + column)
    for row in range(fours, rows if is_large else 0):
        stream_1(a, start + row * next_row, K, w, next_k, first, end, out, row * width)


@helper
def by_vectors(a, start, next_row, K, w, next_k, first, end, out, width, rows):
    L = lanes(a)
    for c in range(first, end, L):
        count = min(L, end - c)
        for row in range(rows):
            i, o = start + row * next_row, row * width + c
            total = full(a, 0.0)
            if count == L:
                for k in range(K):
                    total = fma(spread(a, i + k), load(w, k * next_k + c), total)
                store(out, o, total)
            else:
                for k in range(K):
                    total = fma(spread(a, i + k), load_first(w, k * next_k + c, count), total)
                store_first(out, o, total, count)


@helper
def stream_1(a, i, K, w, next_k, first, end, out, o):
    """A row by all columns, four rows of W at a time."""
    L, whole = lanes(a), K // 4 * 4
    last = first + (end - first) // L * L
    for c in range(first, end):
        out[o + c] = 0
    for k in range(0, whole, 4):
        p0 = k * next_k
        p1, p2, p3 = p0 + next_k, p0 + 2 * next_k, p0 + 3 * next_k
        v0, v1, v2, v3 = spread(a, i + k), spread(a, i + k + 1), spread(a, i + k + 2), spread(a, i + k + 3)
        for c in range(first, last, L):
            total = fma(v1, load(w, p1 + c), fma(v0, load(w, p0 + c), load(out, o + c)))
            store(out, o + c, fma(v3, load(w, p3 + c), fma(v2, load(w, p2 + c), total)))
        for c in range(last, end):
            total = a[i + k] * w[p0 + c] + a[i + k + 1] * w[p1 + c]
            out[o + c] += total + (a[i + k + 2] * w[p2 + c] + a[i + k + 3] * w[p3 + c])
    for k in range(whole, K):
        v, p = spread(a, i + k), k * next_k
        for c in range(first, last, L):
            store(out, o + c, fma(v, load(w, p + c), load(out, o + c)))
        for c in range(last, end):
            out[o + c] += a[i + k] * w[p + c]


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
def columns_4(a, i, next_row, next_a, K, w, p, next_k, out, o, width, more):
    """Four rows, whose numbers are `next_a` apart, by three vectors of columns; added to `out` where `more`."""
    L = lanes(a)
    a0 = a1 = a2 = b0 = b1 = b2 = c0 = c1 = c2 = d0 = d1 = d2 = full(a, 0.0)
    o1, o2, o3 = o + width, o + 2 * width, o + 3 * width
    if more:
        a0, a1, a2 = load(out, o), load(out, o + L), load(out, o + 2 * L)
        b0, b1, b2 = load(out, o1), load(out, o1 + L), load(out, o1 + 2 * L)
        c0, c1, c2 = load(out, o2), load(out, o2 + L), load(out, o2 + 2 * L)
        d0, d1, d2 = load(out, o3), load(out, o3 + L), load(out, o3 + 2 * L)
    for _ in range(K):
        w0, w1, w2 = load(w, p), load(w, p + L), load(w, p + 2 * L)
        v = spread(a, i)
        a0, a1, a2 = fma(v, w0, a0), fma(v, w1, a1), fma(v, w2, a2)
        v = spread(a, i + next_row)
        b0, b1, b2 = fma(v, w0, b0), fma(v, w1, b1), fma(v, w2, b2)
        v = spread(a, i + 2 * next_row)
        c0, c1, c2 = fma(v, w0, c0), fma(v, w1, c1), fma(v, w2, c2)
        v = spread(a, i + 3 * next_row)
        d0, d1, d2 = fma(v, w0, d0), fma(v, w1, d1), fma(v, w2, d2)
        i += next_a
        p += next_k
    store_3(out, o, a0, a1, a2)
    store_3(out, o1, b0, b1, b2)
    store_3(out, o2, c0, c1, c2)
    store_3(out, o3, d0, d1, d2)


@helper
def store_3(out, o, a, b, c):
    store(out, o, a)
    store(out, o + lanes(out), b)
    store(out, o + 2 * lanes(out), c)


@intrinsic
def panel_on_stack(typing, like):
    """A pointer to memory of this call's for BLOCK rows of three vectors, 24 or 48 KiB of the thread's stack."""

    def make(context, builder, signature, arguments):
        size = BLOCK * PANEL * count_lanes(like.bitwidth // 8)
        return cgutils.alloca_once(builder, context.get_value_type(like), size=size)

    return types.CPointer(like)(like), make


@helper
def by_turned_columns(a, start, next_row, K, w, next_column, first, end, out, width, rows):
    """Three vectors of columns at a time, turned into rows."""
    L, C, fours = lanes(a), 3 * lanes(a), rows // 4 * 4
    panel = panel_on_stack(a[0])
    for c in range(first, end, C):
        column = min(c, end - C)
        for k in range(0, K, BLOCK):
            count = min(K - k, BLOCK)
            whole = count // L * L
            for lane in range(0, C, L):
                p = (column + lane) * next_column + k
                for t in range(0, whole, L):
                    store_turned(panel, t * C + lane, C, w, p + t, next_column)
                for t in range(whole, count):
                    for n in range(L):
                        panel[t * C + lane + n] = w[p + t + n * next_column]
            for row in range(0, fours, 4):
                i, o = start + row * next_row + k, row * width + column
                columns_4(a, i, next_row, 1, count, panel, 0, C, out, o, width, k > 0)
    rest = start + fours * next_row
    by_dots(a, rest, next_row, K, w, next_column, first, end, out, fours * width, width, rows - fours)


@helper
def by_dots(a, start, next_row, K, w, next_column, first, end, out, begin, width, rows):
    fours = rows // 4 * 4
    for c in range(first, end, PAIR):
        column = min(c, end - PAIR)
        for row in range(0, fours, 4):
            dots_4(a, start + row * next_row, next_row, K, w, column * next_column, next_column,
                   out, begin + row * width + column, width)  # fmt: skip
    for c in range(first, end, COLUMNS):
        column = min(c, end - COLUMNS)
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
