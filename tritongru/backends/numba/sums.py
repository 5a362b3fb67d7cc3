"""The gradients of a plain call that are sums over all steps: those of few rows, and what all of them share."""

from __future__ import annotations

import struct

import numpy as np
import torch
from torch import Tensor

from ...call.problem import Inputs
from ...environment import has_large_cache
from .compile import numpy_dtype
from .kernels import sums as at
from .kernels.sums import sums
from .kernels.vector_type import PANEL, count_lanes
from .sharing import may_share, run_apart

# Rows of all steps up to which they are few whatever the sizes, and up to which they are where there is little to
# compute, which is less for torch's weights with fewer inputs than a panel has columns. Timed with 16 on an AMD EPYC
# with AVX2, with 16 to 512 on one with AVX-512 and on an Intel Xeon, whose large second cache holds more rows.
FEW_ROWS, FEW_ROWS_OF_LARGE_CACHE, MOST_ROWS = 64, 256, 512
LITTLE_WORK, LITTLE_WORK_OF_NARROW = 1 << 26, 1 << 25
# Units from which a library's products are the faster, with a large second cache: of many rows they took 0.54 to 0.97
# of the time on an Intel Xeon (bench/results/sums.csv), a whole call 0.79 to 0.95. With a smaller one, on an AMD EPYC,
# they took longer.
LIBRARY_UNITS = 256
# Operations for each thread, where the others have just worked, and where they are to be waked. Seen on an AMD EPYC
# with AVX-512.
LEAST_OF_AWAKE, LEAST_OF_ASLEEP = 2_000_000, 16_000_000


def is_few(rows: int, w: Tensor, units: int) -> bool:
    """Return whether so many rows are summed by `FewRows`."""
    inputs = w.shape[0]
    is_narrow = is_by_column(w) and inputs < PANEL * count_lanes(w.element_size())
    little = LITTLE_WORK_OF_NARROW if is_narrow else LITTLE_WORK
    few = FEW_ROWS_OF_LARGE_CACHE if has_large_cache() and not is_narrow else FEW_ROWS
    most = MOST_ROWS if count_operations(rows, inputs, units) <= little else few
    return 0 < rows <= most and inputs > 0


def are_for_library(rows: int, w: Tensor | None, units: int) -> bool:
    """Return whether so many rows are summed by a library's products; w is None where the input came projected."""
    is_large = has_large_cache() and units >= LIBRARY_UNITS
    return is_large and (w is None or not is_few(rows, w, units))


def count_operations(rows: int, inputs: int, units: int) -> int:
    """Return how many operations the sums of so many rows are, the product for the gradient of x among them."""
    return 6 * rows * units * (2 * inputs + units)


def count_parts(operations: int, awake: bool) -> int:
    """Return how many threads had better share so many operations.

    Args:
        awake: whether they have just worked.
    """
    least = LEAST_OF_AWAKE if awake else LEAST_OF_ASLEEP
    return min(torch.get_num_threads(), max(operations // least, 1))


def sum_few_rows(a: Inputs, wanted: Inputs, d: Tensor, entering: Tensor, awake: bool) -> Inputs:
    """Return what `plain_sums.sum_plainly` does, in one call of compiled code."""
    x, w, found = a.x.reshape(d.shape[0], a.x.shape[-1]), a.w, make_room(a, wanted)
    few = FewRows(x, a, entering.shape[0], (is_by_column(w), is_by_column(a.u)), awake)  # type: ignore[arg-type]
    tensors = d, x, w, entering, None, found.x, found.w, found.u, found.bias_x, found.bias_h
    few.run(*(0 if t is None else t.data_ptr() for t in tensors))
    return found


def make_room(a: Inputs, wanted: Inputs) -> Inputs:
    """Return memory for the gradients of x, the weights and the biases, None where not wanted."""
    d_bias_x, d_bias_h = (a.u.new_empty(3 * a.u.shape[0]) if want else None for want in (wanted.bias_x, wanted.bias_h))
    d_x = a.x.new_empty(a.x.shape) if wanted.x else None
    d_w = empty_like_weights(a.w) if a.w is not None and wanted.w else None
    d_u = empty_like_weights(a.u) if wanted.u else None
    return Inputs(d_x, d_w, d_bias_x, d_u, d_bias_h, None)  # type: ignore[arg-type]


def is_by_column(weights: Tensor) -> bool:
    """Return whether weights lie column by column, as torch's do."""
    return weights.stride(0) == 1


def empty_like_weights(weights: Tensor) -> Tensor:
    """Return memory for a gradient, laid out as the weights are, so that autograd need not copy it."""
    shape = weights.shape
    return weights.new_empty(shape[::-1]).t() if is_by_column(weights) else weights.new_empty(shape)


class FewRows:
    """The sums of few rows, for tensors with the sizes and strides of those it was made for."""

    def __init__(
        self, x: Tensor, a: Inputs, batch: int, by_column: tuple[bool, bool], awake: bool, reverse: bool = False
    ):
        """Take x (N,I), rows contiguous; of `a` the weights, and h0 (B,U) if the states come from two places.

        Args:
            by_column: whether the gradient of w is written as (3U,I) in place of (I,3U), and that of u as (3U,U).
            awake: as `count_parts`.
        """
        (rows, inputs), units = x.shape, a.u.shape[0]
        sizes = rows, inputs, units, x.stride(0), *a.w.stride(), a.h0.stride(0), batch, reverse, *by_column  # type: ignore[union-attr]
        pack = struct.Struct(f"{len(sizes) + 2}q").pack
        count = count_parts(count_operations(rows, inputs, units), awake)
        self._parts = [pack(*sizes, part, count) for part in range(count)]
        self._alone = pack(*sizes, 0, 1)
        self._kernel = sums.for_dtype(numpy_dtype(x))

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
