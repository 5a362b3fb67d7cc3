"""Members as one scan: five torch operations per step for all of them, in place of five for each.

A step's product is one of M matrices with M others. All members take their first step together, one that goes backwards
the last of its input. The rows of a step are (M,B,..), one step below the other: (K,M,B,..) for a chunk of K steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ...call.problem import Inputs, Variant
from ..gradients import Saved
from .backward import Reverse
from .forward import make_gates, make_projection, rebuild
from .layout import Steps, compute_dtype, entering_states, gate_width, view_gates, view_parts
from .sums import Sums

# The sizes of one member with which one scan was faster, there and back (bench/members.py, AMD EPYC with AVX2). With
# more rows the arithmetic takes so long that what an operation costs beside it does not count: two members save half of
# that, many members nearly all. Few steps do not pay for an operator and the copies.
LEAST_STEPS = 32
ROWS_A_MEMBER, MOST_ROWS = 2, 16
MOST_UNITS = 256
# Two threads wait for each other in each product of many matrices, however small; a small product of one matrix is one
# thread's. Few members lose by that as soon as another program holds a core; more threads were not timed.
MANY = 8


def are_one_scan(members: Sequence[Inputs], variants: Sequence[Variant]) -> bool:
    """Return whether members run as one scan: plain ones, whose steps are all alike, where that is faster."""
    a = members[0]
    plain = a.mask is None and a.resets is None and a.keep is None and variants[0].layer_norm is None
    return plain and a.x.is_cpu and is_faster(len(members), *a.x.shape[:2], a.u.shape[0])


def is_faster(count: int, time: int, batch: int, units: int) -> bool:
    """Return whether so many members are expected to be faster as one scan than one after another."""
    if count < 2 or torch.get_num_threads() > (2 if count >= MANY else 1):
        return False
    rows = min(ROWS_A_MEMBER * count, MOST_ROWS)
    return time >= LEAST_STEPS and 0 < batch <= rows and units <= MOST_UNITS


class Lanes:
    """Where the steps of each member are: those begin..end in the order of processing, in that of time."""

    def __init__(self, members: Sequence[Inputs], variants: Sequence[Variant]):
        a = members[0]
        self.members, self.backwards = members, [v.reverse for v in variants]
        self.variant = variants[0]._replace(reverse=False)
        (self.T, self.B), self.M, self.U = a.x.shape[:2], len(members), a.u.shape[0]
        self.dtype, self.width = compute_dtype(a.x.dtype), gate_width(self.variant) * self.U
        self.steps = Steps([self.B] * self.T)
        self.u = torch.stack([a.u for a in members])
        self.drop = None if a.drop is None else torch.stack([a.drop for a in members], dim=1)  # type: ignore[arg-type]

    def chunks(self) -> list[tuple[int, int]]:
        """Return the bounds of chunks of steps in the order of processing."""
        return list(self.steps.chunks(self.M * self.width, False))

    def times(self, m: int, begin: int, end: int) -> tuple[int, int]:
        """Return the bounds in time of a member's steps begin..end."""
        return (self.T - end, self.T - begin) if self.backwards[m] else (begin, end)

    def turn(self, m: int, value: Tensor) -> Tensor:
        """Return a member's steps (K,..) in the order of processing, given them in that of time; or the reverse."""
        return value.flip(0) if self.backwards[m] else value

    def empty(self, steps: int, columns: int) -> Tensor:
        """Return space for the rows of some steps, in the dtype of sums."""
        return self.u.new_empty(steps, self.M, self.B, columns, dtype=self.dtype)

    def each(self, begin: int, end: int) -> Iterator[tuple[int, Inputs, int, int]]:
        """Yield each member with the bounds in time of its steps begin..end."""
        for m, a in enumerate(self.members):
            yield m, a, *self.times(m, begin, end)


def run_members_forward(
    members: Sequence[Inputs], variants: Sequence[Variant], save_gates: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the results of `forward.run_forward`, stacked."""
    lanes, a = Lanes(members, variants), members[0]
    T, B, M, U, variant = lanes.T, lanes.B, lanes.M, lanes.U, lanes.variant
    out = a.x.new_empty(M, T, B, U)
    gates = a.x.new_empty((M, T, B, lanes.width) if save_gates else (0,))
    projections = [make_projection(a.w, a.bias_x, a.bias_h, variant, lanes.dtype) for a in members]
    select, compute_gates = make_gates(lanes.u, lanes.drop, variant, lanes.dtype)
    h = torch.stack([a.h0 for a in members]).to(lanes.dtype)
    for begin, end in lanes.chunks():
        K = end - begin
        # The sums that h R is added to stand alone: a product of many matrices is fast where its result is contiguous.
        recurrent, n, leaving = (lanes.empty(K, columns) for columns in (lanes.width - U, U, U))
        packed = a.x.new_empty(K * B, lanes.width, dtype=lanes.dtype)
        for m, a, first, last in lanes.each(begin, end):
            projections[m](lanes.turn(m, a.x[first:last]).flatten(0, 1), packed)
            recurrent[:, m], n[:, m] = packed.view(K, B, -1).split((lanes.width - U, U), dim=-1)
        parts = select(view_parts(recurrent, n, recurrent, variant))
        for state, step in zip(leaving.unbind(0), zip(*(part.unbind(0) for part in parts), strict=True), strict=True):
            compute_gates(h, *step)
            # n + z (h - n) = z h + (1 - z) n
            h = torch.lerp(step[0], h, step[1], out=state)
        for m, _, first, last in lanes.each(begin, end):
            out[m, first:last] = lanes.turn(m, leaving[:, m])
            if save_gates:
                places = gates[m, first:last].split((lanes.width - U, U), dim=-1)
                for place, part in zip(places, (recurrent, n), strict=True):
                    place.copy_(lanes.turn(m, part[:, m]))
    return out, h.to(a.h0.dtype, copy=True), a.x.new_empty(0), gates


def run_members_backward(
    members: Sequence[Inputs],
    variants: Sequence[Variant],
    saved: Saved,
    d_out: Tensor | None,
    d_last: Tensor | None,
    wanted: Sequence[Inputs],
) -> list[Inputs]:
    """Return the gradients of each member, see `backward.run_backward`.

    Args:
        saved: stacked, as `run_members_forward` returned it, or `forward.run_forward` of each. d_out: (M,T,B,U) or
            None. d_last: (M,B,U) or None.
    """
    lanes, a = Lanes(members, variants), members[0]
    T, B, M, U, variant, dtype = lanes.T, lanes.B, lanes.M, lanes.U, lanes.variant, lanes.dtype
    d_last = a.u.new_zeros(M, B, U, dtype=dtype) if d_last is None else d_last.to(dtype)
    if d_out is not None:
        d_out = torch.stack([lanes.turn(m, d) for m, d in enumerate(d_out.to(dtype))], dim=1).flatten(0, 1)
    reverse = Reverse(lanes.u, None, None, lanes.drop, variant, d_out, d_last, Steps([M] * T))
    sums = [Sums(a, v, want, lanes.steps) for a, v, want in zip(members, variants, wanted, strict=True)]
    for begin, end in reversed(lanes.chunks()):
        K = end - begin
        packed, factors, h = (lanes.empty(K, columns) for columns in (lanes.width, lanes.width, U))
        entering = []
        for m, a, first, last in lanes.each(begin, end):
            states = entering_states(saved.out[m], first, last, a.h0, None, None, variants[m])
            if saved.gates.dim() == 4:
                rows = saved.gates[m, first:last]
            else:
                rows = rebuild(a, a.x[first:last].flatten(0, 1), states.flatten(0, 1), variant).view(K, B, -1)
            packed[:, m], h[:, m] = lanes.turn(m, rows), lanes.turn(m, states)
            entering.append(states.to(dtype).flatten(0, 1))
        gates = view_gates(packed.flatten(0, 1), variant)
        chunk = reverse.fill_factors(factors.flatten(0, 1), gates, h.flatten(0, 1), begin, end)
        reverse.walk(chunk, begin, end, None)
        r = gates.r.unflatten(0, (K, M))
        for m, _, first, last in lanes.each(begin, end):
            rows = [lanes.turn(m, part[:, m]).flatten(0, 1) for part in (factors, r)]
            sums[m].add(rows[0], entering[m], rows[1], first, last)
    d_h0 = reverse.finish()
    return [
        total.finish()._replace(h0=d.to(a.h0.dtype, copy=True) if want.h0 else None)
        for total, d, a, want in zip(sums, d_h0, members, wanted, strict=True)
    ]
