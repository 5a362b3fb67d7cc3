"""Few steps without gradients: weights are read where they lie, in one call of compiled code.

Packing them would cost as much as the steps. Nothing is kept between calls, so nothing can be out of date: a weight
that was written to by any way, `.data` among them, takes effect in the next call.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...activations import TABLE
from ...call.problem import Inputs, Variant
from .compile import Kernel
from .functions import activate
from .scan import get, put
from .unpacked import multiply_unpacked
from .vectors import item_size, lanes, pointer

MOST_STEPS = 4
MOST_ROWS = 16

(
    T, B, I, U,
    X, X_STEP, X_ROW,
    W, W_ROW, W_COLUMN, R, R_ROW, R_COLUMN, BIAS_X, BIAS_H,
    H0, H0_ROW, OUT, LAST,
    ACTIVATION, RECURRENT_ACTIVATION, RESET_AFTER, REVERSE, RESET_GATE_FIRST,
) = range(24)  # fmt: skip


def is_short(a: Inputs, variant: Variant) -> bool:
    """Return whether `run_short` runs a call: the GRU without masks, resets and dropout, over few steps and rows."""
    x = a.x
    plain = a.w is not None and a.mask is None and a.resets is None and a.drop is None
    if not plain or x.dtype not in _NUMPY:
        return False
    return 0 < x.shape[0] <= MOST_STEPS and 0 < x.shape[0] * x.shape[1] <= MOST_ROWS and x.shape[2] > 0


def run_short(a: Inputs, variant: Variant) -> tuple[Tensor, Tensor]:
    """Return out (T,B,U) at the input's time index, and the last state (B,U); see `is_short`."""
    steps, rows, _ = a.x.shape
    units = a.u.shape[0]
    out, last = a.x.new_empty(steps, rows, units), a.x.new_empty(rows, units)
    _run(a, variant, steps, rows, a.x.stride(0), a.x.stride(1), out, last.data_ptr())
    return out, last


def run_step(a: Inputs, variant: Variant) -> Tensor:
    """Return the state (B,U) after one step, for a stream: nothing but that state is allocated.

    Args:
        a: x (B,I) or (1,B,I), w, u, the biases and h0 (B,U), all float32 or all float64 on a CPU; nothing else is
            looked at. No gradient is recorded.
    """
    rows, units = a.h0.shape
    out = a.h0.new_empty(rows, units)
    _run(a, variant, 1, rows, 0, a.x.stride(-2), out, 0)
    return out


def _run(a: Inputs, variant: Variant, steps: int, rows: int, x_step: int, x_row: int, out: Tensor, last: int) -> None:
    x, w, bias_x, u, bias_h, h0 = a[:6]
    if x.stride(-1) != 1:
        x = x.contiguous()
        x_step, x_row = x.stride(0), x.stride(-2)
    if h0.stride(1) != 1:
        h0 = h0.contiguous()
    bias_x, bias_h = _side_by_side(bias_x), _side_by_side(bias_h)
    plan = np.array((
        steps, rows, x.shape[-1], u.shape[0], x.data_ptr(), x_step, x_row, w.data_ptr(), *w.stride(),  # type: ignore[union-attr]
        u.data_ptr(), *u.stride(),
        0 if bias_x is None else bias_x.data_ptr(), 0 if bias_h is None else bias_h.data_ptr(),
        h0.data_ptr(), h0.stride(0), out.data_ptr(), last, KERNEL_ID[variant.activation],
        KERNEL_ID[variant.recurrent_activation], variant.reset_after, variant.reverse, variant.reset_gate_first,
    ))  # fmt: skip
    short.for_dtype(_NUMPY[x.dtype])(plan)


def _side_by_side(bias: Tensor | None) -> Tensor | None:
    return bias if bias is None or bias.stride(0) == 1 else bias.contiguous()


KERNEL_ID = {name: entry.kernel_id for name, entry in TABLE.items()}
_NUMPY = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}


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
    size = item_size(like)
    space = np.empty(((steps + 1) * width + units) * rows * size, np.uint8)
    start = space.ctypes.data
    gx, sums = pointer(start, like), pointer(start + steps * rows * width * size, like)
    gated = pointer(start + (steps + 1) * rows * width * size, like)
    for t in range(steps):
        multiply_unpacked(
            x, t * plan[X_STEP], plan[X_ROW], plan[I], w, plan[W_ROW], plan[W_COLUMN], 0, width,
            pointer(start + t * rows * width * size, like), width, rows,
        )  # fmt: skip
    h, h_row = pointer(plan[H0], like), plan[H0_ROW]
    for s in range(steps):
        t = steps - 1 - s if plan[REVERSE] != 0 else s
        until = width if after else 2 * units
        multiply_unpacked(h, 0, h_row, units, u, plan[R_ROW], plan[R_COLUMN], 0, until, sums, width, rows)
        if not after:
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
                gated, 0, units, units, u, plan[R_ROW], plan[R_COLUMN], 2 * units, width, sums, width, rows
            )
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
