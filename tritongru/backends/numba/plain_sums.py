"""The gradients of a plain call that are sums over all steps, whose rows may come some at a time."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from ...call.problem import Inputs
from .compile import numpy_dtype
from .kernels import panel_sums as at
from .kernels.panel_sums import panel_sums
from .kernels.vector_type import PANEL, count_lanes
from .problem import LINE, PACKED_ALONE, round_up
from .sharing import may_share, run_apart
from .sums import count_operations, count_parts, is_by_column, is_few, make_room, sum_few_rows


def sum_plainly(a: Inputs, wanted: Inputs, d: Tensor, entering: Tensor, awake: bool) -> Inputs:
    """Return the gradients of x, the weights and the biases, None where not wanted.

    Args:
        a: x (T,B,I) or (N,I), (..,3U) without w. d: (N,4U) as `eager.layout` says. entering: (N,U) states.
        awake: whether several threads have just worked.
    """
    sums = PlainSums(a, wanted, d.shape[0], awake)
    sums.add(0, a.x.flatten(0, -2), d, entering)
    return sums.finish()


class PlainSums:
    """The sums of `sum_plainly`, of which no bit depends on the number of threads."""

    def __init__(self, a: Inputs, wanted: Inputs, rows: int, awake: bool):
        """Take what `sum_plainly` does, and the number of all rows."""
        self._a, self._wanted, self._rows, self._awake, self._added = a, wanted, rows, awake, 0
        self._units, self._inputs = a.u.shape[0], 0 if a.w is None else a.w.shape[0]
        self._found: Inputs | None = None

    def add(self, begin: int, x: Tensor, d: Tensor, entering: Tensor) -> None:
        """Add the rows from `begin` on, each once, in any order.

        Args:
            x: (N,I), rows contiguous. d: (N,4U), entering: (N,U), contiguous.
        """
        a, rows = self._a, d.shape[0]
        if self._found is None and rows == self._rows and a.w is not None and is_few(rows, a.w, self._units):
            self._found = sum_few_rows(a, self._wanted, d, entering, self._awake)
        elif rows > 0:
            self._add_panels(begin, x, d, entering)

    def finish(self) -> Inputs:
        """Return the gradients, once all rows were added."""
        if self._found is None:  # there was none
            self._found = make_room(self._a, self._wanted)
            for value in self._found:
                if value is not None:
                    value.zero_()
        return self._found

    def _begin(self, rows: int) -> None:
        """Have memory for the gradients, and to compute them in, when so many rows come first."""
        a, units, inputs = self._a, self._units, self._inputs
        self._found, dtype = make_room(a, self._wanted), numpy_dtype(a.u)
        columns = PANEL * count_lanes(dtype.itemsize)
        self._kernel = panel_sums.for_dtype(dtype)
        # The weights, transposed and packed, and the totals of all panels; or each thread has its own of both.
        packed = 3 * units * round_up(inputs, columns) if self._wanted.x else 0
        totals = round_up(inputs, 8) + round_up(units, 8) + 1
        self._is_alone = rows == self._rows and rows <= at.AT_ONCE
        self._is_packed_apart = packed * dtype.itemsize <= PACKED_ALONE
        self._packed = a.u.new_empty(0 if self._is_packed_apart else packed)
        self._totals = a.u.new_empty(0 if self._is_alone else totals * round_up(4 * units, columns))
        # Bytes of each thread: these two, some rows of the gradient of x, and the first rows of their groups.
        own = packed if self._is_packed_apart else 0, totals * columns if self._is_alone else 0
        own = (*own, at.ROWS * round_up(inputs, columns))
        self._own = [*(round_up(numbers * dtype.itemsize, LINE) for numbers in own), at.ROWS // 4 * 8]

    def _add_panels(self, begin: int, x: Tensor, d: Tensor, entering: Tensor) -> None:
        a, rows = self._a, d.shape[0]
        if self._found is None:
            self._begin(rows)
        found = self._found
        assert found is not None
        is_first, self._added = self._added == 0, self._added + rows
        d_x = None if found.x is None else found.x.view(self._rows, x.shape[1])[begin : begin + rows]
        w_row, w_column, w_by_column = 0, 0, False
        if a.w is not None:
            w_row, w_column, w_by_column = *a.w.stride(), is_by_column(a.w)
        elif d_x is not None:
            d_x.copy_(d[:, self._units :])
            d_x = None
        given, results = (d, x, entering, a.w), (d_x, found.w, found.u, found.bias_x, found.bias_h)
        given, results = ([0 if t is None else t.data_ptr() for t in tensors] for tensors in (given, results))
        if not any(results):
            return
        sizes = rows, self._inputs, self._units, x.stride(0), w_row, w_column, w_by_column, is_by_column(a.u)
        ends = is_first, self._added == self._rows, self._is_alone
        operations = count_operations(rows, self._inputs, self._units)
        count = count_parts(operations, self._awake) if may_share(meets=False) else 1
        own = torch.empty(count, sum(self._own), dtype=torch.uint8, device="cpu")
        plans = np.empty((count, at.FIELDS), np.int64)
        for part in range(count):
            packed, totals, *scratch = itertools.accumulate(self._own[:-1], initial=own[part].data_ptr())
            packed = packed if self._is_packed_apart else self._packed.data_ptr()
            totals = totals if self._is_alone else self._totals.data_ptr()
            plans[part] = (*given, packed, totals, *scratch, *results, *sizes, *ends, True, True, part, count)
        if self._is_packed_apart or d_x is None:
            run_apart(self._kernel, plans)
            return
        for sums, multiplies in ((True, False), (False, True)):  # all share what is packed by the first time
            plans[:, at.SUMS], plans[:, at.MULTIPLIES] = sums, multiplies
            run_apart(self._kernel, plans)
