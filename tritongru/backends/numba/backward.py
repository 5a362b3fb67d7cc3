"""`run_backward`: the reverse scan, a chunk of steps at a time, and the sums of each chunk."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ...call.problem import Inputs, Variant
from ..eager.layout import Steps, entering_states, view_gates
from ..eager.normalized import Normalization, Norms
from ..eager.sums import Sums
from ..gradients import Saved, Setting
from .compile import Compiled
from .kernels import fields as at
from .kernels.reverse import reverse_scan
from .kernels.shared_reverse import shared_reverse_scan
from .kernels.vector_type import PANEL
from .plain_sums import PlainSums
from .problem import Problem, are_shared, in_compute_dtype, pack_ahead, round_up, run_plans, with_rows
from .sharing import may_share
from .sums import are_for_library

# Numbers of a chunk's gate gradients, and its least rows: fewer make the products of the weights' gradients slow.
# Estimates.
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
        The same call gives the same bits, with any number of threads too but where the sums over all steps are torch's
        products: with recurrent dropout, a norm, without reset_after, and those of `sums.are_for_library`.
    """
    reverse = plan_reverse(a, variant, saved, d_out, d_last, wanted)
    for kernel, parts in reverse.walk():
        run_plans(kernel, parts)
    return reverse.gradients(a.x.dtype)


def plan_reverse(a: Inputs, variant: Variant, saved: Saved, d_out, d_last, wanted: Inputs, members: int = 1) -> Reverse:
    """Return the reverse scan of a call, or of one of its members, not yet run; arguments of `run_backward`."""
    after = saved.out if a.mask is None else saved.states
    a = in_compute_dtype(a)
    dtype = a.x.dtype
    d_last = None if d_last is None else d_last.to(dtype).contiguous()
    after, gates = after.to(dtype).contiguous(), saved.gates.to(dtype).contiguous()
    return Reverse(a, after, gates, with_rows(d_out, dtype), d_last, variant, wanted, members)


def chunks_of(steps: int, batch: int, width: int) -> list[tuple[int, int]]:
    """Return bounds of steps, counted in the order of processing, from the last to the first; `width`: of the gates."""
    length = max(CHUNK // max(batch * width, 1), -(-CHUNK_ROWS // max(batch, 1)))
    return [(max(end - length, 0), end) for end in range(steps, 0, -length)]


class Reverse:
    """The walk back over all steps, and what it leaves behind."""

    def __init__(
        self, a: Inputs, after: Tensor, gates: Tensor, d_out, d_last, variant: Variant, wanted: Inputs, members: int
    ):
        self.a, self.after, self.gates, self.variant, self.wanted = a, after, gates, variant, wanted
        T, B, U = after.shape
        self.problem = problem = Problem(a, variant, members)
        self.found = Inputs(*[None] * len(Inputs._fields))  # type: ignore[arg-type]
        self.wide = problem.fields["WIDTH"]
        P, N = round_up(U, problem.lanes), round_up(U, problem.lanes * PANEL)
        self.d_h0 = a.h0.new_zeros(B, U) if d_last is None else d_last.clone()  # what it is without steps
        self.d_fresh = a.x.new_zeros(a.fresh.shape) if wanted.fresh else None
        problem.fields |= dict(PADDED=P, COLUMNS=N, TRANSPOSED=1, STATES=after.data_ptr())
        if wanted.h0 or wanted.fresh:
            problem.fields["D_H0"] = self.d_h0.data_ptr()
        if d_out is not None:
            out = dict(D_OUT=problem.keep(d_out), D_OUT_STEP=d_out.stride(0), D_OUT_ROW=d_out.stride(1))
            problem.fields |= out
        if d_last is not None:
            problem.fields["D_LAST"] = problem.keep(d_last)
        if self.d_fresh is not None:
            step = B * U if self.d_fresh.dim() == 3 else 0
            problem.fields |= dict(D_FRESH=self.d_fresh.data_ptr(), D_FRESH_STEP=step)
        self.d_keep = a.x.new_zeros(T, B, U) if wanted.keep else None
        if self.d_keep is not None:
            problem.fields["D_KEEP"] = self.d_keep.data_ptr()
        if variant.gradient_clip is not None:
            problem.fields["CLIP"] = problem.keep(a.x.new_tensor([variant.gradient_clip]))
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

    def plan(self, steps: int, by_units: bool) -> list[np.ndarray]:
        """Return the plan of each part: of the batch or, if that may be, of the units.

        Args:
            steps: of the longest chunk.
        """
        problem, fields = self.problem, self.problem.fields
        P, N = fields["PADDED"], fields["COLUMNS"]
        sizes = dict(RECURRENT=3 * P * N)
        if by_units and self.variant.gradient_clip is None and problem.share_units(steps) > 1:
            R = round_up(fields["BATCH"], fields["SIZE"])
            sizes |= dict(CARRIED=steps * R * N, D_STEPS=steps * R * 3 * P)
        problem.take_memory(**sizes)
        return problem.make_parts(self._scratch, lambda R: 0)

    def walk(self) -> Iterator[tuple[Compiled, list[np.ndarray]]]:
        """Yield a kernel and the plans to run it with, for each chunk of steps; what is between is done here."""
        a, problem, wanted, v = self.a, self.problem, self.wanted, self.variant
        T, B, _ = self.after.shape
        bounds = chunks_of(T, B, self.wide)
        parts = self.plan(bounds[0][1] - bounds[0][0] if bounds else 0, may_share())
        pack_ahead(parts, problem.dtype)
        kernel = (shared_reverse_scan if are_shared(parts) else reverse_scan).for_dtype(problem.dtype)
        rows = a if self.valid is None else a._replace(x=a.x.flatten(0, 1).index_select(0, self.valid))
        is_plain = v.reset_after and a.drop is None and a.scale is None
        if is_plain and not are_for_library(self.steps.starts[-1], a.w, a.u.shape[0]):
            sums = PlainSums(rows, wanted, self.steps.starts[-1], awake=len(parts) > 1)
        else:
            sums = Sums(rows, v, wanted, self.steps)
        norm = None if a.scale is None else Normalization(a.u, a.drop, a.scale, v, a.x.dtype)
        d_states = self._find_states(len(bounds))
        for number, (begin, end) in enumerate(bounds):
            first, last = (T - end, T - begin) if v.reverse else (begin, end)
            gates, flat = self._gates_of(begin, end, first, last)
            d_gates = a.x.new_empty(self.steps.count(first, last), self.wide)
            entering = entering_states(self.after, first, last, a.h0, a.resets, a.fresh, v).flatten(0, 1)
            inside = None if self.valid is None else self.valid[self.steps.rows(first, last)] - first * B
            if inside is not None:
                entering = entering.index_select(0, inside)
            norms = None if norm is None else self._prepare(norm, entering, rows, first, last)
            for part in parts:
                part[at.BEGIN], part[at.END] = begin, end
                part[at.D_LAST], part[at.D_H0] = d_states[number : number + 2]
                part[at.GATES] = gates
                part[at.D_GATES], part[at.D_FIRST] = d_gates.data_ptr(), self.steps.starts[first]
                if norms is not None:
                    part[[at.NORMAL, at.RSTD, at.D_SUMS]] = [value.data_ptr() for value in norms]
            yield kernel, parts
            if isinstance(sums, PlainSums):
                sums.add(self.steps.starts[first], self.steps.read(rows.x, first, last), d_gates, entering)
            else:
                r = view_gates(flat, v).r
                sums.add(d_gates, entering, r if inside is None else r.index_select(0, inside), first, last, norms)
        problem.release()
        found = sums.finish()
        if self.valid is not None and wanted.x:
            d_x = torch.zeros_like(a.x).flatten(0, 1).index_copy_(0, self.valid, found.x.flatten(0, -2)).view(a.x.shape)
            found = found._replace(x=d_x)
        self.found = found._replace(h0=self.d_h0 if wanted.h0 else None, fresh=self.d_fresh, keep=self.d_keep)  # type: ignore[arg-type]

    def _find_states(self, chunks: int) -> list[int]:
        """Return where the state's gradient is at each end of the chunks; 0 for zeros."""
        problem, (B, U) = self.problem, self.after.shape[1:]
        between = [problem.keep(self.a.x.new_empty(B, U)) for _ in range(chunks - 1)]
        return [problem.fields.get("D_LAST", 0), *between, problem.fields.get("D_H0", 0)]

    def _prepare(self, norm: Normalization, entering: Tensor, rows: Inputs, first: int, last: int) -> Norms:
        """Return the norms of the steps first..last, whose entering states (N,U) are known."""
        gx = self.steps.read(rows.x, first, last) if norm.joint else None
        return norm.prepare(entering, gx if gx is None or rows.w is None else gx @ rows.w)

    def gradients(self, dtype: torch.dtype) -> Inputs:
        """Return the gradients, once the walk has ended, in the dtype of the inputs."""
        if self.a.x.dtype == dtype:
            return self.found
        return Inputs(*(None if value is None else value.to(dtype) for value in self.found))  # type: ignore[arg-type]

    def _scratch(self, R: int) -> dict[str, int]:
        if self.problem.fields.get("SHARES"):
            return dict(SUMS=R * self.problem.fields["COLUMNS"])
        drops, P, N = self.problem.drops, self.problem.fields["PADDED"], self.problem.fields["COLUMNS"]
        return dict(
            H=R * N, SHOWN=0 if self.a.mask is None else R * N, KEPT=drops * R * N, ENTERING=R * 3 * P,
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
        again.release()
        return start, gates.flatten(0, 1)
