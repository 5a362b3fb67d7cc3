"""A scan like one before: planned once, and then only told where its tensors are.

Planning a scan takes longer than some steps of one row. A plan is a list of numbers, most of which follow from sizes
and strides; the others are addresses, each some bytes behind the beginning of a tensor or of the scan's own memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ...call.problem import Inputs, Variant
from ..eager.layout import entering_states, gate_width
from ..gradients import Saved
from .backward import chunks_of, plan_reverse, run_backward
from .kernels import fields as at
from .kernels.packing import pack
from .kernels.reverse import reverse_scan
from .kernels.scan import scan
from .problem import LINE, Problem, how_to_scan, round_up, run_packing, with_rows
from .short import BoundShort, is_short
from .spare import borrow, give_back
from .sums import FewRows, is_few, sum_plainly
from .threads import run_parts

# What the addresses of a plan point into: the tensors of a call by their own names, and the scan's memory.
_PACKED = ("W", "RECURRENT", "BIAS", "BIAS_N")
_SCRATCH = ("H", "ENTERING", "PROJECTED", "SUMS", "SHOWN", "KEPT", "PLACED", "GROUPS", "LIVE", "FLAGS")
OF_REVERSE = ("U_GIVEN", "H0", "STATES", "GATES", "D_OUT", "D_LAST", "D_GATES", "D_H0")
INPUTS = ("X", "W_GIVEN", "BIAS_X", "U_GIVEN", "BIAS_H", "H0")


def bind(a: Inputs, variant: Variant, gradients: bool) -> BoundScan | BoundShort:
    """Return the plain scan of tensors like these, (T,B,I), all float32 or all float64, rows and biases contiguous.

    Args:
        gradients: whether `run_backward` will be called.
    """
    return BoundShort(a, variant) if not gradients and is_short(a) else BoundScan(a, variant, gradients)


class Plans:
    """The plans of a scan's parts with other addresses in them.

    Args:
        problem: planned, with its weights packed. parts: its plans. tensors: the fields that point to the beginning of
            a tensor, in the order in which `at` takes their addresses.
    """

    def __init__(self, problem: Problem, parts: Sequence[np.ndarray], tensors: Sequence[str]):
        self._offsets = np.stack(parts)
        self._sources = np.zeros(self._offsets.shape, np.intp)
        begins = problem.packed.data_ptr(), problem.scratch.data_ptr()
        for number, names in enumerate((_PACKED, _SCRATCH, *((name,) for name in tensors)), 1):
            for place in map(at.NAMES.index, names):
                given = self._offsets[:, place] != 0
                self._sources[given, place] = number
                self._offsets[given, place] -= begins[number - 1] if number <= 2 else self._offsets[given, place]
        self._kept = problem.kept  # what the other addresses point into, as the bound of gradients
        self.packed = round_up(problem.packed_bytes, LINE)
        self.bytes = self.packed + problem.scratch.numel()

    def at(self, memory: int, *tensors: int) -> np.ndarray:
        """Return the plans (parts, fields) with `bytes` of memory at an address, and tensors at theirs; 0 for none."""
        return self._offsets + np.array((0, memory, memory + self.packed, *tensors))[self._sources]


class BoundScan:
    """The plain scan of tensors with the sizes and strides of those it was made for, which nobody checks again."""

    def __init__(self, a: Inputs, variant: Variant, gradients: bool):
        """Take x (T,B,I), w, u, the biases and h0 (B,U), all float32 or all float64, rows and biases contiguous.

        Args:
            gradients: whether `run_backward` will be called.
        """
        (T, B, _), U = a.x.shape, a.u.shape[0]
        self.variant = variant
        self._shape, self._width = (T, B, U), gate_width(variant) * U if gradients else 0
        problem = Problem(a, variant)
        # Any address but 0: it only says that there is such a tensor.
        problem.fields |= dict(OUT=1, LAST=1, GATES=int(gradients))
        parts = problem.plan_scan(0, T)
        self._forward = Plans(problem, parts, (*INPUTS, "OUT", "LAST", "GATES"))
        problem.release()
        kernel, self._run_scan = how_to_scan(parts)
        self._packs = kernel is scan
        self._pack, self._scan = pack.for_dtype(problem.dtype), kernel.for_dtype(problem.dtype)
        self._reverse_scan = reverse_scan.for_dtype(problem.dtype)
        self._backward: Plans | None = None
        self._few: FewRows | None = None
        if gradients and variant.reset_after and len(chunks_of(T, B, self._width)) == 1:
            self._plan_backward(a)

    def _plan_backward(self, a: Inputs) -> None:
        T, B, U = self._shape
        nothing = Inputs(*[None] * len(Inputs._fields))  # type: ignore[arg-type]
        saved = Saved(a.x.new_empty(T, B, U), a.x.new_empty(0), a.x.new_empty(0))
        reverse = plan_reverse(a, self.variant, saved, None, None, nothing)
        reverse.problem.fields |= dict(GATES=1, D_OUT=1, D_LAST=1, D_GATES=1, BEGIN=0, END=T)
        self._backward = Plans(reverse.problem, reverse.plan(), OF_REVERSE)
        reverse.problem.release()
        # Rows that are the same distance apart.
        if is_few(T * B, a.x.shape[2]) and (B == 1 or T == 1 or a.x.stride(0) == B * a.x.stride(1)):
            self._few = FewRows(a.x.flatten(0, 1), a, B, self.variant.reverse)

    def run(self, x: Tensor, inputs: Sequence[int]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Run the scan.

        Args:
            x: the input, of which the kind is read. inputs: the addresses of INPUTS, 0 for no bias.

        Returns:
            out (T,B,U) at the input's time index; last state (B,U); gates (T,B,..), None without gradients.
        """
        T, B, U = self._shape
        out, last = x.new_empty(T, B, U), x.new_empty(B, U)
        gates = x.new_empty(T, B, self._width) if self._width else None
        memory = borrow(self._forward.bytes)
        plans = self._forward.at(
            memory.data_ptr(), *inputs, out.data_ptr(), last.data_ptr(), 0 if gates is None else gates.data_ptr()
        )
        if self._packs:
            run_packing(self._pack, plans[0], self._forward.packed)
        self._run_scan(self._scan, plans)
        give_back(memory)
        return out, last, gates

    def run_backward(self, a: Inputs, saved: Saved, d_out: Tensor | None, d_last: Tensor | None, wanted: Inputs):
        """Return the gradients of the inputs `a`; arguments and results as `backward.run_backward`."""
        if self._backward is None:
            return run_backward(a, self.variant, None, saved, d_out, d_last, wanted)
        T, B, U = self._shape
        d_out, d_last = with_rows(d_out, a.x.dtype), None if d_last is None else d_last.contiguous()
        d, d_h0 = a.x.new_empty(T * B, self._width), a.x.new_empty(B, U)
        memory = borrow(self._backward.bytes)
        tensors = (a.u, a.h0, saved.out, saved.gates, d_out, d_last, d, d_h0)
        plans = self._backward.at(memory.data_ptr(), *(0 if t is None else t.data_ptr() for t in tensors))
        if d_out is not None:
            plans[:, at.D_OUT_STEP], plans[:, at.D_OUT_ROW] = d_out.stride()[:2]
        run_packing(self._pack, plans[0], self._backward.packed)
        run_parts(self._reverse_scan, plans)
        give_back(memory)
        if self._few is not None:
            found = self._few.run(a, wanted, d, a.x, saved.out, a.h0)
            return found._replace(h0=d_h0 if wanted.h0 else None)
        entering = entering_states(saved.out, 0, T, a.h0, None, None, self.variant).flatten(0, 1)
        return sum_plainly(a, wanted, d, entering)._replace(h0=d_h0 if wanted.h0 else None)
