"""The gradients of a plain call that are sums over all steps."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...call.problem import Inputs
from ..eager.layout import product_like
from .kernels import sums as at
from .kernels.sums import sums

# Rows of all steps up to which the sums are compiled code's; beyond them they are torch's products. Chosen where 16
# rows were timed, on an AMD EPYC with AVX2; no other processor and no other number was.
FEW_ROWS = 64


def sum_plainly(a: Inputs, wanted: Inputs, d: Tensor, entering: Tensor) -> Inputs:
    """Return the gradients of x, the weights and the biases, None where not wanted.

    Args:
        a: x (T,B,I) or (N,I). d: (N,4U) as `eager.layout` says. entering: (N,U) states.
    """
    few = a.w is not None and is_few(*entering.shape[:1], a.x.shape[-1])
    return (_sum_few_rows if few else _sum_all_steps)(a, wanted, d, entering)


def is_few(rows: int, inputs: int) -> bool:
    """Return whether compiled code sums so many rows."""
    return 0 < rows <= FEW_ROWS and inputs > 0


def _sum_all_steps(a: Inputs, wanted: Inputs, d: Tensor, entering: Tensor) -> Inputs:
    """Return what `sum_plainly` does: one product or sum of torch each."""
    U = entering.shape[1]
    d_q, d_zr, d_projected = d[:, :U], d[:, U : 3 * U], d[:, U:]
    d_x = d_w = d_bias_x = d_u = d_bias_h = None
    if wanted.x:
        d_x = (d_projected.contiguous() if a.w is None else torch.mm(d_projected, a.w.t())).view(a.x.shape)
    if wanted.w:
        d_w = product_like(a.x.flatten(0, -2), d_projected, a.w)
    if wanted.u:
        by_column = a.u.stride(0) == 1
        d_u = torch.empty_like(a.u)
        for rows, part in ((d_zr, slice(0, 2 * U)), (d_q, slice(2 * U, 3 * U))):
            if by_column:
                torch.mm(rows.t(), entering, out=d_u.t()[part])
            else:
                d_u[:, part] = torch.mm(entering.t(), rows)
    if wanted.bias_x or wanted.bias_h:
        sums = d.sum(0)
        d_bias_x = sums[U:] if wanted.bias_x else None
        d_bias_h = torch.cat((sums[U : 3 * U], sums[:U])) if wanted.bias_h else None
    return Inputs(d_x, d_w, d_bias_x, d_u, d_bias_h, None)  # type: ignore[arg-type]


def _sum_few_rows(a: Inputs, wanted: Inputs, d: Tensor, entering: Tensor) -> Inputs:
    """Return what `_sum_all_steps` does, in one call of compiled code."""
    flat = a.x.reshape(d.shape[0], a.x.shape[-1])
    return FewRows(flat, a, entering.shape[0]).run(a, wanted, d, flat, entering)


class FewRows:
    """`sum_plainly` of few rows, for tensors with the sizes and strides of those it was made for."""

    def __init__(self, x: Tensor, a: Inputs, batch: int, reverse: bool = False):
        """Take x (N,I), rows contiguous; of `a` the weights, and h0 (B,U) if the states come from two places."""
        (rows, inputs), units = x.shape, a.u.shape[0]
        self._w_by_column, self._u_by_column = a.w.stride(0) == 1, a.u.stride(0) == 1  # type: ignore[union-attr]
        self._shapes = (inputs, 3 * units), (units, 3 * units)
        self._plan = np.array((
            rows, inputs, units, 0, 0, x.stride(0), 0, *a.w.stride(), 0, 0, a.h0.stride(0), batch, reverse,  # type: ignore[union-attr]
            0, 0, 0, 0, 0, self._w_by_column, self._u_by_column,
        ))  # fmt: skip
        self._run = sums.for_dtype(np.dtype(np.float64 if x.dtype == torch.float64 else np.float32))

    def run(self, a: Inputs, wanted: Inputs, d: Tensor, x: Tensor, states: Tensor, h0: Tensor | None = None) -> Inputs:
        """Return what `sum_plainly` does.

        Args:
            d: (N,4U). states: (N,U) that entered the steps; where `h0` (B,U) is given, that left them.
        """
        d_x = x.new_empty(a.x.shape) if wanted.x else None
        d_w = _empty_like_weights(x, self._shapes[0], self._w_by_column) if wanted.w else None
        d_u = _empty_like_weights(x, self._shapes[1], self._u_by_column) if wanted.u else None
        d_bias_x = x.new_empty(self._shapes[0][1]) if wanted.bias_x else None
        d_bias_h = x.new_empty(self._shapes[0][1]) if wanted.bias_h else None
        plan = self._plan.copy()  # another thread may be calling
        plan[_ADDRESSES] = [
            0 if t is None else t.data_ptr() for t in (d, x, a.w, states, h0, d_x, d_w, d_u, d_bias_x, d_bias_h)
        ]
        self._run(plan)
        return Inputs(d_x, d_w, d_bias_x, d_u, d_bias_h, None)  # type: ignore[arg-type]


def _empty_like_weights(x: Tensor, shape: tuple[int, int], by_column: bool) -> Tensor:
    return x.new_empty(shape[::-1]).t() if by_column else x.new_empty(shape)


_ADDRESSES = [at.D, at.X, at.W, at.H, at.H0, at.D_X, at.D_W, at.D_U, at.D_BIAS_X, at.D_BIAS_H]
