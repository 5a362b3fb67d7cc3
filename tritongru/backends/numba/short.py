"""Few steps: weights are read where they lie, in one call of compiled code.

Packing them would cost as much as the steps. Nothing is kept between calls, so nothing can be out of date: a weight
that was written to by any way, `.data` among them, takes effect in the next call.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...activations import TABLE
from ...call.problem import Inputs, Variant
from ...environment import has_large_cache
from ..eager.layout import gate_width
from .kernels import short as at
from .kernels.dots import COLUMNS
from .kernels.short import short
from .kernels.vector_type import count_lanes
from .problem import LINE, round_up, with_rows
from .sharing import MOST_SHARES, may_share, run_apart, run_sharing
from .spare import borrow, give_back
from .threads import run_parts

# Where reading the weights as they lie was faster than packing them first, one thread each, on an AMD EPYC with
# AVX-512; with AVX2 up to 16 steps and 64 rows were tried. Rows are those of all steps together.
MOST_STEPS = 64
# With one row and a large second cache, from so many units on: times as many steps with torch's weights, which are read
# from several places at once, and a part of them with Keras's. Seen on an Intel Xeon.
MORE_STEPS_UNITS, MORE_STEPS = 256, 4
FEWER_STEPS_UNITS, FEWER_STEPS = (192, 448, 768), (2, 8, 4)
MOST_ROWS = 32
MOST_STATES = 4096  # rows by units, where there are more
# Keras's weights, whose columns are side by side: four rows are as fast as packed, three are not.
MOST_GROUPED_STATES, MOST_APART, APART_UNITS = 16384, 16, 64
# Operations below which handing a part of the units to another thread does not pay: of one row, which waits for
# memory, and of several. In each of several steps they have to be so many, too. Of Keras's weights one row reads a
# part of each line of the matrix, which has to be so many bytes long. Read off bench/results/sharing.csv.
LEAST_OF_ROW, LEAST_OF_ROWS, LEAST_OF_STEP, LEAST_LINE = 800_000, 1_500_000, 150_000, 1 << 11
# With more work packing pays once the rows of a batch are shared among threads; the choice must not depend on their
# number, on which no bit depends.
LITTLE_WORK = 8_000_000


def is_short(a: Inputs, variant: Variant) -> bool:
    """Return whether `run_short` runs a call: the GRU without masks, resets, dropout and norms, few steps and rows."""
    x = a.x
    plain = a.w is not None and a.mask is None and a.resets is None and a.drop is None and a.keep is None
    if not plain or a.scale is not None or x.dtype not in _NUMPY:
        return False
    (steps, batch, inputs), units = x.shape, a.u.shape[0]
    rows = steps * batch
    if rows == 0 or inputs == 0 or steps > _most_steps(a):
        return False
    if batch == 1 or (steps == 1 and variant.reset_after):
        return True
    side_by_side = a.u.stride(1) == 1
    if side_by_side and batch < 4 and units > APART_UNITS:
        return rows <= MOST_APART
    most = MOST_GROUPED_STATES if side_by_side and batch >= 4 else MOST_STATES
    little = 6 * rows * units * (units + inputs) <= LITTLE_WORK
    return rows <= MOST_ROWS or (rows * units <= most and little)


def _most_steps(a: Inputs) -> int:
    """Return beyond how many steps weights are packed."""
    units = a.u.shape[0]
    if not has_large_cache():  # several rows have other bounds, which are lower
        return MOST_STEPS
    if a.u.stride(1) != 1:
        return MOST_STEPS * MORE_STEPS if units >= MORE_STEPS_UNITS else MOST_STEPS
    fewer = [times for least, times in zip(FEWER_STEPS_UNITS, FEWER_STEPS, strict=True) if units >= least]
    return MOST_STEPS // fewer[-1] if fewer else MOST_STEPS


def run_short(a: Inputs, variant: Variant, save_gates: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return out (T,B,U) at the input's time index, the last state (B,U), and the gates if wanted; see `is_short`."""
    a = _in_rows(a)
    return BoundShort(a, variant, save_gates).run(a.x, addresses_of(a))


def _in_rows(a: Inputs) -> Inputs:
    return a._replace(**{name: with_rows(getattr(a, name), a.x.dtype) for name in ("x", "bias_x", "bias_h", "h0")})


def addresses_of(a: Inputs) -> list[int]:
    """Return the addresses of x, w, bias_x, u, bias_h and h0, 0 for no bias."""
    return [0 if t is None else t.data_ptr() for t in a[:6]]


def run_short_members(
    members: Sequence[Inputs], variants: Sequence[Variant], save_gates: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return `run_short` of several scans at once, stacked."""
    members = [_in_rows(a) for a in members]
    (T, B, _), U, M = members[0].x.shape, members[0].u.shape[0], len(members)
    out, last = members[0].x.new_empty(M, T, B, U), members[0].x.new_empty(M, B, U)
    gates = members[0].x.new_empty(M, T, B, gate_width(variants[0]) * U) if save_gates else None
    bound = [BoundShort(a, v, save_gates, M) for a, v in zip(members, variants, strict=True)]
    space = torch.empty(M, bound[0].space, dtype=torch.uint8, device="cpu")
    plans = [
        one.plans(
            *addresses_of(a), out[m].data_ptr(), last[m].data_ptr(), 0 if gates is None else gates[m].data_ptr(),
            space[m].data_ptr(),
        )
        for m, (one, a) in enumerate(zip(bound, members, strict=True))
    ]  # fmt: skip
    run_parts(bound[0].kernel, np.concatenate(plans))
    return out, last, gates


def share_units(a: Inputs, variant: Variant, members: int) -> list[int]:
    """Return where each part of the units begins that threads compute, and where the last one ends.

    A column's sums are the same in all parts that have a vector of units, so no bit depends on the threads.
    """
    (steps, rows, inputs), units, size = a.x.shape, a.u.shape[0], a.x.element_size()
    if not variant.reset_after or (steps > 1 and (members > 1 or 6 * rows * units**2 < 2 * LEAST_OF_STEP)):
        return [0, units]
    lanes = max(count_lanes(size), COLUMNS)
    work = 6 * steps * rows * units * (units + inputs) // (LEAST_OF_ROW if rows == 1 else LEAST_OF_ROWS)
    least = max(lanes, LEAST_LINE // size if rows == 1 and a.u.stride(1) == 1 else 0)
    most = torch.get_num_threads() // members if steps == 1 else min(torch.get_num_threads(), MOST_SHARES)
    count, vectors = min(most, units // least, work), -(-units // lanes)
    return [*(part * vectors // count * lanes for part in range(count)), units] if count > 1 else [0, units]


class BoundShort:
    """`run_short` for tensors with the sizes and strides of those it was made for, which nobody checks again.

    Nothing of their values is kept.

    Attributes:
        kernel: that runs it. space: bytes of scratch that it needs.
    """

    __slots__ = ("_alone", "_parts", "_shape", "_space", "_width", "kernel", "space")

    def __init__(self, a: Inputs, variant: Variant, save_gates: bool = False, members: int = 1):
        """Take x (T,B,I), w, u, the biases and h0 (B,U), all float32 or all float64, rows and biases contiguous.

        Args:
            members: scans that share the threads.
        """
        (steps, rows, inputs), w, u = a.x.shape, a.w, a.u
        self._shape = (steps, rows, u.shape[0])
        self._width = gate_width(variant) * u.shape[0] if save_gates else 0
        f, g = KERNEL_ID[variant.activation], KERNEL_ID[variant.recurrent_activation]
        sizes = (
            steps, rows, inputs, u.shape[0], *a.x.stride()[:2], *w.stride(), *u.stride(), a.h0.stride(0), f, g,  # type: ignore[union-attr]
            variant.reset_after, variant.reverse, variant.reset_gate_first,
        )  # fmt: skip
        bounds = share_units(a, variant, members)
        count = len(bounds) - 1
        # Which thread of how many that meet, and where.
        shares = [(part, count, 0) if steps > 1 else (0, 1, 0) for part in range(count)]
        # Of each part, and of one that is all: its plan but for the addresses.
        pack = struct.Struct(f"{len(sizes) + 5}q").pack
        self._parts = [pack(*sizes, *bounds[part : part + 2], *share) for part, share in enumerate(shares)]
        self._alone = pack(*sizes, 0, u.shape[0], 0, 1, 0)
        self._space = round_up(at.count_numbers(steps, rows, u.shape[0]) * a.x.element_size(), LINE)
        self.space = self._space * count
        self.kernel = short.for_dtype(_NUMPY[a.x.dtype])

    def run(self, x: Tensor, addresses: Sequence[int]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Run the scan.

        Args:
            x: the input, of which the kind is read. addresses: of x, w, bias_x, u, bias_h and h0, 0 for no bias.

        Returns:
            out (T,B,U) at the input's time index; last state (B,U); gates (T,B,..), None if they are not saved.
        """
        T, B, U = self._shape
        out, last = x.new_empty(T, B, U), x.new_empty(B, U)
        gates = x.new_empty(T, B, self._width) if self._width else None
        self.write(*addresses, out.data_ptr(), last.data_ptr(), 0 if gates is None else gates.data_ptr())
        return out, last, gates

    def write(self, *addresses: int) -> None:
        """Run the scan with the addresses of `run`, and those to write out, last state and gates to, all contiguous."""
        space = borrow(self.space)
        steps, count, begin = self._shape[0], len(self._parts), space.data_ptr()
        if count == 1 or not may_share(steps > 1):
            self.kernel.call(_pack_addresses(*addresses, begin) + self._alone, 0.0)
        elif steps == 1:
            run_apart(self.kernel, self.plans(*addresses, begin))
        else:
            run_sharing(self.kernel, self.plans(*addresses, begin), at.MEETING, steps)
        give_back(space)

    def plans(self, *addresses: int) -> np.ndarray:
        """Return the kernel's plans (parts, fields), with the addresses of `write`, and of `space` bytes of scratch."""
        *tensors, begin = addresses
        plans = b"".join(
            [_pack_addresses(*tensors, begin + part * self._space) + own for part, own in enumerate(self._parts)]
        )
        return np.frombuffer(bytearray(plans), np.int64).reshape(len(self._parts), -1)


_pack_addresses = struct.Struct(f"{at.T}q").pack  # they come first


KERNEL_ID = {name: entry.kernel_id for name, entry in TABLE.items()}
_NUMPY = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
