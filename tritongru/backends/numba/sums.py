"""The gradients of a plain call that are sums over all steps."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...call.problem import Inputs
from .kernels.sums import sums

# Rows of all steps up to which the sums are compiled code's; beyond them they are torch's products.
FEW_ROWS = 64


def sum_plainly(a: Inputs, wanted: Inputs, d: Tensor, entering: Tensor) -> Inputs:
    """Return the gradients of x, the weights and the biases, None where not wanted.

    Args:
        a: x (T,B,I) or (N,I). d: (N,4U) as `eager.layout` says. entering: (N,U) states.
    """
    few = 0 < entering.shape[0] <= FEW_ROWS and a.w is not None
    return (_sum_few_rows if few else _sum_all_steps)(a, wanted, d, entering)


def _sum_all_steps(a: Inputs, wanted: Inputs, d: Tensor, entering: Tensor) -> Inputs:
    """Return what `sum_plainly` does: one product or sum of torch each."""
    U = entering.shape[1]
    d_q, d_zr, d_projected = d[:, :U], d[:, U : 3 * U], d[:, U:]
    d_x = d_w = d_bias_x = d_u = d_bias_h = None
    if wanted.x:
        d_x = (d_projected.contiguous() if a.w is None else torch.mm(d_projected, a.w.t())).view(a.x.shape)
    if wanted.w:
        d_w = _product_like(a.x.flatten(0, -2), d_projected, a.w)
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


def _product_like(left: Tensor, right: Tensor, weight: Tensor) -> Tensor:
    """Return left' right laid out as `weight` is, so that autograd need not copy it to a parameter's layout."""
    return torch.mm(right.t(), left).t() if weight.stride(0) == 1 else torch.mm(left.t(), right)


def _sum_few_rows(a: Inputs, wanted: Inputs, d: Tensor, entering: Tensor) -> Inputs:
    """Return what `_sum_all_steps` does, in one call of compiled code."""
    (rows, units), x, w, u = entering.shape, a.x, a.w, a.u
    inputs = x.shape[-1]
    flat = x.reshape(rows, inputs)
    w_by_column, u_by_column = w.stride(0) == 1, u.stride(0) == 1  # type: ignore[union-attr]
    d_x = x.new_empty(x.shape) if wanted.x else None
    d_w = x.new_empty((3 * units, inputs) if w_by_column else (inputs, 3 * units)) if wanted.w else None
    d_u = x.new_empty((3 * units, units) if u_by_column else (units, 3 * units)) if wanted.u else None
    d_bias_x, d_bias_h = (x.new_empty(3 * units) if want else None for want in (wanted.bias_x, wanted.bias_h))
    results = (d_x, d_w, d_u, d_bias_x, d_bias_h)
    sums.for_dtype(d.numpy().dtype)(np.array((
        rows, inputs, units, d.data_ptr(), flat.data_ptr(), flat.stride(0), w.data_ptr(), *w.stride(),  # type: ignore[union-attr]
        entering.data_ptr(), *(0 if t is None else t.data_ptr() for t in results), w_by_column, u_by_column,
    )))  # fmt: skip
    d_w = d_w.t() if w_by_column and d_w is not None else d_w
    d_u = d_u.t() if u_by_column and d_u is not None else d_u
    return Inputs(d_x, d_w, d_bias_x, d_u, d_bias_h, None)  # type: ignore[arg-type]
