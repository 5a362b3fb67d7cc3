"""`run_backward`: the reverse scan, a chunk of steps at a time, and the sums of each chunk."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ...call.problem import Inputs, Variant
from ..eager.layout import Steps, entering_states, view_gates
from ..eager.sums import Sums
from ..gradients import Saved, Setting
from . import fields as at
from .packing import pack
from .problem import Problem, in_compute_dtype, round_up, with_rows
from .reverse import reverse_scan
from .threads import run_parts
from .vectors import PANEL

# Numbers of a chunk's gate gradients, and its least rows: fewer make the products of the weights' gradients slow.
CHUNK = 1 << 20
CHUNK_ROWS = 512


def run_backward(
    a: Inputs,
    variant: Variant,
    setting: Setting,
    saved: Saved,
    d_out: Tensor | None,
    d_last: Tensor | None,
    wanted: Inputs,
) -> Inputs:
    """Return the gradients of `run_forward`'s tensor inputs; arguments and results as `eager.run_backward`.

    Args:
        saved: as `run_forward` returned it. Its gates may be empty: they are then computed again, chunk by chunk.

    Note:
        The same call with the same number of threads gives the same bits. The gradients that are sums over all steps
        come from torch's products, whose bits may differ with the number of threads.
    """
    given = a.x.dtype
    after = saved.out if a.mask is None else saved.states
    a = in_compute_dtype(a)
    dtype = a.x.dtype
    d_last = None if d_last is None else d_last.to(dtype).contiguous()
    after, gates = after.to(dtype).contiguous(), saved.gates.to(dtype).contiguous()
    reverse = Reverse(a, after, gates, with_rows(d_out, dtype), d_last, variant, wanted)
    return Inputs(*(None if value is None else value.to(given) for value in reverse.run()))  # type: ignore[arg-type]


class Reverse:
    """The walk back over all steps, and what it leaves behind."""

    def __init__(self, a: Inputs, after: Tensor, gates: Tensor, d_out, d_last, variant: Variant, wanted: Inputs):
        self.a, self.after, self.gates, self.variant, self.wanted = a, after, gates, variant, wanted
        T, B, U = after.shape
        self.problem = problem = Problem(a, variant)
        self.wide = problem.fields["WIDTH"]
        P, N = round_up(U, problem.lanes), round_up(U, problem.lanes * PANEL)
        self.d_h0 = a.h0.new_zeros(B, U) if d_last is None else d_last.clone()  # what it is without steps
        self.d_fresh = a.x.new_zeros(a.fresh.shape) if wanted.fresh else None
        problem.fields |= dict(
            PADDED=P, COLUMNS=N, TRANSPOSED=1, RECURRENT=problem.keep(a.u.new_empty(3 * P * N)),
            STATES=after.data_ptr(), D_H0=self.d_h0.data_ptr(),
        )  # fmt: skip
        if d_out is not None:
            out = dict(D_OUT=problem.keep(d_out), D_OUT_STEP=d_out.stride(0), D_OUT_ROW=d_out.stride(1))
            problem.fields |= out
        if d_last is not None:
            problem.fields["D_LAST"] = problem.keep(d_last)
        if self.d_fresh is not None:
            step = B * U if self.d_fresh.dim() == 3 else 0
            problem.fields |= dict(D_FRESH=self.d_fresh.data_ptr(), D_FRESH_STEP=step)
        self.valid = self._find_valid_rows()
        sizes = [B] * T if self.valid is None else a.mask.sum(1).tolist()  # type: ignore[union-attr]
        self.steps = Steps(sizes)

    def _find_valid_rows(self) -> Tensor | None:
        """Return the places (N,) of the rows that a mask leaves in, if it is worth to take the others out."""
        mask = self.a.mask
        # A dropout mask belongs to a row of the batch, which the sums find by its place.
        if mask is None or self.a.drop is not None or mask.all():
            return None
        flat = mask.flatten()
        self.problem.fields["PLACES"] = self.problem.keep(flat.cumsum(0) - 1)
        return flat.nonzero()[:, 0]

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Yield bounds of steps, counted in the order of processing, from the last to the first."""
        T, B = self.after.shape[:2]
        length = max(CHUNK // max(B * self.wide, 1), -(-CHUNK_ROWS // max(B, 1)))
        for end in range(T, 0, -length):
            yield max(end - length, 0), end

    def run(self) -> Inputs:
        """Return the gradients."""
        a, problem, wanted = self.a, self.problem, self.wanted
        T, B, U = self.after.shape
        rows = a if self.valid is None else a._replace(x=a.x.flatten(0, 1).index_select(0, self.valid))
        sums = Sums(rows, self.variant, wanted, self.steps)
        plan = problem.make_plan()
        pack.for_dtype(problem.dtype)(plan)
        parts = problem.make_parts(plan)
        for part in parts:
            self._lay_out(part)
        kernel = reverse_scan.for_dtype(problem.dtype)
        for begin, end in self.chunks():
            first, last = (T - end, T - begin) if self.variant.reverse else (begin, end)
            gates, flat = self._gates_of(begin, end, first, last)
            d_gates = a.x.new_empty(self.steps.count(first, last), self.wide)
            for part in parts:
                part[at.BEGIN], part[at.END] = begin, end
                part[at.GATES] = gates
                part[at.D_GATES], part[at.D_FIRST] = d_gates.data_ptr(), self.steps.starts[first]
            run_parts(kernel, parts)
            entering = entering_states(self.after, first, last, a.h0, a.resets, a.fresh, self.variant).flatten(0, 1)
            r = view_gates(flat, self.variant).r
            if self.valid is not None:
                inside = self.valid[self.steps.rows(first, last)] - first * B
                entering, r = entering.index_select(0, inside), r.index_select(0, inside)
            sums.add(d_gates, entering, r, first, last)
        found = sums.finish()
        if self.valid is not None and wanted.x:
            d_x = torch.zeros_like(a.x).flatten(0, 1).index_copy_(0, self.valid, found.x).view(a.x.shape)
            found = found._replace(x=d_x)
        return found._replace(h0=self.d_h0 if wanted.h0 else None, fresh=self.d_fresh)  # type: ignore[arg-type]

    def _lay_out(self, part: np.ndarray) -> None:
        fields, drops = self.problem.fields, self.problem.drops
        P, N, R = fields["PADDED"], fields["COLUMNS"], round_up(int(part[at.ROWS]), fields["SIZE"])
        self.problem.lay_out(
            part, H=R * N, SHOWN=0 if self.a.mask is None else R * N, KEPT=drops * R * N, ENTERING=R * 3 * P,
            SUMS=(3 if drops == 3 else 1) * R * N, PROJECTED=P,
        )  # fmt: skip

    def _gates_of(self, begin: int, end: int, first: int, last: int) -> tuple[int, Tensor]:
        """Return the address where the gates of step 0 would be, and the gates (N,..) of the steps first..last."""
        T, B, U = self.after.shape
        if self.gates.dim() == 3:
            return self.gates.data_ptr(), self.gates[first:last].flatten(0, 1)
        gates = self.a.x.new_empty(last - first, B, self.wide)
        start = gates.data_ptr() - first * B * self.wide * gates.element_size()
        again = Problem(self.a, self.variant)
        again.fields |= dict(GATES=start, LAST=self.d_h0.data_ptr())
        if begin > 0:
            before = last if self.variant.reverse else first - 1
            again.fields |= dict(H0=self.after[before].data_ptr(), H0_ROW=U)
        again.run_scan(begin, end)
        return start, gates.flatten(0, 1)
