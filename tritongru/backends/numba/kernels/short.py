"""Few steps of the GRU, with weights read where they lie; see `..short` for when, and its `BoundShort` for the plan."""

from __future__ import annotations

from ..compile import Kernel, helper
from .functions import activate
from .meeting import go_together
from .rows import get, put
from .unpacked import multiply_unpacked
from .vectors import advance, item_size, lanes, pointer

(
    # Addresses; GATES (T,B,4U or 3U) as those of fields.py, or 0. SPACE: of so many numbers as `count_numbers` says.
    X, W, BIAS_X, R, BIAS_H, H0, OUT, LAST, GATES, SPACE,
    T, B, I, U, X_STEP, X_ROW, W_ROW, W_COLUMN, R_ROW, R_COLUMN, H0_ROW,
    ACTIVATION, RECURRENT_ACTIVATION, RESET_AFTER, REVERSE, RESET_GATE_FIRST,
    # With reset_after a part of the units, from the first to behind the last: of a single step, or of one of several
    # threads, which of how many, which meet after each step at an address.
    BEGIN, END, SHARE, SHARES, MEETING,
) = range(31)  # fmt: skip


def count_numbers(steps: int, rows: int, units: int) -> int:
    """Return how many numbers of scratch a plan needs."""
    return ((steps + 1) * 3 * units + units) * rows


@helper
def columns_of(plan, first, end):
    """Return the columns of some units as `multiply_unpacked` takes them: all side by side, or some in each gate."""
    units = plan[U]
    if end - first == units:
        return 0, 3 * units, 0
    return first, end, units


@helper
def prepare(plan, first, end, like):
    """Nothing: weights stay where they lie."""


@helper
def project(plan, first, end, s0, s1, like):
    """Multiply the inputs of all steps with the columns of some units."""
    steps, rows, width, size = plan[T], plan[B], 3 * plan[U], item_size(like)
    x, w = pointer(plan[X], like), pointer(plan[W], like)
    left, right, gap = columns_of(plan, first, end)
    # Rows the same distance apart over all steps are one product: of one row, or side by side in memory.
    x_step, x_row = plan[X_STEP], plan[X_STEP] if rows == 1 else plan[X_ROW]
    joined = steps if x_step == rows * x_row else 1
    for t in range(0, steps, joined):
        multiply_unpacked(
            x, t * x_step, x_row, plan[I], w, plan[W_ROW], plan[W_COLUMN], left, right, gap,
            pointer(plan[SPACE] + t * rows * width * size, like), width, joined * rows, False,
        )  # fmt: skip


@helper
def take(plan, s, s0, begin, end, like):
    """Compute some units of a step; gates stand in the order of the weights."""
    steps, rows, units, L = plan[T], plan[B], plan[U], lanes(like)
    u, out = pointer(plan[R], like), pointer(plan[OUT], like)
    bias_x, bias_h = pointer(plan[BIAS_X], like), pointer(plan[BIAS_H], like)
    has_x, has_h = plan[BIAS_X] != 0, plan[BIAS_H] != 0
    f, g, after = plan[ACTIVATION], plan[RECURRENT_ACTIVATION], plan[RESET_AFTER] != 0
    width, saves, gates = 3 * units, plan[GATES] != 0, pointer(plan[GATES], like)
    wide = width + units if after else width
    first = units if plan[RESET_GATE_FIRST] != 0 else 0
    second = units - first
    gx = pointer(plan[SPACE], like)
    sums, gated = advance(gx, steps * rows * width), advance(gx, (steps + 1) * rows * width)
    t = steps - 1 - s if plan[REVERSE] != 0 else s
    h, h_row = pointer(plan[H0], like), plan[H0_ROW]
    if s > 0:
        h, h_row = advance(out, (t + 1 if plan[REVERSE] != 0 else t - 1) * rows * units), units
    left, right, gap = columns_of(plan, begin, end)
    # One place calls the product for all gates, or for two and then the third: a compiler copies it to every place.
    for product in range(1 if after else 2):
        factor, factor_row = h, h_row
        if not after:
            left, right = product * 2 * units, (2 + product) * units
        if product == 1:
            factor, factor_row = gated, units
            for row in range(rows):
                for j in range(0, units, L):
                    rest, i, o = units - j, row * width + second + j, (t * rows + row) * width + second + j
                    r = get(sums, i, rest) + get(gx, o, rest)
                    if has_x:
                        r = r + get(bias_x, second + j, rest)
                    if has_h:
                        r = r + get(bias_h, second + j, rest)
                    r = activate(g, r)
                    put(gated, row * units + j, r * get(h, row * h_row + j, rest), rest)
                    if saves:
                        put(gates, o, r, rest)
        multiply_unpacked(
            factor, 0, factor_row, units, u, plan[R_ROW], plan[R_COLUMN], left, right, gap, sums, width, rows,
            s % 2 == 1,
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
            z, r = activate(g, z), activate(g, r)
            n = activate(f, n + r * q) if after else activate(f, n + q)
            if saves:
                k = (t * rows + row) * wide + wide - width + j
                put(gates, k + first, z, rest)
                put(gates, k + 2 * units, n, rest)
                if after:
                    put(gates, k + second, r, rest)
                    put(gates, k - units, q, rest)
            put(out, o + j, z * get(h, row * h_row + j, rest) + (1.0 - z) * n, rest)


go_through = go_together(prepare, project, take)


def short_part(plan, like):
    """The GRU step by step, or one thread's part of it."""
    steps, rows, units, first, end = plan[T], plan[B], plan[U], plan[BEGIN], plan[END]
    # A look at another thread's number takes some cycles, the product of one row 3 U U / 16.
    go_through(
        plan, pointer(plan[MEETING], 0), plan[SHARE], plan[SHARES], steps, steps, first, end, units,
        units * units * rows, like,
    )  # fmt: skip
    if plan[SHARES] > 1:  # the first thread has seen all units
        first, end = 0, units if plan[SHARE] == 0 else 0
    last, h = pointer(plan[LAST], like), pointer(plan[OUT], like)
    h = advance(h, (0 if plan[REVERSE] != 0 else steps - 1) * rows * units)
    for i in range(rows if plan[LAST] != 0 else 0):
        for j in range(first, end, lanes(like)):
            put(last, i * units + j, get(h, i * units + j, end - j), end - j)


short = Kernel(short_part)
