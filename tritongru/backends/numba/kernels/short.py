"""Few steps of the GRU, with weights read where they lie; see `..short` for when, and its `_run` for the plan."""

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
) = range(25)  # fmt: skip


def count_numbers(steps: int, rows: int, units: int) -> int:
    """Return how many numbers of scratch a plan needs."""
    return ((steps + 1) * 3 * units + units) * rows


def short_part(plan, like):
    """The GRU step by step; gates stand in the order of the weights."""
    steps, rows, units, L = plan[T], plan[B], plan[U], lanes(like)
    x, w, u = pointer(plan[X], like), pointer(plan[W], like), pointer(plan[R], like)
    bias_x, bias_h = pointer(plan[BIAS_X], like), pointer(plan[BIAS_H], like)
    has_x, has_h = plan[BIAS_X] != 0, plan[BIAS_H] != 0
    out, last = pointer(plan[OUT], like), pointer(plan[LAST], like)
    f, g, after = plan[ACTIVATION], plan[RECURRENT_ACTIVATION], plan[RESET_AFTER] != 0
    width = 3 * units
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
            x, t * x_step, x_row, plan[I], w, plan[W_ROW], plan[W_COLUMN], 0, width,
            pointer(start + t * rows * width * size, like), width, joined * rows,
        )  # fmt: skip
    h, h_row = pointer(plan[H0], like), plan[H0_ROW]
    for s in range(steps):
        t = steps - 1 - s if plan[REVERSE] != 0 else s
        # One place calls the product for all gates, or for two and then the third: a compiler copies it to every place.
        for product in range(1 if after else 2):
            factor, factor_row, begin, end = h, h_row, 0, width if after else 2 * units
            if product == 1:
                factor, factor_row, begin, end = gated, units, 2 * units, width
                for row in range(rows):
                    for j in range(0, units, L):
                        left, i, o = units - j, row * width + second + j, t * rows * width + row * width + second + j
                        r = get(sums, i, left) + get(gx, o, left)
                        if has_x:
                            r = r + get(bias_x, second + j, left)
                        if has_h:
                            r = r + get(bias_h, second + j, left)
                        put(gated, row * units + j, activate(g, r) * get(h, row * h_row + j, left), left)
            multiply_unpacked(
                factor, 0, factor_row, units, u, plan[R_ROW], plan[R_COLUMN], begin, end, sums, width, rows
            )  # fmt: skip
        for row in range(rows):
            a, b, o = row * width, (t * rows + row) * width, (t * rows + row) * units
            for j in range(0, units, L):
                left = units - j
                z = get(sums, a + first + j, left) + get(gx, b + first + j, left)
                r = get(sums, a + second + j, left) + get(gx, b + second + j, left)
                q, n = get(sums, a + 2 * units + j, left), get(gx, b + 2 * units + j, left)
                if has_x:
                    z = z + get(bias_x, first + j, left)
                    r = r + get(bias_x, second + j, left)
                    n = n + get(bias_x, 2 * units + j, left)
                if has_h:
                    z = z + get(bias_h, first + j, left)
                    r = r + get(bias_h, second + j, left)
                    q = q + get(bias_h, 2 * units + j, left)
                z = activate(g, z)
                n = activate(f, n + activate(g, r) * q) if after else activate(f, n + q)
                put(out, o + j, z * get(h, row * h_row + j, left) + (1.0 - z) * n, left)
        h, h_row = pointer(plan[OUT] + t * rows * units * size, like), units
    for i in range(rows if plan[LAST] != 0 else 0):
        for j in range(0, units, L):
            put(last, i * units + j, get(h, i * h_row + j, units - j), units - j)


short = Kernel(short_part)
