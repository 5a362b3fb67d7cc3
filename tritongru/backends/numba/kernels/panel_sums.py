"""The gradients that are sums over all steps, of many rows: some of them at a time, by panels of three vectors.

    totals (I+U+1, 4U) += [x | h | 1]' d        d_x = d W'

d, x and h as in sums.py. A panel of d, some rows of it, is copied to where it stays in the first cache, and multiplied
with all columns of x and of h: with those of x but for dq, with those of h but for the gradient of n. Threads share the
panels, and then the rows of d_x. Each block of rows is summed from zero and added to the others, so that rounding
errors grow with the rows of a block and the number of blocks, not with the number of all rows.
"""

from __future__ import annotations

from ..compile import Kernel, helper
from .meeting import first_of
from .packing import pack_panels
from .products import BLOCK, PAIRS, add_3, multiply, tile_4, tile_8
from .rows import get, put, show_row
from .unpacked import panel_on_stack
from .vectors import advance, full, lanes, pointer, store, store_turned

(
    # Addresses: of the rows; of memory of W' in panels, of totals (a part's own with IS_ALONE), and of ROWS
    # rows of d_x and their groups; of the gradients, which are contiguous. 0 where not wanted.
    D, X, H, W, PACKED, TOTALS, SCRATCH, GROUPS, D_X, D_W, D_U, D_BIAS_X, D_BIAS_H,
    N, I, U, X_ROW, W_ROW, W_COLUMN,
    W_BY_COLUMN, U_BY_COLUMN,  # whether D_W is (3U,I) in place of (I,3U), and D_U (3U,U) in place of (U,3U)
    IS_FIRST, IS_LAST,  # whether these are the first rows, and the last ones
    IS_ALONE,  # whether they are all there are and no more than AT_ONCE: a panel's totals are done with before the next
    SUMS, MULTIPLIES,  # whether the totals are wanted now, and d_x; with both each part packs W for itself
    PART, PARTS,  # no bit depends on them
) = range(FIELDS := 28)  # fmt: skip

ROWS = 64  # of d_x that are computed at a time
AT_ONCE = 1024  # rows that all panels go through before the next ones; more were slower on an AMD EPYC with AVX-512


@helper
def copy_panel(d, i, width, columns, rows, panel, totals, o, more):
    """panel (rows, 3 vectors) of d, zeros beyond its columns; its rows' sum is added to the totals."""
    L = lanes(d)
    a = b = c = full(d, 0.0)
    for row in range(0, rows * 3 * L, 3 * L):
        u, v, w = get(d, i, columns), get(d, i + L, columns - L), get(d, i + 2 * L, columns - 2 * L)
        a, b, c = a + u, b + v, c + w
        store(panel, row, u)
        store(panel, row + L, v)
        store(panel, row + 2 * L, w)
        i += width
    add_3(totals, o, L, a, b, c, more)


@helper
def add_products(a, i, next_row, columns, panel, rows, out, o, width, more):
    """out (columns, 3 vectors) = a (rows, columns)' panel, or that added; rows of `out` are written by eights."""
    L, last = lanes(a), columns - 1
    for m in range(0, columns, 8 if PAIRS else 4):
        i0, i1, i2, i3 = i + m, i + min(m + 1, last), i + min(m + 2, last), i + min(m + 3, last)
        to = o + m * width
        if PAIRS and columns - m > 4:
            j0, j1, j2, j3 = i + m + 4, i + min(m + 5, last), i + min(m + 6, last), i + min(m + 7, last)
            tile_8(
                a, i0, i1, i2, i3, j0, j1, j2, j3, next_row, panel, 0, 3 * L, L, rows, out, to, to + 4 * width, L,
                width, more, True,
            )  # fmt: skip
        else:
            tile_4(a, i0, i1, i2, i3, next_row, panel, 0, 3 * L, L, rows, out, to, L, width, more, True)


@helper
def show_totals(totals, o, width, rows, first, end, shift, target, columns, by_column):
    """Write the columns first..end of some totals to those `shift` further on, of (rows, columns) or its transpose."""
    L = lanes(totals)
    if not by_column:
        for row in range(rows):
            for c in range(first, end, L):
                put(target, row * columns + c + shift, get(totals, o + row * width + c, end - c), end - c)
        return
    for c in range(first, end, L):
        turned = rows // L * L if end - c >= L else 0
        for row in range(0, turned, L):
            store_turned(target, (c + shift) * rows + row, rows, totals, o + row * width + c, width)
        for row in range(turned, rows):
            for column in range(c, min(c + L, end)):
                target[(column + shift) * rows + row] = totals[o + row * width + column]


@helper
def show_panel(plan, totals, of_h, of_d, width, c, like):
    """Write the gradients of a panel's totals, which are the columns from c on.

    Those of d are dq, the two gates, and n; those of the weights the two gates and n.
    """
    inputs, units, C = plan[I], plan[U], 3 * lanes(like)
    d_w, d_u = pointer(plan[D_W], like), pointer(plan[D_U], like)
    d_bias_x, d_bias_h = pointer(plan[D_BIAS_X], like), pointer(plan[D_BIAS_H], like)
    for block in range(3):
        first = max(c, 0 if block == 0 else units if block == 1 else 3 * units)
        end = min(c + C, units if block == 0 else 3 * units if block == 1 else 4 * units)
        shift = 2 * units if block == 0 else -units
        i, j = first - c, end - c
        if block > 0 and plan[D_W] != 0:
            show_totals(totals, 0, width, inputs, i, j, c - units, d_w, 3 * units, plan[W_BY_COLUMN] != 0)
        if block > 0 and plan[D_BIAS_X] != 0:
            show_totals(totals, of_d, width, 1, i, j, c - units, d_bias_x, 3 * units, False)
        if block < 2 and plan[D_U] != 0:
            show_totals(totals, of_h, width, units, i, j, c + shift, d_u, 3 * units, plan[U_BY_COLUMN] != 0)
        if block < 2 and plan[D_BIAS_H] != 0:
            show_totals(totals, of_d, width, 1, i, j, c + shift, d_bias_h, 3 * units, False)


@helper
def pack_back(plan, part, parts, like):
    """Pack a share of W'."""
    inputs, units, C = plan[I], plan[U], 3 * lanes(like)
    w, packed, panels = pointer(plan[W], like), pointer(plan[PACKED], like), (inputs + C - 1) // C
    first, last = first_of(part, parts, panels, 1), first_of(part + 1, parts, panels, 1)
    pack_panels(
        w, plan[W_COLUMN], plan[W_ROW], 3 * units, inputs, panels * C, 0, 0, 0, first, last, packed, 0, 3 * units * C
    )


@helper
def sum_panels(plan, like):
    """Add some rows to the totals of a part's panels; write the gradients once all rows are in them."""
    rows, inputs, units, part, parts = plan[N], plan[I], plan[U], plan[PART], plan[PARTS]
    d, x, h = pointer(plan[D], like), pointer(plan[X], like), pointer(plan[H], like)
    totals, C, wide = pointer(plan[TOTALS], like), 3 * lanes(like), 4 * units
    panels = (wide + C - 1) // C
    width = C if plan[IS_ALONE] != 0 else panels * C
    of_h = (inputs + 7) // 8 * 8 * width  # where the totals of h begin, and those of d
    of_d = of_h + (units + 7) // 8 * 8 * width
    panel = panel_on_stack(like)
    for begin in range(0, rows, AT_ONCE):
        end = min(begin + AT_ONCE, rows)
        for number in range(part, panels, parts):
            c = number * C
            own = advance(totals, 0 if plan[IS_ALONE] != 0 else c)
            for k in range(begin, end, BLOCK):
                count, more = min(BLOCK, end - k), k > 0 or plan[IS_FIRST] == 0
                copy_panel(d, k * wide + c, wide, wide - c, count, panel, own, of_d, more)
                for side in range(2):
                    a, i, next_row, length, to = x, k * plan[X_ROW], plan[X_ROW], inputs, 0
                    is_wanted = plan[D_W] != 0 and c + C > units
                    if side > 0:
                        a, i, next_row, length, to = h, k * units, units, units, of_h
                        is_wanted = plan[D_U] != 0 and c < 3 * units
                    if is_wanted:
                        add_products(a, i, next_row, length, panel, count, own, to, width, more)
            if plan[IS_LAST] != 0 and end == rows:
                show_panel(plan, own, of_h, of_d, width, c, like)


@helper
def multiply_back(plan, like):
    """Write a part's rows of d_x."""
    units, inputs, L, C = plan[U], plan[I], lanes(like), 3 * lanes(like)
    d, w, d_x = pointer(plan[D], like), pointer(plan[PACKED], like), pointer(plan[D_X], like)
    out, groups = pointer(plan[SCRATCH], like), pointer(plan[GROUPS], 0)
    wide, vectors, width = 4 * units, (inputs + L - 1) // L * L, (inputs + C - 1) // C * C
    end = first_of(plan[PART] + 1, plan[PARTS], plan[N], ROWS)
    for group in range(ROWS // 4):
        groups[group] = 4 * group
    for top in range(first_of(plan[PART], plan[PARTS], plan[N], ROWS), end, ROWS):
        rows = min(ROWS, end - top)
        multiply(
            advance(d, top * wide + units), wide, 0, 3 * units, w, 3 * units, 0, vectors, out, width, groups,
            (rows + 3) // 4, rows, 4, False,
        )  # fmt: skip
        for row in range(rows):
            show_row(out, row * width, d_x, (top + row) * inputs, inputs, vectors)


def panel_sums_part(plan, like):
    """Do what is wanted of a part; see above for the plan."""
    sums, multiplies = plan[SUMS] != 0, plan[D_X] != 0 and plan[MULTIPLIES] != 0
    if sums and multiplies:
        pack_back(plan, 0, 1, like)
    elif sums and plan[D_X] != 0 and plan[IS_FIRST] != 0:
        pack_back(plan, plan[PART], plan[PARTS], like)
    if sums and (plan[D_W] != 0 or plan[D_U] != 0 or plan[D_BIAS_X] != 0 or plan[D_BIAS_H] != 0):
        sum_panels(plan, like)
    if multiplies:
        multiply_back(plan, like)


panel_sums = Kernel(panel_sums_part)
