"""Scans that differ in their tensors and direction alone, at once: on as many threads as one scan.

A scan of few rows has less to do at a time than a processor has cores, and two directions or several heads have more.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...call.problem import Inputs, Variant
from ..eager.layout import gate_width
from ..gradients import Saved
from .backward import plan_reverse
from .kernels.scan import scan
from .problem import Problem, in_compute_dtype, pack_ahead
from .short import is_short, run_short_members
from .threads import run_parts


def run_members_forward(
    members: Sequence[Inputs], variants: Sequence[Variant], save_gates: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the results of `forward.run_forward`, stacked, with the same bits."""
    if is_short(members[0], variants[0]):
        out, last, gates = run_short_members(members, variants, save_gates)
        return out, last, out.new_empty(0), out.new_empty(0) if gates is None else gates
    given, M = members[0].x.dtype, len(members)
    members = [in_compute_dtype(a) for a in members]
    a = members[0]
    (T, B), U = a.x.shape[:2], a.u.shape[0]
    out, last = a.x.new_empty(M, T, B, U), a.x.new_empty(M, B, U)
    states = a.x.new_empty((M, T, B, U) if a.mask is not None else (0,))
    gates = a.x.new_empty((M, T, B, gate_width(variants[0]) * U) if save_gates else (0,))
    problems = [Problem(a, v, M) for a, v in zip(members, variants, strict=True)]
    parts = []
    for m, problem in enumerate(problems):
        for name, value in (("OUT", out), ("LAST", last), ("STATES", states), ("GATES", gates)):
            problem.fields[name] = value[m].data_ptr() if value.dim() > 1 else 0
        own = problem.plan_scan(0, T, False)
        pack_ahead(own, problem.dtype)
        parts += own
    run_parts(scan.for_dtype(problems[0].dtype), parts)
    for problem in problems:
        problem.release()
    if given == a.x.dtype:
        return out, last, states, gates
    return out.to(given), last.to(given), states.to(given), gates.to(given)


def run_members_backward(
    members: Sequence[Inputs],
    variants: Sequence[Variant],
    saved: Sequence[Saved],
    d_out: Sequence[Tensor | None],
    d_last: Sequence[Tensor | None],
    wanted: Sequence[Inputs],
) -> list[Inputs]:
    """Return the gradients of each member, see `backward.run_backward`."""
    each = zip(members, variants, saved, d_out, d_last, wanted, strict=True)
    reverses = [plan_reverse(*one, members=len(members)) for one in each]
    # Of the same shape, so in as many chunks.
    for chunks in zip(*(reverse.walk() for reverse in reverses), strict=True):
        run_parts(chunks[0][0], [part for _, parts in chunks for part in parts])
    return [reverse.gradients(a.x.dtype) for reverse, a in zip(reverses, members, strict=True)]
