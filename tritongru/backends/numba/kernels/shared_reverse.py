"""The plain reverse scan whose units several threads share: see shared.py for why, reverse.py for what is computed.

In each step a thread multiplies the gradients of all pre-activations, those of the step that it comes from, with the
columns of its units. That is the gradient of their states, and from it follow those of their own pre-activations. What
other threads read has a place of its own for each step, since a thread may be late by any number of them.
"""

from __future__ import annotations

from ..compile import Kernel, helper
from . import fields as at
from .meeting import first_of, go_together
from .packing import pack_transposed
from .products import multiply
from .reverse import differentiate_reset, differentiate_state
from .rows import get, put
from .scan import place_rows
from .vectors import advance, full, lanes, load, pointer, store


@helper
def pack_columns(plan, first, end, like):
    """Pack the transposed weights' columns of some units."""
    C = 3 * lanes(like)
    pack_transposed(plan, first // C, end // C, like)


@helper
def project_nothing(plan, first, end, s0, s1, like):
    """Do nothing ahead of a chunk of steps: all that a step reads was left by the one before."""


@helper
def take_step_back(plan, s, s0, first, end, like):
    """Compute some units of a step, counted from the last one back; beyond the first, of the state that entered it."""
    T, U, P, N, L = plan[at.STEPS], plan[at.UNITS], plan[at.PADDED], plan[at.COLUMNS], lanes(like)
    rows, size, wide = plan[at.ROWS], plan[at.SIZE], plan[at.WIDTH]
    f, g = plan[at.ACTIVATION], plan[at.RECURRENT_ACTIVATION]
    z_at, r_at, n_at = plan[at.Z_AT], plan[at.R_AT], plan[at.N_AT]
    u, groups, sums = pointer(plan[at.RECURRENT], like), pointer(plan[at.GROUPS], 0), pointer(plan[at.SUMS], like)
    gates, d_gates = pointer(plan[at.GATES], like), pointer(plan[at.D_GATES], like)
    d_out, d_last, d_h0 = pointer(plan[at.D_OUT], like), pointer(plan[at.D_LAST], like), pointer(plan[at.D_H0], like)
    carried, d = pointer(plan[at.CARRIED], like), pointer(plan[at.D_STEPS], like)
    count = -(-rows // size)
    before, now = (s - 1) * count * size, s * count * size  # rows of these two
    step = plan[at.END] - 1 - s  # in the order of processing
    is_last = step < plan[at.BEGIN]
    if is_last and plan[at.D_H0] == 0:
        return
    if s > 0:
        multiply(
            advance(d, before * 3 * P), 3 * P, 0, 3 * P, u, 3 * P, first, min(end, P), sums, N, groups, count, rows,
            size, s % 2 == 1,
        )  # fmt: skip
    t = T - 1 - step if plan[at.REVERSE] != 0 else step
    h, h_row = advance(pointer(plan[at.STATES], like), (t + 1 if plan[at.REVERSE] != 0 else t - 1) * rows * U), U
    if step == 0:
        h, h_row = pointer(plan[at.H0], like), plan[at.H0_ROW]
    for row in range(rows):
        i_out = t * plan[at.D_OUT_STEP] + row * plan[at.D_OUT_ROW]
        k, o, a = (t * rows + row) * wide, (t * rows + row - plan[at.D_FIRST]) * wide, (now + row) * 3 * P
        for j in range(first, min(end, U), L):
            left = U - j
            if s > 0:
                total = load(carried, (before + row) * N + j) + load(sums, row * N + j)
            elif plan[at.D_LAST] != 0:
                total = get(d_last, row * U + j, left)
            else:
                total = full(like, 0.0)
            if is_last:
                put(d_h0, row * U + j, total, left)
                continue
            if plan[at.D_OUT] != 0:
                total = total + get(d_out, i_out + j, left)
            z, r = get(gates, k + z_at + j, left), get(gates, k + r_at + j, left)
            n = get(gates, k + n_at + j, left)
            d_n, d_z = differentiate_state(f, g, total, z, n, get(h, row * h_row + j, left))
            d_q, d_r = differentiate_reset(g, d_n, r, get(gates, k + j, left))
            store(d, a + j, d_q)
            store(d, a + P + j, d_z)
            store(d, a + 2 * P + j, d_r)
            put(d_gates, o + j, d_q, left)
            put(d_gates, o + z_at + j, d_z, left)
            put(d_gates, o + r_at + j, d_r, left)
            put(d_gates, o + n_at + j, d_n, left)
            store(carried, (now + row) * N + j, total * z)


go_back = go_together(pack_columns, project_nothing, take_step_back)


def shared_reverse_part(plan, like):
    """Run the part of one thread, over the steps of one chunk; see `fields` for the plan."""
    N, rows, size, me, C = plan[at.COLUMNS], plan[at.ROWS], plan[at.SIZE], plan[at.SHARE], 3 * lanes(like)
    steps, shares = plan[at.END] - plan[at.BEGIN] + 1, plan[at.SHARES]
    place_rows(plan, pointer(plan[at.PLACED], 0), pointer(plan[at.GROUPS], 0), rows, size, -(-rows // size))
    go_back(
        plan, pointer(plan[at.MEETING], 0), me, shares, steps, steps, first_of(me, shares, N, C),
        first_of(me + 1, shares, N, C), N, plan[at.UNITS] * N * rows, like,
    )  # fmt: skip


shared_reverse_scan = Kernel(shared_reverse_part)
