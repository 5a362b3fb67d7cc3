"""The gradients that are sums over all steps, of few rows: what a library's products cost to begin would be most of it.

    d_x = d W'    d_W = x' d    d_R = h' d, its n of d_q    biases: d summed

d (N,4U) are the gradients of all rows' pre-activations, [dq | first | second | n] with first and second in the weights'
order; x (N,I) and h (N,U) what entered the products. The states that entered are those that left the step before, and
the initial state; every sum runs over the rows in order, also where they are read from two places.
"""

from __future__ import annotations

from ..compile import Kernel, helper
from .meeting import first_of
from .products import BLOCK, PAIRS, tile_4, tile_8, tile_of_vector
from .rows import get, put
from .unpacked import multiply_unpacked, rows_to_turn
from .vectors import advance, fma, full, lanes, load, pointer, spread, store

(
    # Addresses: H of the N states that entered, or that left where H0, of BATCH rows, is not 0; those of the gradients,
    # which are contiguous, are 0 where not wanted.
    D, X, W, H, H0, D_X, D_W, D_U, D_BIAS_X, D_BIAS_H,
    N, I, U, X_ROW, W_ROW, W_COLUMN, H0_ROW, BATCH, REVERSE,
    W_BY_COLUMN, U_BY_COLUMN,  # whether D_W is (3U,I) in place of (I,3U), and D_U (3U,U) in place of (U,3U)
    PART, PARTS,  # which part of the numbers of each gradient of how many, no bit of which depends on it
) = range(23)  # fmt: skip


@helper
def multiply_transposed(a, i, a_row, first, end, b, j, b_row, columns, rows, out, o, width, more):
    """out (.., width)[first:end, :columns] = a (rows, ..)[:, first:end]' b (rows, columns), added where `more`."""
    C, L, fours = 3 * lanes(a), lanes(a), first + (end - first) // 4 * 4
    whole = columns // C * C
    for k in range(0, rows, BLOCK):
        count, adds, a_k, b_k = min(BLOCK, rows - k), more or k > 0, i + k * a_row, j + k * b_row
        # `out` is written from end to end: it may be large, and the rows of b are few.
        eights = first + (fours - first) // 8 * 8 if PAIRS else first
        for m in range(first, eights, 8):
            for c in range(0, whole, C):
                n, to = a_k + m, o + m * width + c
                tile_8(
                    a, n, n + 1, n + 2, n + 3, n + 4, n + 5, n + 6, n + 7, a_row, b, b_k + c, b_row, L, count, out, to,
                    to + 4 * width, L, width, adds, False,
                )  # fmt: skip
        for m in range(eights, fours, 4):
            for c in range(0, whole, C):
                n = a_k + m
                tile_4(
                    a, n, n + 1, n + 2, n + 3, a_row, b, b_k + c, b_row, L, count, out, o + m * width + c, L, width,
                    adds, False,
                )  # fmt: skip
        for m in range(fours, end):
            for c in range(0, whole, L):
                total = load(out, o + m * width + c) if adds else full(a, 0.0)
                for n in range(count):
                    total = fma(spread(a, a_k + m + n * a_row), load(b, b_k + n * b_row + c), total)
                store(out, o + m * width + c, total)
        for c in range(whole, columns, L):
            for m in range(first, end, 8):
                tile_of_vector(
                    a, a_k + m, 1, end - m, a_row, b, b_k + c, b_row, columns - c, count, out, o + m * width + c, width,
                    adds,
                )  # fmt: skip


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
    width, gates, part, parts = 4 * units, 3 * units, plan[PART], plan[PARTS]
    if plan[D_X] != 0:
        # A part is some rows, of which there are enough to be multiplied in the same way as all, or panels of columns.
        d_x, panel = pointer(plan[D_X], like), 3 * lanes(like)
        by_rows = rows // 8 * 8 >= rows_to_turn(gates) * parts
        unit, count = (8, rows) if by_rows else (panel, inputs)
        first, end = first_of(part, parts, count, unit), first_of(part + 1, parts, count, unit)
        top, below = (first, end) if by_rows else (0, rows)
        left, right = (0, inputs) if by_rows else (first, end)
        multiply_unpacked(
            d, top * width + units, width, gates, w, plan[W_COLUMN], plan[W_ROW], left, right, 0,
            advance(d_x, top * inputs), inputs, below - top, False,
        )  # fmt: skip
    # One place calls the product: a compiler copies it to every place. First d_W; then d_R, its two parts of columns,
    # of all rows or, where the states are in two places, of the first and of the last ones.
    has_h0, batch, is_reverse = plan[H0] != 0, plan[BATCH], plan[REVERSE] != 0
    h0 = pointer(plan[H0], like)
    split = 0 if not has_h0 else rows - batch if is_reverse else batch
    for product in range(5):
        if plan[D_W if product == 0 else D_U] == 0:
            continue
        column, columns, begin, count = units, gates, 0, rows
        by_column, target, to, length = plan[W_BY_COLUMN] != 0, d_w, 0, inputs
        other, i_other, other_row = x, 0, x_row
        if product > 0:
            by_column, target, length = plan[U_BY_COLUMN] != 0, d_u, units
            columns = 2 * units
            if product % 2 == 0:
                column, columns = 0, units
                to = 2 * units * units if by_column else 2 * units
            begin, count = (0, split) if product <= 2 else (split, rows - split)
            other, i_other, other_row = h, begin * units, units
            if has_h0 and (product > 2) == is_reverse:
                other, i_other, other_row = h0, 0, plan[H0_ROW]
            elif has_h0:
                i_other = batch * units if is_reverse else 0
        i, more = begin * width + column, product > 2 and split > 0
        M = columns if by_column else length
        first, end = first_of(part, parts, M, 4), first_of(part + 1, parts, M, 4)
        if by_column:
            multiply_transposed(
                d, i, width, first, end, other, i_other, other_row, length, count, target, to, length, more
            )
        else:
            multiply_transposed(
                other, i_other, other_row, first, end, d, i, width, columns, count, target, to, gates, more
            )
    if plan[D_BIAS_X] != 0 and part == 0:
        sum_rows(d, units, width, gates, rows, d_bias_x, 0)
    if plan[D_BIAS_H] != 0 and part == 0:
        sum_rows(d, units, width, 2 * units, rows, d_bias_h, 0)
        sum_rows(d, 0, width, units, rows, d_bias_h, 2 * units)


sums = Kernel(sum_part)
