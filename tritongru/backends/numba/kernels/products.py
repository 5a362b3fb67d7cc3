"""Products of some rows with a packed matrix, in registers.

A matrix (K,N) is packed in panels of three vectors of columns, (N/C, K, C) with C = 3 lanes: one pass over k reads it
from end to end. A tile is the product of 4, 2 or 1 rows with a panel: the sums stay in 12 registers, each vector of the
matrix is read once for all rows.

    4 rows: each sum runs over k in order. 2 rows: even and odd k apart. 1 row: four sums of every fourth k. (A sum
    waits for itself, and twelve sums keep the processor's multipliers busy.)
    8 rows, two groups of four, where there are registers for 24 sums: the same sums, the matrix read half as often.
    A last panel of fewer vectors: the same sums of those there are (`narrow_4`, `narrow_8`).
    What is in no panel: eight rows by one vector (`tile_of_vector`), each sum over k in order.

Rows are grouped by their place in the batch alone (`threads.group_size`), so that the bits of a row depend neither
on the other rows nor on the number of threads.
"""

from __future__ import annotations

from ..compile import helper
from .rows import get, put
from .vector_type import WIDTH
from .vectors import fma, full, lanes, load, spread, store

# Rows of a panel, three vectors each, that stay in a processor's first cache while several tiles use it: 30 and 24 KiB.
LONGEST = 320 * 32 // WIDTH
BLOCK = 256 * 32 // WIDTH
# Whether the sums of two groups of four rows stay in registers: AVX-512 has 32 of them.
PAIRS = WIDTH == 64


@helper
def tile_1(a, i, w, p, next_p, next_vector, K, out, o, step):
    """out[o + {0,1,2} step ..] = a[i : i + K] W, a row by three vectors of columns, from p on.

    Args:
        next_p, next_vector: from one row of W to the next, and from one vector of it.
    """
    a0 = a1 = a2 = b0 = b1 = b2 = c0 = c1 = c2 = d0 = d1 = d2 = full(a, 0.0)
    second, third, whole = next_vector, 2 * next_vector, K // 4 * 4
    for k in range(0, whole, 4):
        v = spread(a, i + k)
        a0, a1, a2 = fma(v, load(w, p), a0), fma(v, load(w, p + second), a1), fma(v, load(w, p + third), a2)
        p += next_p
        v = spread(a, i + k + 1)
        b0, b1, b2 = fma(v, load(w, p), b0), fma(v, load(w, p + second), b1), fma(v, load(w, p + third), b2)
        p += next_p
        v = spread(a, i + k + 2)
        c0, c1, c2 = fma(v, load(w, p), c0), fma(v, load(w, p + second), c1), fma(v, load(w, p + third), c2)
        p += next_p
        v = spread(a, i + k + 3)
        d0, d1, d2 = fma(v, load(w, p), d0), fma(v, load(w, p + second), d1), fma(v, load(w, p + third), d2)
        p += next_p
    for k in range(whole, K):
        v = spread(a, i + k)
        a0, a1, a2 = fma(v, load(w, p), a0), fma(v, load(w, p + second), a1), fma(v, load(w, p + third), a2)
        p += next_p
    add_3(out, o, step, (a0 + b0) + (c0 + d0), (a1 + b1) + (c1 + d1), (a2 + b2) + (c2 + d2), False)


@helper
def tile_2(a, i, j, w, p, K, out, o, step, next_row):
    """As `tile_1` for the rows at i and j, their results `next_row` apart."""
    L = lanes(a)
    a0 = a1 = a2 = b0 = b1 = b2 = c0 = c1 = c2 = d0 = d1 = d2 = full(a, 0.0)
    whole = K // 2 * 2
    for k in range(0, whole, 2):
        w0, w1, w2 = load(w, p), load(w, p + L), load(w, p + 2 * L)
        v = spread(a, i + k)
        a0, a1, a2 = fma(v, w0, a0), fma(v, w1, a1), fma(v, w2, a2)
        v = spread(a, j + k)
        b0, b1, b2 = fma(v, w0, b0), fma(v, w1, b1), fma(v, w2, b2)
        w0, w1, w2 = load(w, p + 3 * L), load(w, p + 4 * L), load(w, p + 5 * L)
        v = spread(a, i + k + 1)
        c0, c1, c2 = fma(v, w0, c0), fma(v, w1, c1), fma(v, w2, c2)
        v = spread(a, j + k + 1)
        d0, d1, d2 = fma(v, w0, d0), fma(v, w1, d1), fma(v, w2, d2)
        p += 6 * L
    if whole < K:
        w0, w1, w2 = load(w, p), load(w, p + L), load(w, p + 2 * L)
        v = spread(a, i + whole)
        a0, a1, a2 = fma(v, w0, a0), fma(v, w1, a1), fma(v, w2, a2)
        v = spread(a, j + whole)
        b0, b1, b2 = fma(v, w0, b0), fma(v, w1, b1), fma(v, w2, b2)
    add_3(out, o, step, a0 + c0, a1 + c1, a2 + c2, False)
    add_3(out, o + next_row, step, b0 + d0, b1 + d1, b2 + d2, False)


@helper
def tile_4(a, i0, i1, i2, i3, next_a, w, p, next_p, next_vector, K, out, o, step, next_row, more, apart):
    """As `tile_1` for four rows, whose numbers are `next_a` apart.

    Args:
        more: whether `out` has sums already: each goes on there or, with `apart`, is summed first and then added.
    """
    (a0, a1, a2), (b0, b1, b2), (c0, c1, c2), (d0, d1, d2) = begin_4(out, o, step, next_row, more and not apart)
    k = 0
    for _ in range(K):
        w0, w1, w2 = load(w, p), load(w, p + next_vector), load(w, p + 2 * next_vector)
        v = spread(a, i0 + k)
        a0, a1, a2 = fma(v, w0, a0), fma(v, w1, a1), fma(v, w2, a2)
        v = spread(a, i1 + k)
        b0, b1, b2 = fma(v, w0, b0), fma(v, w1, b1), fma(v, w2, b2)
        v = spread(a, i2 + k)
        c0, c1, c2 = fma(v, w0, c0), fma(v, w1, c1), fma(v, w2, c2)
        v = spread(a, i3 + k)
        d0, d1, d2 = fma(v, w0, d0), fma(v, w1, d1), fma(v, w2, d2)
        k += next_a
        p += next_p
    add_4(out, o, step, next_row, (a0, a1, a2), (b0, b1, b2), (c0, c1, c2), (d0, d1, d2), more and apart)


@helper
def tile_8(
    a, i0, i1, i2, i3, j0, j1, j2, j3, next_a, w, p, next_p, next_vector, K, out, o, q, step, next_row, more,
    apart,
):  # fmt: skip
    """As `tile_4` for two groups of four rows, whose results begin at o and q; for processors with enough registers."""
    (a0, a1, a2), (b0, b1, b2), (c0, c1, c2), (d0, d1, d2) = begin_4(out, o, step, next_row, more and not apart)
    (e0, e1, e2), (f0, f1, f2), (g0, g1, g2), (h0, h1, h2) = begin_4(out, q, step, next_row, more and not apart)
    k = 0
    for _ in range(K):
        w0, w1, w2 = load(w, p), load(w, p + next_vector), load(w, p + 2 * next_vector)
        v = spread(a, i0 + k)
        a0, a1, a2 = fma(v, w0, a0), fma(v, w1, a1), fma(v, w2, a2)
        v = spread(a, i1 + k)
        b0, b1, b2 = fma(v, w0, b0), fma(v, w1, b1), fma(v, w2, b2)
        v = spread(a, i2 + k)
        c0, c1, c2 = fma(v, w0, c0), fma(v, w1, c1), fma(v, w2, c2)
        v = spread(a, i3 + k)
        d0, d1, d2 = fma(v, w0, d0), fma(v, w1, d1), fma(v, w2, d2)
        v = spread(a, j0 + k)
        e0, e1, e2 = fma(v, w0, e0), fma(v, w1, e1), fma(v, w2, e2)
        v = spread(a, j1 + k)
        f0, f1, f2 = fma(v, w0, f0), fma(v, w1, f1), fma(v, w2, f2)
        v = spread(a, j2 + k)
        g0, g1, g2 = fma(v, w0, g0), fma(v, w1, g1), fma(v, w2, g2)
        v = spread(a, j3 + k)
        h0, h1, h2 = fma(v, w0, h0), fma(v, w1, h1), fma(v, w2, h2)
        k += next_a
        p += next_p
    add_4(out, o, step, next_row, (a0, a1, a2), (b0, b1, b2), (c0, c1, c2), (d0, d1, d2), more and apart)
    add_4(out, q, step, next_row, (e0, e1, e2), (f0, f1, f2), (g0, g1, g2), (h0, h1, h2), more and apart)


@helper
def narrow_4(a, i0, i1, i2, i3, w, p, next_p, K, out, o, next_row, more):
    """As `tile_4` for the first two vectors of a panel, going on where `more`."""
    L = lanes(a)
    a0, a1 = begin_1(out, o, more), begin_1(out, o + L, more)
    b0, b1 = begin_1(out, o + next_row, more), begin_1(out, o + next_row + L, more)
    c0, c1 = begin_1(out, o + 2 * next_row, more), begin_1(out, o + 2 * next_row + L, more)
    d0, d1 = begin_1(out, o + 3 * next_row, more), begin_1(out, o + 3 * next_row + L, more)
    for k in range(K):
        w0, w1 = load(w, p), load(w, p + L)
        v = spread(a, i0 + k)
        a0, a1 = fma(v, w0, a0), fma(v, w1, a1)
        v = spread(a, i1 + k)
        b0, b1 = fma(v, w0, b0), fma(v, w1, b1)
        v = spread(a, i2 + k)
        c0, c1 = fma(v, w0, c0), fma(v, w1, c1)
        v = spread(a, i3 + k)
        d0, d1 = fma(v, w0, d0), fma(v, w1, d1)
        p += next_p
    store(out, o, a0)
    store(out, o + L, a1)
    store(out, o + next_row, b0)
    store(out, o + next_row + L, b1)
    store(out, o + 2 * next_row, c0)
    store(out, o + 2 * next_row + L, c1)
    store(out, o + 3 * next_row, d0)
    store(out, o + 3 * next_row + L, d1)


@helper
def narrow_8(a, i0, i1, i2, i3, j0, j1, j2, j3, w, p, next_p, K, out, o, q, next_row, more):
    """As `narrow_4` for eight rows and one vector."""
    a0, b0 = begin_1(out, o, more), begin_1(out, o + next_row, more)
    c0, d0 = begin_1(out, o + 2 * next_row, more), begin_1(out, o + 3 * next_row, more)
    e0, f0 = begin_1(out, q, more), begin_1(out, q + next_row, more)
    g0, h0 = begin_1(out, q + 2 * next_row, more), begin_1(out, q + 3 * next_row, more)
    for k in range(K):
        v = load(w, p)
        a0, b0 = fma(spread(a, i0 + k), v, a0), fma(spread(a, i1 + k), v, b0)
        c0, d0 = fma(spread(a, i2 + k), v, c0), fma(spread(a, i3 + k), v, d0)
        e0, f0 = fma(spread(a, j0 + k), v, e0), fma(spread(a, j1 + k), v, f0)
        g0, h0 = fma(spread(a, j2 + k), v, g0), fma(spread(a, j3 + k), v, h0)
        p += next_p
    store(out, o, a0)
    store(out, o + next_row, b0)
    store(out, o + 2 * next_row, c0)
    store(out, o + 3 * next_row, d0)
    store(out, q, e0)
    store(out, q + next_row, f0)
    store(out, q + 2 * next_row, g0)
    store(out, q + 3 * next_row, h0)


@helper
def tile_of_vector(a, i, apart, present, next_a, w, p, next_p, count, K, out, o, next_row, more):
    """Eight rows by one vector, or the `count` numbers of it that are there; of fewer rows the last several times.

    Args:
        apart: from one row of `a` to the next. present: rows from the first one on. next_a, next_p: from one k to the
            next. more: whether each sum goes on from `out`.
    """
    r1, r2, r3, r4 = min(1, present - 1), min(2, present - 1), min(3, present - 1), min(4, present - 1)
    r5, r6, r7 = min(5, present - 1), min(6, present - 1), min(7, present - 1)
    o1, o2, o3, o4 = o + r1 * next_row, o + r2 * next_row, o + r3 * next_row, o + r4 * next_row
    o5, o6, o7 = o + r5 * next_row, o + r6 * next_row, o + r7 * next_row
    i1, i2, i3, i4 = r1 * apart, r2 * apart, r3 * apart, r4 * apart
    i5, i6, i7 = r5 * apart, r6 * apart, r7 * apart
    a0 = b0 = c0 = d0 = e0 = f0 = g0 = h0 = full(a, 0.0)
    if more:
        a0, b0, c0, d0 = get(out, o, count), get(out, o1, count), get(out, o2, count), get(out, o3, count)
        e0, f0, g0, h0 = get(out, o4, count), get(out, o5, count), get(out, o6, count), get(out, o7, count)
    for _ in range(K):
        v = get(w, p, count)
        a0, b0 = fma(spread(a, i), v, a0), fma(spread(a, i + i1), v, b0)
        c0, d0 = fma(spread(a, i + i2), v, c0), fma(spread(a, i + i3), v, d0)
        e0, f0 = fma(spread(a, i + i4), v, e0), fma(spread(a, i + i5), v, f0)
        g0, h0 = fma(spread(a, i + i6), v, g0), fma(spread(a, i + i7), v, h0)
        i += next_a
        p += next_p
    put(out, o, a0, count)
    put(out, o1, b0, count)
    put(out, o2, c0, count)
    put(out, o3, d0, count)
    put(out, o4, e0, count)
    put(out, o5, f0, count)
    put(out, o6, g0, count)
    put(out, o7, h0, count)


@helper
def begin_1(out, o, more):
    """Return the vector that sums go on from, or zeros."""
    return load(out, o) if more else full(out, 0.0)


@helper
def begin_3(out, o, step, more):
    """Return three of them, `step` apart."""
    return begin_1(out, o, more), begin_1(out, o + step, more), begin_1(out, o + 2 * step, more)


@helper
def begin_4(out, o, step, next_row, more):
    """Return those of four rows."""
    first, second = begin_3(out, o, step, more), begin_3(out, o + next_row, step, more)
    return first, second, begin_3(out, o + 2 * next_row, step, more), begin_3(out, o + 3 * next_row, step, more)


@helper
def add_1(out, o, a, more):
    """Write a vector, or add it to what is there."""
    if more:
        a = load(out, o) + a
    store(out, o, a)


@helper
def add_3(out, o, step, a, b, c, more):
    """Write three vectors, `step` apart, or add them to what is there."""
    add_1(out, o, a, more)
    add_1(out, o + step, b, more)
    add_1(out, o + 2 * step, c, more)


@helper
def add_4(out, o, step, next_row, a, b, c, d, more):
    """As `add_3` for four rows, three vectors each."""
    add_3(out, o, step, a[0], a[1], a[2], more)
    add_3(out, o + next_row, step, b[0], b[1], b[2], more)
    add_3(out, o + 2 * next_row, step, c[0], c[1], c[2], more)
    add_3(out, o + 3 * next_row, step, d[0], d[1], d[2], more)


@helper
def block_length(K):
    """Return how many k are taken at a time by tiles that share a panel."""
    return max(K, 1) if K <= LONGEST else BLOCK


@helper
def multiply(a, length, at, K, w, rows_of_w, first, end, out, width, groups, count, rows, size, back):
    """out (R, width)[:, first:end] = a (R, length)[:, at : at + K] W, with W the rows `at`.. of a packed matrix.

    Args:
        rows_of_w: rows of the whole packed matrix. first, end: columns, the first that of a panel, the last one that of
            a vector: of the last panel no more is computed.
        groups, count: the first rows of the groups to compute, in order. rows, size: of all groups, and of each.
        back: go through the panels from the last to the first. What was used last is then still in the cache.
    """
    C, L = 3 * lanes(a), lanes(a)
    block = block_length(K)
    # The last group may have fewer rows; three are computed as four.
    fours = count
    if count > 0 and rows - groups[count - 1] < 3:
        fours -= 1
    if size < 4:
        fours = 0
    whole = fours - 1 if fours > 0 and rows - groups[fours - 1] < 4 else fours
    pairs = whole // 2 * 2 if PAIRS else 0
    panels = (end - first + C - 1) // C
    for panel in range(panels):
        column = first + (panels - 1 - panel if back else panel) * C
        p, vectors = (column // C * rows_of_w + at) * C, (end - column) // L
        for k in range(0, K, block):
            K_now = min(block, K - k)
            for g in range(0, pairs, 2):
                row, other = groups[g], groups[g + 1]
                i, j = row * length + at + k, other * length + at + k
                o, q = row * width + column, other * width + column
                if vectors >= 3:
                    tile_8(
                        a, i, i + length, i + 2 * length, i + 3 * length, j, j + length, j + 2 * length, j + 3 * length,
                        1, w, p + k * C, C, L, K_now, out, o, q, L, width, k > 0, False,
                    )  # fmt: skip
                    continue
                for vector in range(0, vectors * L, L):
                    narrow_8(
                        a, i, i + length, i + 2 * length, i + 3 * length, j, j + length, j + 2 * length, j + 3 * length,
                        w, p + k * C + vector, C, K_now, out, o + vector, q + vector, width, k > 0,
                    )  # fmt: skip
            for g in range(pairs, fours):
                row = groups[g]
                i, o = row * length + at + k, row * width + column
                last = i + min(3, rows - 1 - row) * length
                if vectors >= 3:
                    tile_4(
                        a, i, i + length, i + 2 * length, last, 1, w, p + k * C, C, L, K_now, out, o, L, width, k > 0,
                        False,
                    )  # fmt: skip
                else:
                    narrow_4(a, i, i + length, i + 2 * length, last, w, p + k * C, C, K_now, out, o, width, k > 0)
        for g in range(fours, count):
            row = groups[g]
            i = row * length + at
            if rows - row >= 2 and size > 1:
                tile_2(a, i, i + length, w, p, K, out, row * width + column, L, width)
            else:
                tile_1(a, i, w, p, C, L, K, out, row * width + column, L)


@helper
def project_rows(
    x, start, next_step, next_row, order, I, w, first, end, out, width, groups, count, flags, has_flags, rows, size,
    steps, R,
):  # fmt: skip
    """out (steps, R, width)[..., first:end] = x W for some steps, in whole panels.

    x is addressed by its strides and the rows' places in the batch.

    Args:
        order: (rows,) place of each row in the batch. flags: (steps, groups) whether a group is needed, where it has
            four rows or three. A group of one row is computed for four steps at once.
    """
    C, L = 3 * lanes(x), lanes(x)
    block = block_length(I)
    for column in range(first, end, C):
        p = column // C * I * C
        for g in range(count):
            row = groups[g]
            present = min(size, rows - row)
            i = start + order[row] * next_row
            o = row * width + column
            if present == 2:
                j = start + order[row + 1] * next_row
                for s in range(steps):
                    now, to = s * next_step, o + s * R * width
                    tile_2(x, i + now, j + now, w, p, I, out, to, L, width)
            elif present == 1:
                whole = steps // 4 * 4
                for s in range(0, whole, 4):
                    j = i + s * next_step
                    tile_4(
                        x, j, j + next_step, j + 2 * next_step, j + 3 * next_step, 1, w, p, C, L, I,
                        out, o + s * R * width, L, R * width, False, False,
                    )  # fmt: skip
                for s in range(whole, steps):
                    tile_1(x, i + s * next_step, w, p, C, L, I, out, o + s * R * width, L)
        if size < 4:
            continue
        for k in range(0, max(I, 1), block):
            K_now = min(block, I - k)
            for s in range(steps):
                j = start + s * next_step + k
                g = 0
                while g < count:
                    row, to = groups[g], (s * R + groups[g]) * width + column
                    wanted = rows - row >= 3 and (not has_flags or flags[s * count + g] != 0)
                    both = PAIRS and wanted and rows - row >= 8 and (not has_flags or flags[s * count + g + 1] != 0)
                    if both:
                        tile_8(
                            x, j + order[row] * next_row, j + order[row + 1] * next_row, j + order[row + 2] * next_row,
                            j + order[row + 3] * next_row, j + order[row + 4] * next_row, j + order[row + 5] * next_row,
                            j + order[row + 6] * next_row, j + order[row + 7] * next_row, 1, w, p + k * C, C, L, K_now,
                            out, to, to + 4 * width, L, width, k > 0, False,
                        )  # fmt: skip
                    elif wanted:
                        tile_4(
                            x, j + order[row] * next_row, j + order[row + 1] * next_row, j + order[row + 2] * next_row,
                            j + order[min(row + 3, rows - 1)] * next_row, 1, w, p + k * C, C, L, K_now,
                            out, to, L, width, k > 0, False,
                        )  # fmt: skip
                    g += 2 if both else 1
