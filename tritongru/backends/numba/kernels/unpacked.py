"""Products of few rows with weights as they lie in memory, in either layout: for calls too short to pack anything.

    columns side by side (Keras, (K,N)):   4 rows or 1 by 3 vectors, as the packed tiles with rows of W further apart,
                                           of 4 rows some rows of W at a time;
                                           1 row by a matrix beyond the second cache, four rows of W from end to end;
                                           8 rows by a vector where there are fewer columns
    columns one by one (torch, (N,K)):     dot products (dots.py);
                                           of more rows 3 vectors of columns are turned, and 4 rows multiplied by them

Columns that do not fill the last group are computed with those before them once more.
"""

from __future__ import annotations

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..compile import helper
from .dots import COLUMNS, by_dots
from .products import PAIRS, tile_1, tile_4, tile_8, tile_of_vector
from .rows import get, put
from .vector_type import PANEL, WIDTH, count_lanes
from .vectors import (
    fma,
    full,
    item_size,
    lanes,
    load,
    load_first,
    spread,
    store,
    store_first,
    store_turned,
)

# Rows from which turning columns takes less time than it saves, with less than so many numbers in each and with more;
# seen on an AMD EPYC with AVX2 and on an Intel Xeon with AVX-512. BLOCK: numbers of each that are turned at a time.
TURNED_ROWS, LONG, TURNED_ROWS_OF_LONG = (8, 0, 8) if WIDTH == 32 else (16, 128, 40)
BLOCK = 256 * 32 // WIDTH
# Bytes of a matrix from which one row reads it in order: tiles of a few columns jump from row to row, which costs the
# more the further away the matrix lies. On an AMD EPYC with 512 KiB of second cache.
LARGE = 1 << 18
# Four rows and more take so many lines of a matrix at a time, fewer of one of so many bytes. On an Intel Xeon with
# AVX-512.
LINES, FEW_LINES, FAR = 64, 32, 1 << 21
# From here on less than eight rows do so too: what tiles jump over does not fit the second cache.
HUGE = 1 << 23


@helper
def multiply_unpacked(a, start, next_row, K, w, next_k, next_column, first, end, gap, out, width, rows, back):
    """out (rows, width) = a (rows, K) W in the columns first:end, with a gap also in those one and two gaps further on.

    With a gap the columns are of three gates, and there are a vector of them at least. A column's bits are the same
    with one as without.

    Args:
        back: go through the columns from the last to the first. What was used last is then still in the cache.
    """
    enough = gap > 0 or end - first >= 3 * lanes(a)
    if enough and (next_column == 1 or (next_k == 1 and rows >= rows_to_turn(K))):
        by_columns(a, start, next_row, K, w, next_k, next_column, first, end, gap, out, width, rows, back)
    elif next_column == 1:
        by_vectors(a, start, next_row, K, w, next_k, first, end, out, width, rows)
    elif next_k == 1 and end - first >= COLUMNS:
        by_dots(a, start, next_row, K, w, next_column, first, end, gap, out, 0, width, rows, back)
    else:
        for row in range(rows):
            for column in range(first, end):
                total = a[0] * 0
                for k in range(K):
                    total += a[start + row * next_row + k] * w[k * next_k + column * next_column]
                out[row * width + column] = total


@helper
def rows_to_turn(K):
    """Return from how many rows on columns of K numbers are turned."""
    return TURNED_ROWS if K < LONG else TURNED_ROWS_OF_LONG


@helper
def count_windows(a, first, end, gap):
    """Return how many times three vectors it takes to have all columns."""
    L = lanes(a)
    if gap == 0:
        return (end - first + 3 * L - 1) // (3 * L)
    whole = (end - first) // (3 * L)
    return 3 * whole + (end - first - whole * 3 * L + L - 1) // L


@helper
def place_window(a, window, first, end, gap):
    """Return the first column of three vectors, and how far one of them is from the next.

    They are side by side, but where that leaves too few columns in a gate: there they are one of each gate.
    """
    L = lanes(a)
    if gap == 0:
        return min(first + window * 3 * L, end - 3 * L), L
    whole = (end - first) // (3 * L)
    if window < 3 * whole:
        gate = window // whole
        return gate * gap + first + (window - gate * whole) * 3 * L, L
    return min(first + whole * 3 * L + (window - 3 * whole) * L, end - L), gap


@helper
def by_columns(a, start, next_row, K, w, next_k, next_column, first, end, gap, out, width, rows, back):
    """Three vectors of columns at a time; columns one by one are turned into rows before."""
    L, turns, size = lanes(a), next_column != 1, K * next_k * item_size(a[0])
    fours = 0 if not turns and size >= HUGE and rows < 8 else rows // 4 * 4
    eights = fours // 8 * 8 if PAIRS else 0
    tiled = fours if turns or size >= LARGE else rows
    block = BLOCK if turns else FEW_LINES if size >= FAR else LINES
    panel = panel_on_stack(a[0])
    windows, blocks = count_windows(a, first, end, gap), (K + block - 1) // block
    # What is turned is used at once. Of lines as they lie a few at a time are read from end to end, but for the last
    # columns, which are computed with those before them once more.
    whole = windows if turns else (end - first) // (3 * L) * (3 if gap > 0 else 1)
    inner = max(blocks if turns else whole, 1)
    for number in range(whole * blocks + windows - whole if fours > 0 else 0):
        outer, rest = number // inner, number % inner
        window, k = (outer, rest * block) if turns else (rest, outer * block)
        window, count = whole - 1 - window if back else window, min(K - k, block)
        if number >= whole * blocks:
            window, k, count = whole + number - whole * blocks, 0, K
        column, step = place_window(a, window, first, end, gap)
        source, p, next_p, next_vector = w, k * next_k + column, next_k, step
        if turns:
            turn_columns(panel, w, column * next_column + k, next_column, step, count)
            source, p, next_p, next_vector = panel, 0, 3 * L, L
        for row in range(0, eights, 8):
            i, o = start + row * next_row + k, row * width + column
            j = i + 4 * next_row
            tile_8(
                a, i, i + next_row, i + 2 * next_row, i + 3 * next_row, j, j + next_row, j + 2 * next_row,
                j + 3 * next_row, 1, source, p, next_p, next_vector, count, out, o, o + 4 * width, step, width,
                k > 0, False,
            )  # fmt: skip
        for row in range(eights, fours, 4):
            i, o = start + row * next_row + k, row * width + column
            tile_4(
                a, i, i + next_row, i + 2 * next_row, i + 3 * next_row, 1, source, p, next_p, next_vector, count,
                out, o, step, width, k > 0, False,
            )  # fmt: skip
    for window in range(windows if fours < tiled else 0):
        column, step = place_window(a, windows - 1 - window if back else window, first, end, gap)
        for row in range(fours, tiled):
            tile_1(a, start + row * next_row, w, column, next_k, step, K, out, row * width + column, step)
    i, o = start + tiled * next_row, tiled * width
    if turns:
        by_dots(a, i, next_row, K, w, next_column, first, end, gap, out, o, width, rows - tiled, back)
    else:
        stream(a, i, next_row, K, w, next_k, first, end, gap, out, o, width, rows - tiled)


@helper
def turn_columns(panel, w, p, next_column, step, count):
    """panel (count, 3 vectors) from columns of W, from p on; see `place_window` for `step`."""
    L = lanes(panel)
    whole = count // L * L
    for vector in range(3):
        q = p + vector * step * next_column
        for t in range(0, whole, L):
            store_turned(panel, (3 * t + vector) * L, 3 * L, w, q + t, next_column)
        for t in range(whole, count):
            for n in range(L):
                panel[(3 * t + vector) * L + n] = w[q + t + n * next_column]


@helper
def by_vectors(a, start, next_row, K, w, next_k, first, end, out, width, rows):
    for c in range(first, end, lanes(a)):
        for row in range(0, rows, 8):
            tile_of_vector(
                a, start + row * next_row, next_row, rows - row, 1, w, c, next_k, end - c, K, out, row * width + c,
                width, False,
            )  # fmt: skip


@helper
def stream(a, start, next_row, K, w, next_k, first, end, gap, out, begin, width, rows):
    """Rows by all columns, four rows of W at a time, each from end to end."""
    L, whole, ranges = lanes(a), K // 4 * 4, 3 if gap > 0 else 1
    # Columns that are no vector are summed in the order of the others: a range may end anywhere.
    last = first + (end - first) // L * L
    rest = end - last
    for row in range(rows):
        for place in range(ranges):
            for c in range(first, end, L):
                put(out, begin + row * width + place * gap + c, full(a, 0.0), end - c)
    for k in range(0, whole, 4):
        for place in range(ranges):
            p0, o = k * next_k + place * gap, begin + place * gap
            p1, p2, p3 = p0 + next_k, p0 + 2 * next_k, p0 + 3 * next_k
            for c in range(first, last, L):
                w0, w1, w2, w3 = load(w, p0 + c), load(w, p1 + c), load(w, p2 + c), load(w, p3 + c)
                for row in range(rows):
                    i, to = start + row * next_row + k, o + row * width + c
                    total = fma(spread(a, i + 1), w1, fma(spread(a, i), w0, load(out, to)))
                    store(out, to, fma(spread(a, i + 3), w3, fma(spread(a, i + 2), w2, total)))
            for row in range(rows if rest > 0 else 0):
                i, to = start + row * next_row + k, o + row * width + last
                total = load_first(out, to, rest)
                for j in range(4):
                    total = fma(spread(a, i + j), load_first(w, p0 + j * next_k + last, rest), total)
                store_first(out, to, total, rest)
    for k in range(whole, K):
        for row in range(rows):
            v = spread(a, start + row * next_row + k)
            for place in range(ranges):
                p, to = k * next_k + place * gap, begin + row * width + place * gap
                for c in range(first, end, L):
                    put(out, to + c, fma(v, get(w, p + c, end - c), get(out, to + c, end - c)), end - c)


@intrinsic
def panel_on_stack(typing, like):
    """A pointer to memory of this call's for BLOCK rows of three vectors, 24 or 48 KiB of the thread's stack."""

    def make(context, builder, signature, arguments):
        size = BLOCK * PANEL * count_lanes(like.bitwidth // 8)
        return cgutils.alloca_once(builder, context.get_value_type(like), size=size)

    return types.CPointer(like)(like), make
