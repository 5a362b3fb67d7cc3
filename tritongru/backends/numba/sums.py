"""The gradients of a plain call that are sums over all steps."""

from __future__ import annotations

import struct

import numpy as np
import torch
from torch import Tensor

from ...call.problem import Inputs
from ..eager.layout import product_like
from .kernels import sums as at
from .kernels.sums import sums
from .sharing import may_share, run_apart

# Rows of all steps up to which the sums are compiled code's whatever their sizes, timed with 16 on an AMD EPYC with
# AVX2; and up to which they are where there is little to compute, timed with 128 to 512 on an AMD EPYC with AVX-512.
# Beyond them they are torch's products.
FEW_ROWS, MOST_ROWS, LITTLE_WORK = 64, 512, 1 << 26
# Operations for each thread, where the others have just worked, and where they are to be waked. Seen on an AMD EPYC
# with AVX-512.
LEAST_OF_AWAKE, LEAST_OF_ASLEEP = 2_000_000, 16_000_000


def sum_plainly(a: Inputs, wanted: Inputs, d: Tensor, entering: Tensor, awake: bool) -> Inputs:
    """Return the gradients of x, the weights and the biases, None where not wanted.

    Args:
        a: x (T,B,I) or (N,I). d: (N,4U) as `eager.layout` says. entering: (N,U) states.
        awake: whether several threads have just worked.
    """
    if a.w is not None and is_few(entering.shape[0], a.x.shape[-1], entering.shape[1]):
        return _sum_few_rows(a, wanted, d, entering, awake)
    return _sum_all_steps(a, wanted, d, entering)


def is_few(rows: int, inputs: int, units: int) -> bool:
    """Return whether compiled code sums so many rows."""
    most = MOST_ROWS if count_operations(rows, inputs, units) <= LITTLE_WORK else FEW_ROWS
    return 0 < rows <= most and inputs > 0


def count_operations(rows: int, inputs: int, units: int) -> int:
    """Return how many operations the sums of so many rows are, the product for the gradient of x among them."""
    return 6 * rows * units * (2 * inputs + units)


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


def _sum_few_rows(a: Inputs, wanted: Inputs, d: Tensor, entering: Tensor, awake: bool) -> Inputs:
    """Return what `_sum_all_steps` does, in one call of compiled code."""
    x, w, width = a.x.reshape(d.shape[0], a.x.shape[-1]), a.w, 3 * entering.shape[1]
    d_x = x.new_empty(a.x.shape) if wanted.x else None
    d_w = _empty_like_weights(w) if wanted.w else None  # type: ignore[arg-type]
    d_u = _empty_like_weights(a.u) if wanted.u else None
    d_bias_x, d_bias_h = (x.new_empty(width) if want else None for want in (wanted.bias_x, wanted.bias_h))
    few = FewRows(x, a, entering.shape[0], (_is_by_column(w), _is_by_column(a.u)), awake)  # type: ignore[arg-type]
    tensors = d, x, w, entering, None, d_x, d_w, d_u, d_bias_x, d_bias_h
    few.run(*(0 if t is None else t.data_ptr() for t in tensors))
    return Inputs(d_x, d_w, d_bias_x, d_u, d_bias_h, None)  # type: ignore[arg-type]


def _is_by_column(weights: Tensor) -> bool:
    return weights.stride(0) == 1


def _empty_like_weights(weights: Tensor) -> Tensor:
    shape = weights.shape
    return weights.new_empty(shape[::-1]).t() if _is_by_column(weights) else weights.new_empty(shape)


class FewRows:
    """The sums of few rows, for tensors with the sizes and strides of those it was made for."""

    def __init__(
        self, x: Tensor, a: Inputs, batch: int, by_column: tuple[bool, bool], awake: bool, reverse: bool = False
    ):
        """Take x (N,I), rows contiguous; of `a` the weights, and h0 (B,U) if the states come from two places.

        Args:
            by_column: whether the gradient of w is written as (3U,I) in place of (I,3U), and that of u as (3U,U).
            awake: as `sum_plainly`.
        """
        (rows, inputs), units = x.shape, a.u.shape[0]
        sizes = rows, inputs, units, x.stride(0), *a.w.stride(), a.h0.stride(0), batch, reverse, *by_column  # type: ignore[union-attr]
        pack = struct.Struct(f"{len(sizes) + 2}q").pack
        least = LEAST_OF_AWAKE if awake else LEAST_OF_ASLEEP
        count = min(torch.get_num_threads(), max(count_operations(rows, inputs, units) // least, 1))
        self._parts = [pack(*sizes, part, count) for part in range(count)]
        self._alone = pack(*sizes, 0, 1)
        self._kernel = sums.for_dtype(np.dtype(np.float64 if x.dtype == torch.float64 else np.float32))

    def run(self, *addresses: int) -> None:
        """Write the gradients, all contiguous.

        Args:
            addresses: of d (N,4U), x, w, and states (N,U) that entered the steps, or that left them where that of h0
                follows; of the gradients of x, w, u, bias_x and bias_h, 0 where not wanted.
        """
        tensors = _pack_addresses(*addresses)
        if len(self._parts) == 1 or not may_share(meets=False):
            self._kernel.call(tensors + self._alone, 0.0)
            return
        plans = bytearray(b"".join(tensors + own for own in self._parts))
        run_apart(self._kernel, np.frombuffer(plans, np.int64).reshape(len(self._parts), -1))


_pack_addresses = struct.Struct(f"{at.N}q").pack  # they come first
