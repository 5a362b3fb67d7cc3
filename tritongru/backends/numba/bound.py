"""A scan like one before: planned once, and then only told where its tensors are.

Planning a scan takes longer than some steps of one row. A plan is a list of numbers, most of which follow from sizes
and strides; the others are addresses, each some bytes behind the beginning of a tensor or of the scan's own memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import Tensor

from ...call.problem import Inputs, Variant
from ..eager.layout import entering_states, gate_width
from ..gradients import Saved
from .backward import chunks_of, plan_reverse, run_backward
from .compile import Kernel
from .kernels import fields as at
from .kernels.reverse import reverse_scan
from .kernels.scan import scan
from .kernels.shared import shared_scan
from .kernels.shared_reverse import shared_reverse_scan
from .plain_sums import sum_plainly
from .problem import LINE, Problem, are_shared, pack_ahead, round_up, run_plans, with_rows
from .sharing import may_share
from .short import BoundShort, is_short
from .spare import borrow, give_back
from .sums import FewRows, are_for_library, is_few

# What the addresses of a plan point into: the tensors of a call by their own names, and the scan's memory.
_PACKED = ("W", "RECURRENT", "BIAS", "BIAS_N", "CARRIED", "D_STEPS")
_SCRATCH = ("H", "ENTERING", "PROJECTED", "SUMS", "SHOWN", "KEPT", "PLACED", "GROUPS", "LIVE", "FLAGS")
OF_REVERSE = ("U_GIVEN", "H0", "STATES", "GATES", "D_OUT", "D_LAST", "D_GATES", "D_H0")
INPUTS = ("X", "W_GIVEN", "BIAS_X", "U_GIVEN", "BIAS_H", "H0")
OF_FORWARD = (*INPUTS, "OUT", "LAST", "GATES")
NO_FIELDS: Mapping[int, int] = {}


def bind(a: Inputs, variant: Variant, gradients: bool, by_column: bool) -> BoundScan | BoundShort:
    """Return the plain scan of tensors like these, (T,B,I), all float32 or all float64, rows and biases contiguous.

    Args:
        gradients: whether `run_backward` will be called. by_column: whether `BoundFewRows` writes the gradients of w
            and u as (3U,I) and (3U,U).
    """
    if not gradients and is_short(a, variant):
        return BoundShort(a, variant)
    return BoundScan(a, variant, gradients, by_column)


class Plans:
    """The plans of a scan's parts with other addresses in them.

    Args:
        problem: planned, whose memory is given back. parts: its plans. tensors: the fields that point to the beginning
            of a tensor, in the order in which `run` takes their addresses. kernels: for parts of the batch, and of the
            units.

    Attributes:
        bytes: of memory that the plans need. parts: how many. are_shared: whether threads share the units.
    """

    def __init__(
        self, problem: Problem, parts: Sequence[np.ndarray], tensors: Sequence[str], kernels: tuple[Kernel, Kernel]
    ):
        self._offsets = np.stack(parts)
        self._sources = np.zeros(self._offsets.shape, np.intp)
        begins = problem.packed.data_ptr(), problem.scratch.data_ptr()
        for number, names in enumerate((_PACKED, _SCRATCH, *((name,) for name in tensors)), 1):
            for place in map(at.NAMES.index, names):
                given = self._offsets[:, place] != 0
                self._sources[given, place] = number
                self._offsets[given, place] -= begins[number - 1] if number <= 2 else self._offsets[given, place]
        self._kept = problem.kept  # what the other addresses point into, as the bound of gradients
        self._packed = problem.packed_bytes
        self.bytes = self._packed + problem.scratch.numel()
        self.parts, self.are_shared = len(parts), are_shared(parts)
        self._dtype, self._scan = problem.dtype, kernels[self.are_shared].for_dtype(problem.dtype)
        problem.release()

    def run(self, memory: int, *tensors: int, fields: Mapping[int, int] = NO_FIELDS) -> None:
        """Run the scan with `bytes` of memory at an address, and tensors at theirs; 0 for none.

        Args:
            fields: other values than those planned, by their places.
        """
        plans = self._offsets + np.array((0, memory, memory + self._packed, *tensors))[self._sources]
        for place, value in fields.items():
            plans[:, place] = value
        pack_ahead(plans, self._dtype)
        run_plans(self._scan, plans)


class Choice:
    """A scan planned with its units shared among threads, if that may be, and without.

    Args:
        plan: with or without.

    Attributes:
        bytes: of memory that `run` needs. uses_threads: whether it is several parts.
    """

    def __init__(self, plan: Callable[[bool], Plans]):
        self._shared = self._alone = plan(True)
        if self._shared.are_shared:  # for calls while other threads are late
            self._alone = plan(False)
        self.bytes = max(self._shared.bytes, self._alone.bytes)
        self.uses_threads = self._shared.parts > 1

    def run(self, memory: int, *tensors: int, fields: Mapping[int, int] = NO_FIELDS) -> None:
        """Run it; arguments as those of `Plans.run`."""
        plans = self._shared if self._shared.are_shared and may_share() else self._alone
        plans.run(memory, *tensors, fields=fields)


class BoundReverse:
    """The reverse scan of tensors with the sizes and strides of those it was made for."""

    def __init__(self, a: Inputs, variant: Variant):
        T, B = a.x.shape[:2]
        saved = Saved(a.x.new_empty(T, B, a.u.shape[0]), a.x.new_empty(0), a.x.new_empty(0))

        def plan(by_units: bool) -> Plans:
            reverse = plan_reverse(a, variant, saved, None, None, Inputs(*[None] * len(Inputs._fields)))  # type: ignore[arg-type]
            # Any address but 0: it only says that there is such a tensor.
            reverse.problem.fields |= dict(GATES=1, D_OUT=1, D_LAST=1, D_GATES=1, D_H0=1, BEGIN=0, END=T)
            return Plans(reverse.problem, reverse.plan(T, by_units), OF_REVERSE, (reverse_scan, shared_reverse_scan))

        self._scan = Choice(plan)
        self._dtype, self.bytes, self.uses_threads = a.x.dtype, self._scan.bytes, self._scan.uses_threads

    def run(self, memory: int, saved: Sequence[int], d_out: Tensor | None, d_last: Tensor | None, *found: int) -> None:
        """Run the scan with `bytes` of memory at an address.

        Args:
            saved: the addresses of u, h0, the outputs and the gates. found: where the gradients of pre-activations
                (T,B,4U) and that of h0 are written, 0 where nobody wants that.
        """
        d_out, d_last = with_rows(d_out, self._dtype), None if d_last is None else d_last.contiguous()
        given = [0 if t is None else t.data_ptr() for t in (d_out, d_last)]
        strides = NO_FIELDS if d_out is None else {at.D_OUT_STEP: d_out.stride(0), at.D_OUT_ROW: d_out.stride(1)}
        self._scan.run(memory, *saved, *given, *found, fields=strides)


class BoundForward:
    """The scan of a `BoundScan` with packed weights."""

    def __init__(self, a: Inputs, variant: Variant, gradients: bool):
        (T, B, _), U = a.x.shape, a.u.shape[0]
        self._shape, self._width = (T, B, U), gate_width(variant) * U if gradients else 0

        def plan(by_units: bool) -> Plans:
            problem = Problem(a, variant)
            # Any address but 0, as above.
            problem.fields |= dict(OUT=1, LAST=1, GATES=int(gradients))
            return Plans(problem, problem.plan_scan(0, T, by_units), OF_FORWARD, (scan, shared_scan))

        self._scan = Choice(plan)

    def run(self, x: Tensor, inputs: Sequence[int]) -> tuple[Tensor, Tensor, Tensor | None]:
        """As `BoundScan.run`."""
        T, B, U = self._shape
        out, last = x.new_empty(T, B, U), x.new_empty(B, U)
        gates = x.new_empty(T, B, self._width) if self._width else None
        memory, at_gates = borrow(self._scan.bytes), 0 if gates is None else gates.data_ptr()
        self._scan.run(memory.data_ptr(), *inputs, out.data_ptr(), last.data_ptr(), at_gates)
        give_back(memory)
        return out, last, gates


class BoundScan:
    """The plain scan of tensors with the sizes and strides of those it was made for, which nobody checks again.

    Attributes:
        few: what writes the gradients where all steps have few rows, else None.
    """

    def __init__(self, a: Inputs, variant: Variant, gradients: bool, by_column: bool):
        """Take x (T,B,I), w, u, the biases and h0 (B,U), all float32 or all float64, rows and biases contiguous.

        Args: as `bind`.
        """
        (T, B, _), U = a.x.shape, a.u.shape[0]
        self.variant = variant
        self._width = gate_width(variant) * U
        self._forward = (BoundShort if is_short(a, variant) else BoundForward)(a, variant, gradients)
        self._reverse: BoundReverse | None = None
        self.few: BoundFewRows | None = None
        is_whole = len(chunks_of(T, B, self._width)) == 1 and not are_for_library(T * B, a.w, U)
        if gradients and variant.reset_after and is_whole:
            self._reverse = BoundReverse(a, variant)
            # Rows that are the same distance apart.
            if is_few(T * B, a.w, U) and (B == 1 or T == 1 or a.x.stride(0) == B * a.x.stride(1)):
                self.few = BoundFewRows(self._reverse, a, variant, by_column)

    def run(self, x: Tensor, inputs: Sequence[int]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Run the scan.

        Args:
            x: the input, of which the kind is read. inputs: the addresses of INPUTS, 0 for no bias.

        Returns:
            out (T,B,U) at the input's time index; last state (B,U); gates (T,B,..), None without gradients.
        """
        return self._forward.run(x, inputs)

    def run_backward(self, a: Inputs, saved: Saved, d_out: Tensor | None, d_last: Tensor | None, wanted: Inputs):
        """Return the gradients of the inputs `a`; arguments and results as `backward.run_backward`."""
        if self._reverse is None:
            return run_backward(a, self.variant, None, saved, d_out, d_last, wanted)
        (T, B, U), width = saved.out.shape, self._width
        d, d_h0 = a.x.new_empty(T * B, width), a.x.new_empty(B, U) if wanted.h0 else None
        memory = borrow(self._reverse.bytes)
        addresses = [t.data_ptr() for t in (a.u, a.h0, saved.out, saved.gates)]
        at_h0 = 0 if d_h0 is None else d_h0.data_ptr()
        self._reverse.run(memory.data_ptr(), addresses, d_out, d_last, d.data_ptr(), at_h0)
        give_back(memory)
        entering = entering_states(saved.out, 0, T, a.h0, None, None, self.variant).flatten(0, 1)
        return sum_plainly(a, wanted, d, entering, self._reverse.uses_threads)._replace(h0=d_h0)


class BoundFewRows:
    """The backward pass of a `BoundScan` of few rows, with its sums."""

    def __init__(self, reverse: BoundReverse, a: Inputs, variant: Variant, by_column: bool):
        T, B = a.x.shape[:2]
        numbers = T * B * gate_width(variant) * a.u.shape[0]
        self._reverse = reverse
        self._sums = FewRows(a.x.flatten(0, 1), a, B, (by_column, by_column), reverse.uses_threads, variant.reverse)
        # Behind the scan's memory: the gradients of pre-activations.
        self._d = round_up(reverse.bytes, LINE)
        self._bytes = self._d + numbers * a.x.element_size()

    def run(
        self, inputs: Sequence[int], saved: Sequence[int], d_out: Tensor | None, d_last: Tensor | None, *found: int
    ) -> None:
        """Write the gradients, all contiguous.

        Args:
            inputs: the addresses of INPUTS. saved: of the outputs and the gates. found: where the gradients of INPUTS
                are written, 0 where they are not wanted.
        """
        x, w, _, u, _, h0 = inputs
        d_x, d_w, d_bias_x, d_u, d_bias_h, d_h0 = found
        memory = borrow(self._bytes)
        begin = memory.data_ptr()
        self._reverse.run(begin, (u, h0, *saved), d_out, d_last, begin + self._d, d_h0)
        self._sums.run(begin + self._d, x, w, saved[0], h0, d_x, d_w, d_u, d_bias_x, d_bias_h)
        give_back(memory)
