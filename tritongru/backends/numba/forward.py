"""`run_forward`: the scan with the arguments and results of every backend."""

from __future__ import annotations

from torch import Tensor

from ...call.problem import Inputs, Variant
from ..eager.layout import gate_width
from .problem import Problem, in_compute_dtype
from .short import is_short, run_short


def run_forward(a: Inputs, variant: Variant, save_gates: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Project the input and run the recurrence over all steps; see `eager.run_forward`, whose results these are.

    Returns:
        out (T,B,U) at the input's time index; last state (B,U); states leaving each step (T,B,U), empty without a mask,
        where they are `out`; packed gates (T,B,4U or 3U) as `eager.layout` says, zero in masked steps, empty unless
        `save_gates`.

    Note:
        The same call gives the same bits, with any number of threads. Those of a row follow from its own values, the
        weights, the size of the batch and the row's place in it (with a mask: its place by falling length).
    """
    if is_short(a, variant):
        out, last, gates = run_short(a, variant, save_gates)
        return out, last, a.x.new_empty(0), a.x.new_empty(0) if gates is None else gates
    given = a.x.dtype
    a = in_compute_dtype(a)
    (T, B), U = a.x.shape[:2], a.u.shape[0]
    out, last = a.x.new_empty(T, B, U), a.x.new_empty(B, U)
    states = a.x.new_empty((T, B, U) if a.mask is not None else (0,))
    gates = a.x.new_empty((T, B, gate_width(variant) * U) if save_gates else (0,))
    problem = Problem(a, variant)
    problem.fields |= dict(OUT=out.data_ptr(), LAST=last.data_ptr(), STATES=states.data_ptr(), GATES=gates.data_ptr())
    problem.run_scan(0, T)
    problem.release()
    if given == a.x.dtype:
        return out, last, states, gates
    return out.to(given), last.to(given), states.to(given), gates.to(given)
