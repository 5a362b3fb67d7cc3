"""The plain scan of one row whose units several threads share, so that each reads a part of the weights.

One core cannot keep large recurrent weights in its second cache, several can. In each step a thread multiplies the
whole state with the columns of its units, and computes their gates; the new state is what is written to the outputs, a
place of its own for each step. Then the threads wait for each other.

The first thread never depends on the others: until they have begun, and while one of them is behind,
it computes all units itself. Meanwhile the others, with less to do, catch up; where a core is busy with something else
they are waited for ever more rarely. What two threads compute is the same to the bit, so it does not matter that both
write it.
"""

from __future__ import annotations

from ..compile import Kernel, helper
from . import fields as at
from .functions import activate
from .meeting import (
    DONE,
    LINE,
    PRESENT,
    SHARED_FROM,
    SHARED_STEPS,
    STOPPED,
    are_there,
    observe,
    publish,
    wait_for_beginning,
    wait_for_others,
)
from .packing import pack_all_biases, pack_gates
from .products import tile_1, tile_4
from .rows import get, put
from .vectors import fma, lanes, load, pointer

FIRST_PAUSE = 16  # steps


@helper
def first_unit(plan, share, C):
    """The first of a thread's units, a multiple of a panel."""
    return share * (plan[at.PADDED] // C) // plan[at.SHARES] * C


@helper
def project_units(plan, x, w, gx, first, last, s0, s1):
    """gx (steps, 3P)[:, units] = x W for some steps, counted in the order of processing."""
    T, I, P, L = plan[at.STEPS], plan[at.INPUT], plan[at.PADDED], lanes(x)
    C, step = 3 * L, -plan[at.X_STEP] if plan[at.REVERSE] != 0 else plan[at.X_STEP]
    start = (T - 1 - s0 if plan[at.REVERSE] != 0 else s0) * plan[at.X_STEP]
    whole = (s1 - s0) // 4 * 4
    for gate in range(3):
        for column in range(gate * P + first, gate * P + last, C):
            p = column // C * I * C
            for s in range(0, whole, 4):
                i = start + s * step
                tile_4(x, i, i + step, i + 2 * step, i + 3 * step, w, p, I, gx, s * 3 * P + column, L, 3 * P, False)
            for s in range(whole, s1 - s0):
                tile_1(x, start + s * step, w, p, I, gx, s * 3 * P + column, L)


@helper
def take_step(plan, s, s0, first, last, like):
    """Compute the units first..last of a step."""
    T, U, P = plan[at.STEPS], plan[at.UNITS], plan[at.PADDED]
    f, g, L = plan[at.ACTIVATION], plan[at.RECURRENT_ACTIVATION], lanes(like)
    u, out, gates = pointer(plan[at.RECURRENT], like), pointer(plan[at.OUT], like), pointer(plan[at.GATES], like)
    bias, bias_n = pointer(plan[at.BIAS], like), pointer(plan[at.BIAS_N], like)
    gx, sums = pointer(plan[at.PROJECTED], like), pointer(plan[at.SUMS], like)
    C = 3 * L
    t = T - 1 - s if plan[at.REVERSE] != 0 else s
    before = t + 1 if plan[at.REVERSE] != 0 else t - 1
    h, i_h = out, before * U
    if s == 0:
        h, i_h = pointer(plan[at.H0], like), 0
    for gate in range(3):
        for column in range(gate * P + first, gate * P + last, C):
            tile_1(h, i_h, u, column // C * U * C, U, sums, column, L)
    i, o, k = (s - s0) * 3 * P, t * U, t * plan[at.WIDTH]
    for j in range(first, min(last, U), L):
        z = activate(g, load(sums, j) + load(gx, i + j) + load(bias, j))
        r = activate(g, load(sums, P + j) + load(gx, i + P + j) + load(bias, P + j))
        q = load(sums, 2 * P + j) + load(bias_n, j)
        n = activate(f, fma(r, q, load(gx, i + 2 * P + j) + load(bias, 2 * P + j)))
        if plan[at.GATES] != 0:
            put(gates, k + j, q, U - j)
            put(gates, k + plan[at.Z_AT] + j, z, U - j)
            put(gates, k + plan[at.R_AT] + j, r, U - j)
            put(gates, k + plan[at.N_AT] + j, n, U - j)
        put(out, o + j, fma(z, get(h, i_h + j, U - j), (1.0 - z) * n), U - j)


def shared_part(plan, like):
    """Run the part of one thread; see `fields` for the plan. Gates are in the order z, r, n."""
    T, U, P, chunk = plan[at.STEPS], plan[at.UNITS], plan[at.PADDED], plan[at.CHUNK]
    x, w, gx = pointer(plan[at.X], like), pointer(plan[at.W], like), pointer(plan[at.PROJECTED], like)
    meeting, me, count = pointer(plan[at.MEETING], 0), plan[at.SHARE], plan[at.SHARES]
    C = 3 * lanes(like)
    mine, next_one = first_unit(plan, me, C), first_unit(plan, me + 1, C)
    begin = 0
    if me > 0 and observe(meeting, STOPPED) != 0:  # it comes too late
        return
    pack_gates(plan, 3, mine // C, next_one // C, like)
    pack_all_biases(plan, like)
    if me > 0:
        publish(meeting, (1 + me) * LINE + PRESENT, 1)
        begin = wait_for_beginning(meeting)
        if begin < 0:
            return
    # The first step that is shared. A look at another thread's number takes some cycles, a step's product 3 U P / 16.
    shared_from, has_packed, patience = T, False, U * P
    # After another thread was late, the steps up to the next that is shared, and how many they will be the next time.
    alone_until, pause, shared = 0, FIRST_PAUSE, 0
    # The input's products are of four steps at a time, and always of the same four.
    for s0 in range(begin // 4 * 4, T, chunk):
        s1 = min(s0 + chunk, T)
        project_units(plan, x, w, gx, mine, next_one, s0, s1)
        has_all = False
        for s in range(max(s0, begin), s1):
            if me > 0:
                if s > begin and not wait_for_others(meeting, me, count, s, 0):
                    return
                take_step(plan, s, s0, mine, next_one, like)
                publish(meeting, (1 + me) * LINE + DONE, s + 1)
                continue
            if shared_from == T and are_there(meeting, count):
                shared_from = s
                publish(meeting, SHARED_FROM, s + 1)
            is_shared = s == shared_from or (
                s > max(shared_from, alone_until) and wait_for_others(meeting, 0, count, s, 1)
            )
            take_step(plan, s, s0, 0, next_one, like)
            publish(meeting, LINE + DONE, s + 1)
            # To do the others' part takes longer for the first time: their weights and input are to be prepared.
            longer = 1 if has_packed else 8
            if is_shared and wait_for_others(meeting, 0, count, s + 1, longer * patience):
                shared += 1
                continue
            if is_shared:
                alone_until, pause = s + 1 + pause, 2 * pause
            if not has_packed:
                pack_gates(plan, 3, next_one // C, P // C, like)
                has_packed = True
            if not has_all:
                project_units(plan, x, w, gx, next_one, P, s0, s1)
                has_all = True
            take_step(plan, s, s0, next_one, P, like)
    if me == 0:
        publish(meeting, STOPPED, 1)
        publish(meeting, SHARED_STEPS, shared)
        out, last = pointer(plan[at.OUT], like), pointer(plan[at.LAST], like)
        i = 0 if plan[at.REVERSE] != 0 else (T - 1) * U
        for j in range(0, U, lanes(like)):
            put(last, j, get(out, i + j, U - j), U - j)


shared_scan = Kernel(shared_part)
