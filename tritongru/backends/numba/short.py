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
from .kernels.short import short

MOST_STEPS = 4
MOST_ROWS = 16


def is_short(a: Inputs, variant: Variant) -> bool:
    """Return whether `run_short` runs a call: the GRU without masks, resets and dropout, over few steps and rows."""
    x = a.x
    plain = a.w is not None and a.mask is None and a.resets is None and a.drop is None and a.keep is None
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
        u.data_ptr(), *u.stride(), 0 if bias_x is None else bias_x.data_ptr(),
        0 if bias_h is None else bias_h.data_ptr(), h0.data_ptr(), h0.stride(0), out.data_ptr(), last,
        KERNEL_ID[variant.activation], KERNEL_ID[variant.recurrent_activation],
        variant.reset_after, variant.reverse, variant.reset_gate_first,
    ))  # fmt: skip
    short.for_dtype(_NUMPY[x.dtype])(plan)


def _side_by_side(bias: Tensor | None) -> Tensor | None:
    return bias if bias is None or bias.stride(0) == 1 else bias.contiguous()


KERNEL_ID = {name: entry.kernel_id for name, entry in TABLE.items()}
_NUMPY = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
