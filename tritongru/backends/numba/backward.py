"""`run_backward`: the reverse scan, a chunk of steps at a time, and the sums of each chunk."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...eager.layout import Steps, entering_states, view_gates
from ...eager.sums import Sums, Wanted
from ...inputs import Inputs
from ...spec import Variant
from . import fields as at
from .forward import Problem, in_compute_dtype, round_up
from .packing import pack_transposed
from .reverse import reverse_scan
from .threads import run_parts
from .vectors import PANEL

# Numbers of a chunk's gate gradients, and its least rows: fewer make the products of the weights' gradients slow.
CHUNK = 1 << 20
CHUNK_ROWS = 512


def run_backward(
    a: Inputs,
    after: Tensor,
    gates: Tensor,
    d_out: Tensor | None,
    d_last: Tensor | None,
    variant: Variant,
    wanted: Wanted,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of `run_forward`'s tensor inputs; arguments and results as `eager.run_backward`.

    Args:
        after: the states leaving each step (T,B,U), which are the outputs where there is no mask. gates: (T,B,4U or 3U)
            as `run_forward` saved them, or empty: they are then computed again, chunk by chunk.

    Note:
        The same call with the same number of threads gives the same bits; those of sums over all steps follow from
        torch's products, which may differ with the number of threads.
    """
    given = a.x.dtype
    a = in_compute_dtype(a)
    dtype = a.x.dtype
    d_out = None if d_out is None else _contiguous_rows(d_out.to(dtype))
    d_last = None if d_last is None else d_last.to(dtype).contiguous()
    reverse = Reverse(a, after.to(dtype).contiguous(), gates.to(dtype).contiguous(), d_out, d_last, variant, wanted)
    return tuple(value.to(given) for value in reverse.run())  # type: ignore[return-value]


def _contiguous_rows(value: Tensor) -> Tensor:
    return value if value.stride(-1) == 1 or value.shape[-1] == 1 else value.contiguous()


class Reverse:
    """The walk back over all steps, and what it leaves behind."""

    def __init__(self, a: Inputs, after: Tensor, gates: Tensor, d_out, d_last, variant: Variant, wanted: Wanted):
        self.a, self.after, self.gates, self.variant, self.wanted = a, after, gates, variant, wanted
        T, B, U = after.shape
        self.problem = problem = Problem(a, variant)
        self.wide = int(problem.plan[at.WIDTH])
        N = round_up(U, problem.lanes * PANEL)
        self.d_h0 = a.h0.new_empty(B, U)
        self.d_fresh = a.x.new_zeros(a.fresh.shape) if wanted.fresh and a.fresh is not None else None
        padded = round_up(U, problem.lanes)
        problem.set(
            PADDED=padded, COLUMNS=N, RECURRENT=pack_transposed(a.u, variant, padded, N), STATES=after, D_OUT=d_out,
            D_LAST=d_last, D_H0=self.d_h0, D_FRESH=self.d_fresh,
        )  # fmt: skip
        if d_out is not None:
            problem.set(D_OUT_STEP=d_out.stride(0), D_OUT_ROW=d_out.stride(1))
        if self.d_fresh is not None and self.d_fresh.dim() == 3:
            problem.set(D_FRESH_STEP=B * U)
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
        self.problem.set(PLACES=flat.cumsum(0) - 1)
        return flat.nonzero()[:, 0]

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Yield bounds of steps, counted in the order of processing, from the last to the first."""
        T, B = self.after.shape[:2]
        length = max(CHUNK // max(B * self.wide, 1), -(-CHUNK_ROWS // max(B, 1)))
        for end in range(T, 0, -length):
            yield max(end - length, 0), end

    def run(self) -> tuple[Tensor, ...]:
        """Return the gradients in the order of `Wanted`."""
        a, problem, wanted = self.a, self.problem, self.wanted
        T, B, U = self.after.shape
        rows = a if self.valid is None else a._replace(x=a.x.flatten(0, 1).index_select(0, self.valid))
        sums = Sums(rows, self.variant, wanted, self.steps)
        parts = [self._make_part(order) for order in problem.rows]
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
        if not T:
            self.d_h0.zero_()
        d_x, d_w, d_bias_x, d_u, d_bias_h, d_drop = sums.finish()
        if self.valid is not None and wanted.x:
            d_x = torch.zeros_like(a.x).flatten(0, 1).index_copy_(0, self.valid, d_x).view(a.x.shape)
        empty = a.x.new_empty(0)
        d_fresh = empty if self.d_fresh is None else self.d_fresh
        return d_x, d_w, d_bias_x, d_u, d_bias_h, self.d_h0 if wanted.h0 else empty, d_fresh, d_drop

    def _make_part(self, order: Tensor):
        problem = self.problem
        P, N = int(problem.plan[at.PADDED]), int(problem.plan[at.COLUMNS])
        plan, R = problem.place_rows(order)
        problem.lay_out(
            plan, H=R * N, SHOWN=R * N if self.a.mask is not None else 0, KEPT=problem.drops * R * N,
            ENTERING=R * 3 * P, SUMS=(3 if problem.drops == 3 else 1) * R * N, PROJECTED=P,
        )  # fmt: skip
        return plan

    def _gates_of(self, begin: int, end: int, first: int, last: int) -> tuple[int, Tensor]:
        """Return the address where the gates of step 0 would be, and the gates (N,..) of the steps first..last."""
        T, B, U = self.after.shape
        step = B * self.wide
        if self.gates.dim() == 3:
            return self.gates.data_ptr(), self.gates[first:last].flatten(0, 1)
        gates = self.a.x.new_empty(last - first, B, self.wide)
        start = gates.data_ptr() - first * step * gates.element_size()
        again = Problem(self.a, self.variant)
        before = last if self.variant.reverse else first - 1
        if begin > 0:
            again.set(H0=self.after[before], H0_ROW=U)
        again.plan[at.GATES] = start
        again.set(LAST=self.d_h0)
        again.run_scan(begin, end)
        return start, gates.flatten(0, 1)
