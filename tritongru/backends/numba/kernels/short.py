"""Few steps of the GRU, with weights read where they lie; see `..short` for when, and its `BoundShort` for the plan."""

from __future__ import annotations

from ..compile import Kernel
from .functions import activate
from .rows import get, put
from .unpacked import multiply_unpacked
from .vectors import item_size, lanes, pointer

(
    X, W, BIAS_X, R, BIAS_H, H0, OUT, LAST, SPACE,  # addresses; SPACE: of so many numbers as `count_numbers` says
    T, B, I, U, X_STEP, X_ROW, W_ROW, W_COLUMN, R_ROW, R_COLUMN, H0_ROW,
    ACTIVATION, RECURRENT_ACTIVATION, RESET_AFTER, REVERSE, RESET_GATE_FIRST,
    BEGIN, END,  # of the units that this part computes: all, or with one step and reset_after some
) = range(27)  # fmt: skip


def count_numbers(steps: int, rows: int, units: int) -> int:
    """Return how many numbers of scratch a plan needs."""
    return ((steps + 1) * 3 * units + units) * rows


def short_part(plan, like):
    """The GRU step by step, for all units or, of a single step, for some; gates stand in the order of the weights."""
    steps, rows, units, L = plan[T], plan[B], plan[U], lanes(like)
    x, w, u = pointer(plan[X], like), pointer(plan[W], like), pointer(plan[R], like)
    bias_x, bias_h = pointer(plan[BIAS_X], like), pointer(plan[BIAS_H], like)
    has_x, has_h = plan[BIAS_X] != 0, plan[BIAS_H] != 0
    out, last = pointer(plan[OUT], like), pointer(plan[LAST], like)
    f, g, after = plan[ACTIVATION], plan[RECURRENT_ACTIVATION], plan[RESET_AFTER] != 0
    width, begin, end = 3 * units, plan[BEGIN], plan[END]
    # All units are the columns of the weights from end to end, some are a range in each gate.
    is_whole = end - begin == units
    gap = 0 if is_whole else units
    first = units if plan[RESET_GATE_FIRST] != 0 else 0
    second = units - first
    size, start = item_size(like), plan[SPACE]
    gx, sums = pointer(start, like), pointer(start + steps * rows * width * size, like)
    gated = pointer(start + (steps + 1) * rows * width * size, like)
    # Rows the same distance apart over all steps are one product: of one row, or side by side in memory.
    x_step, x_row = plan[X_STEP], plan[X_STEP] if rows == 1 else plan[X_ROW]
    joined = steps if x_step == rows * x_row else 1
    for t in range(0, steps, joined):
        multiply_unpacked(
            x, t * x_step, x_row, plan[I], w, plan[W_ROW], plan[W_COLUMN], begin, width if is_whole else end, gap,
            pointer(start + t * rows * width * size, like), width, joined * rows,
        )  # fmt: skip
    h, h_row = pointer(plan[H0], like), plan[H0_ROW]
    for s in range(steps):
        t = steps - 1 - s if plan[REVERSE] != 0 else s
        # One place calls the product for all gates, or for two and then the third: a compiler copies it to every place.
        for product in range(1 if after else 2):
            factor, factor_row, left, right = h, h_row, begin, width if is_whole else end
            if not after:
                left, right = product * 2 * units, (2 + product) * units
            if not after and product == 1:
                factor, factor_row = gated, units
                for row in range(rows):
                    for j in range(0, units, L):
                        rest, i, o = units - j, row * width + second + j, t * rows * width + row * width + second + j
                        r = get(sums, i, rest) + get(gx, o, rest)
                        if has_x:
                            r = r + get(bias_x, second + j, rest)
                        if has_h:
                            r = r + get(bias_h, second + j, rest)
                        put(gated, row * units + j, activate(g, r) * get(h, row * h_row + j, rest), rest)
            multiply_unpacked(
                factor, 0, factor_row, units, u, plan[R_ROW], plan[R_COLUMN], left, right, gap,
                sums, width, rows,
            )  # fmt: skip
        for row in range(rows):
            a, b, o = row * width, (t * rows + row) * width, (t * rows + row) * units
            for j in range(begin, end, L):
                rest = end - j
                z = get(sums, a + first + j, rest) + get(gx, b + first + j, rest)
                r = get(sums, a + second + j, rest) + get(gx, b + second + j, rest)
                q, n = get(sums, a + 2 * units + j, rest), get(gx, b + 2 * units + j, rest)
                if has_x:
                    z = z + get(bias_x, first + j, rest)
                    r = r + get(bias_x, second + j, rest)
                    n = n + get(bias_x, 2 * units + j, rest)
                if has_h:
                    z = z + get(bias_h, first + j, rest)
                    r = r + get(bias_h, second + j, rest)
                    q = q + get(bias_h, 2 * units + j, rest)
                z = activate(g, z)
                n = activate(f, n + activate(g, r) * q) if after else activate(f, n + q)
                put(out, o + j, z * get(h, row * h_row + j, rest) + (1.0 - z) * n, rest)
        h, h_row = pointer(plan[OUT] + t * rows * units * size, like), units
    for i in range(rows if plan[LAST] != 0 else 0):
        for j in range(begin, end, L):
            put(last, i * units + j, get(h, i * h_row + j, end - j), end - j)


short = Kernel(short_part)
