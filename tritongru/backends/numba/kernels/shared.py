"""The plain scan whose units several threads share, so that each reads a part of the weights.

One core cannot keep large recurrent weights in its second cache, several can. In each step a thread multiplies the
whole state with the columns of its units, and computes their gates; the new state is what is written to the outputs, a
place of its own for each step. See meeting.py for how the threads wait for each other.
"""

from __future__ import annotations

from ..compile import Kernel, helper
from . import fields as at
from .functions import activate
from .meeting import first_of, go_together
from .packing import pack_all_biases, pack_gates
from .products import multiply, project_rows
from .rows import get, put
from .scan import BYTE, place_rows
from .vectors import advance, fma, lanes, load, pointer


@helper
def pack_units(plan, first, end, like):
    """Pack the weights of some units."""
    C = 3 * lanes(like)
    pack_gates(plan, 3, first // C, end // C, like)


@helper
def project_units(plan, first, end, s0, s1, like):
    """gx (steps, R, 3P)[:, :, units] = x W for some steps, counted in the order of processing."""
    T, rows, size, P = plan[at.STEPS], plan[at.ROWS], plan[at.SIZE], plan[at.PADDED]
    order, groups = pointer(plan[at.PLACED], 0), pointer(plan[at.GROUPS], 0)
    x, w, gx = pointer(plan[at.X], like), pointer(plan[at.W], like), pointer(plan[at.PROJECTED], like)
    step = -plan[at.X_STEP] if plan[at.REVERSE] != 0 else plan[at.X_STEP]
    start = (T - 1 - s0 if plan[at.REVERSE] != 0 else s0) * plan[at.X_STEP]
    count = -(-rows // size)
    for gate in range(3):
        project_rows(
            x, start, step, plan[at.X_ROW], order, plan[at.INPUT], w, gate * P + first, gate * P + end, gx, 3 * P,
            groups, count, pointer(plan[at.FLAGS], BYTE), False, rows, size, s1 - s0, count * size,
        )  # fmt: skip


@helper
def take_step(plan, s, s0, first, end, like):
    """Compute some units of a step."""
    T, U, P, L = plan[at.STEPS], plan[at.UNITS], plan[at.PADDED], lanes(like)
    rows, size = plan[at.ROWS], plan[at.SIZE]
    f, g, groups = plan[at.ACTIVATION], plan[at.RECURRENT_ACTIVATION], pointer(plan[at.GROUPS], 0)
    u, out, gates = pointer(plan[at.RECURRENT], like), pointer(plan[at.OUT], like), pointer(plan[at.GATES], like)
    bias, bias_n = pointer(plan[at.BIAS], like), pointer(plan[at.BIAS_N], like)
    gx, sums = pointer(plan[at.PROJECTED], like), pointer(plan[at.SUMS], like)
    count = -(-rows // size)
    t = T - 1 - s if plan[at.REVERSE] != 0 else s
    before = t + 1 if plan[at.REVERSE] != 0 else t - 1
    h, h_row = advance(out, before * rows * U), U
    if s == 0:
        h, h_row = pointer(plan[at.H0], like), plan[at.H0_ROW]
    back = s % 2 == 1  # what was used last is then still in the cache
    for turn in range(3):
        gate = 2 - turn if back else turn
        multiply(h, h_row, 0, U, u, U, gate * P + first, gate * P + end, sums, 3 * P, groups, count, rows, size, back)
    for row in range(rows):
        a, i = row * 3 * P, ((s - s0) * count * size + row) * 3 * P
        o, k = (t * rows + row) * U, (t * rows + row) * plan[at.WIDTH]
        for j in range(first, min(end, U), L):
            z = activate(g, load(sums, a + j) + load(gx, i + j) + load(bias, j))
            r = activate(g, load(sums, a + P + j) + load(gx, i + P + j) + load(bias, P + j))
            q = load(sums, a + 2 * P + j) + load(bias_n, j)
            n = activate(f, fma(r, q, load(gx, i + 2 * P + j) + load(bias, 2 * P + j)))
            if plan[at.GATES] != 0:
                put(gates, k + j, q, U - j)
                put(gates, k + plan[at.Z_AT] + j, z, U - j)
                put(gates, k + plan[at.R_AT] + j, r, U - j)
                put(gates, k + plan[at.N_AT] + j, n, U - j)
            put(out, o + j, fma(z, get(h, row * h_row + j, U - j), (1.0 - z) * n), U - j)


go_through = go_together(pack_units, project_units, take_step)


def shared_part(plan, like):
    """Run the part of one thread; see `fields` for the plan. Gates are in the order z, r, n."""
    T, U, P, rows, size = plan[at.STEPS], plan[at.UNITS], plan[at.PADDED], plan[at.ROWS], plan[at.SIZE]
    me, shares, C = plan[at.SHARE], plan[at.SHARES], 3 * lanes(like)
    place_rows(plan, pointer(plan[at.PLACED], 0), pointer(plan[at.GROUPS], 0), rows, size, -(-rows // size))
    pack_all_biases(plan, like)
    # A look at another thread's number takes some cycles, the product of one row 3 U P / 16.
    go_through(
        plan, pointer(plan[at.MEETING], 0), me, shares, T, plan[at.CHUNK], first_of(me, shares, P, C),
        first_of(me + 1, shares, P, C), P, U * P * rows, like,
    )  # fmt: skip
    if me == 0:
        out, last = pointer(plan[at.OUT], like), pointer(plan[at.LAST], like)
        i = 0 if plan[at.REVERSE] != 0 else (T - 1) * rows * U
        for row in range(rows):
            for j in range(0, U, lanes(like)):
                put(last, row * U + j, get(out, i + row * U + j, U - j), U - j)


shared_scan = Kernel(shared_part)
