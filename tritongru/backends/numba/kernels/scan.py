"""The scan over a part of the batch, everything between the input and the outputs in one loop over time.

    z = g(x W_z + b_z + h R_z)    r = g(x W_r + b_r + h R_r)
    n = f(x W_n + b_n + r (h R_n + c_n))    reset_after;    f(x W_n + b_n + (r h) R_n) otherwise
    h = z h + (1 - z) n

The input is projected some steps at a time, into scratch that stays in the second cache. Each step is then one product
of all rows with the packed recurrent weights (three where each gate has a dropout mask of its own, two without
reset_after) and one pass over the rows for the gates; with layer normalisation (norms.py) one more before it. The
weights are gone through back and forth, so that the half used last is still in the cache. A part needs no other part:
threads meet at the end only.

Groups of rows that are masked in a step are not computed; of a group that is, masked rows are computed and dropped.
"""

from __future__ import annotations

import numpy as np

from ..compile import Kernel, helper
from . import fields as at
from .functions import activate
from .norms import normalize_row
from .packing import pack_share
from .products import multiply, project_rows
from .rows import copy_row, fill_row, get, put, show_row
from .vectors import advance, fma, full, lanes, load, pointer, store

BYTE = np.uint8(0)


@helper
def place_rows(plan, order, groups, rows, size, count):
    """Write the place in the batch of each row of the part, and the first row of each group."""
    given, first = pointer(plan[at.ORDER], 0), plan[at.FIRST]
    for row in range(rows):
        order[row] = given[first + row] if plan[at.ORDER] != 0 else first + row
    for group in range(count):
        groups[group] = group * size


@helper
def copy_projections(x, start, next_step, next_row, order, z_at, r_at, gx, U, P, rows, steps, R):
    """gx (steps, R, 3P) from projections x (.., 3U) with z and r at their places."""
    for s in range(steps):
        for row in range(rows):
            i, o = start + s * next_step + order[row] * next_row, (s * R + row) * 3 * P
            copy_row(x, i + z_at, gx, o, U, P)
            copy_row(x, i + r_at, gx, o + P, U, P)
            copy_row(x, i + 2 * U, gx, o + 2 * P, U, P)


@helper
def flag_groups(mask, order, flags, rows, size, count, T, B, s0, s1, reverse):
    """flags (steps, groups): whether any row of the group is valid."""
    for s in range(s0, s1):
        t = T - 1 - s if reverse else s
        for g in range(count):
            found = 0
            for row in range(g * size, min((g + 1) * size, rows)):
                if mask[t * B + order[row]] != 0:
                    found = 1
            flags[(s - s0) * count + g] = found


@helper
def list_groups(flags, i, live, groups, count):
    """List the groups whose flag is set; return their number."""
    found = 0
    for g in range(count):
        if flags[i + g] != 0:
            live[found] = groups[g]
            found += 1
    return found


@helper
def reset_rows(resets, t, B, order, rows, h, P, fresh, fresh_start, fresh_row, has_fresh, U):
    """Replace the states of the rows that are reset before step t."""
    for row in range(rows):
        if resets[t * B + order[row]] != 0:
            if has_fresh:
                copy_row(fresh, fresh_start + order[row] * fresh_row, h, row * P, U, P)
            else:
                for j in range(0, P, lanes(h)):
                    store(h, row * P + j, full(h, 0.0))


@helper
def drop_states(h, kept, entering, rows, R, P, drops):
    """entering (drops, R, P) = h times each dropout mask."""
    for d in range(drops):
        for i in range(0, rows * P, lanes(h)):
            store(entering, d * R * P + i, load(h, i) * load(kept, d * R * P + i))


@helper
def mix(h, row, P, j, z, n):
    """Return z h + (1 - z) n, exactly h or n where z is 1 or 0, and keep it as the state."""
    new = fma(z, load(h, row * P + j), (1.0 - z) * n)
    store(h, row * P + j, new)
    return new


@helper
def zone_out(z, keep):
    """Return how much of the old state stays."""
    return 1.0 - keep * (1.0 - z)


def scan_part(plan, like):
    """Run one part; see `fields` for the plan."""
    T, B, I, U, P = plan[at.STEPS], plan[at.BATCH], plan[at.INPUT], plan[at.UNITS], plan[at.PADDED]
    rows, size, chunk = plan[at.ROWS], plan[at.SIZE], plan[at.CHUNK]
    reverse, after, zero_output = plan[at.REVERSE] != 0, plan[at.RESET_AFTER] != 0, plan[at.ZERO_OUTPUT] != 0
    f, g, drops = plan[at.ACTIVATION], plan[at.RECURRENT_ACTIVATION], plan[at.DROPS]
    has_mask, has_resets, has_w = plan[at.MASK] != 0, plan[at.RESETS] != 0, plan[at.W] != 0
    saves, has_fresh, has_keep = plan[at.GATES] != 0, plan[at.FRESH] != 0, plan[at.KEEP] != 0
    has_out, has_states = plan[at.OUT] != 0, plan[at.STATES] != 0
    z_at, r_at, n_at, wide = plan[at.Z_AT], plan[at.R_AT], plan[at.N_AT], plan[at.WIDTH]
    order, groups, live = pointer(plan[at.PLACED], 0), pointer(plan[at.GROUPS], 0), pointer(plan[at.LIVE], 0)
    mask, resets = pointer(plan[at.MASK], BYTE), pointer(plan[at.RESETS], BYTE)
    flags = pointer(plan[at.FLAGS], BYTE)
    x, w, u = pointer(plan[at.X], like), pointer(plan[at.W], like), pointer(plan[at.RECURRENT], like)
    bias, bias_n = pointer(plan[at.BIAS], like), pointer(plan[at.BIAS_N], like)
    h0, fresh, drop = pointer(plan[at.H0], like), pointer(plan[at.FRESH], like), pointer(plan[at.DROP], like)
    out, states, last = pointer(plan[at.OUT], like), pointer(plan[at.STATES], like), pointer(plan[at.LAST], like)
    gates, h, entering = pointer(plan[at.GATES], like), pointer(plan[at.H], like), pointer(plan[at.ENTERING], like)
    gx, sums = pointer(plan[at.PROJECTED], like), pointer(plan[at.SUMS], like)
    shown, kept = pointer(plan[at.SHOWN], like), pointer(plan[at.KEPT], like)
    keep = pointer(plan[at.KEEP], like)
    has_norm, is_joint = plan[at.SCALE] != 0, plan[at.JOINT] != 0
    scale, epsilon = pointer(plan[at.SCALE], like), pointer(plan[at.EPSILON], like)
    L, count = lanes(like), -(-rows // size)
    R = count * size
    x_step = -plan[at.X_STEP] if reverse else plan[at.X_STEP]

    if plan[at.PACKERS] == 0:
        pack_share(plan, 0, 1, like)
    place_rows(plan, order, groups, rows, size, count)
    for i in range(rows * P, R * P, L):
        store(h, i, full(like, 0.0))
    for row in range(rows):
        copy_row(h0, order[row] * plan[at.H0_ROW], h, row * P, U, P)
        for d in range(drops):
            copy_row(drop, (d * B + order[row]) * U, kept, (d * R + row) * P, U, P)
        if has_mask:
            for j in range(0, P, L):
                store(shown, row * P + j, full(like, 0.0))
    scratch = max(drops, 0 if after else 1)
    for d in range(scratch):
        for i in range((d * R + rows) * P, (d + 1) * R * P, L):
            store(entering, i, full(like, 0.0))
    # What each gate is multiplied with: the state, or the state times its mask.
    h_z = entering if drops > 0 else h
    h_r = advance(entering, R * P) if drops == 3 else h_z
    h_n = advance(entering, 2 * R * P) if drops == 3 else h_z
    gated = h_n if drops > 0 else entering  # r h, without reset_after

    for s0 in range(plan[at.BEGIN], plan[at.END], chunk):
        s1 = min(s0 + chunk, plan[at.END])
        start = (T - 1 - s0 if reverse else s0) * plan[at.X_STEP]
        if has_mask:
            flag_groups(mask, order, flags, rows, size, count, T, B, s0, s1, reverse)
        if has_w:
            project_rows(
                x, start, x_step, plan[at.X_ROW], order, I, w, 0, 3 * P, gx, 3 * P, groups, count, flags, has_mask,
                rows, size, s1 - s0, R,
            )  # fmt: skip
        else:
            # Projections come in the gates' order of the weights, as the last three blocks of saved gates.
            first = n_at - 2 * U
            copy_projections(
                x, start, x_step, plan[at.X_ROW], order, z_at - first, r_at - first, gx, U, P, rows, s1 - s0, R
            )
        for s in range(s0, s1):
            t = T - 1 - s if reverse else s
            back = s % 2 == 1
            if has_resets:
                reset_rows(
                    resets, t, B, order, rows, h, P, fresh, t * plan[at.FRESH_STEP], plan[at.FRESH_ROW], has_fresh, U
                )
            now, active = groups, count
            if has_mask:
                now, active = live, list_groups(flags, (s - s0) * count, live, groups, count)
            drop_states(h, kept, entering, rows, R, P, drops)
            if drops < 3 and after:
                multiply(h_z, P, 0, U, u, U, 0, 3 * P, sums, 3 * P, now, active, rows, size, back)
            elif drops < 3:
                multiply(h_z, P, 0, U, u, U, 0, 2 * P, sums, 3 * P, now, active, rows, size, back)
            else:
                multiply(h_z, P, 0, U, u, U, 0, P, sums, 3 * P, now, active, rows, size, back)
                multiply(h_r, P, 0, U, u, U, P, 2 * P, sums, 3 * P, now, active, rows, size, back)
                if after:
                    multiply(h_n, P, 0, U, u, U, 2 * P, 3 * P, sums, 3 * P, now, active, rows, size, back)
            if has_norm:
                for row in range(rows):
                    if not has_mask or mask[t * B + order[row]] != 0:
                        a, i = row * 3 * P, ((s - s0) * R + row) * 3 * P
                        normalize_row(sums, a, gx, i, is_joint, scale, z_at - U, r_at - U, U, P, epsilon)
            if not after:
                for row in range(rows):
                    a, i = row * 3 * P, ((s - s0) * R + row) * 3 * P
                    o = (t * B + order[row]) * wide
                    if has_mask and mask[t * B + order[row]] == 0:
                        continue
                    for j in range(0, P, L):
                        z = activate(g, load(sums, a + j) + load(gx, i + j) + load(bias, j))
                        r = activate(g, load(sums, a + P + j) + load(gx, i + P + j) + load(bias, P + j))
                        # They wait where their sums were.
                        store(sums, a + j, z)
                        store(sums, a + P + j, r)
                        if saves:
                            put(gates, o + z_at + j, z, U - j)
                            put(gates, o + r_at + j, r, U - j)
                for row in range(rows):
                    for j in range(0, P, L):
                        i = row * P + j
                        store(gated, i, load(sums, row * 3 * P + P + j) * load(h_n, i))
                multiply(gated, P, 0, U, u, U, 2 * P, 3 * P, sums, 3 * P, now, active, rows, size, back)
            for row in range(rows):
                a, i = row * 3 * P, ((s - s0) * R + row) * 3 * P
                place = t * B + order[row]
                o, k = place * U, place * wide
                if has_mask and mask[place] == 0:
                    if has_out and zero_output:
                        fill_row(out, o, U)
                    elif has_out:
                        show_row(shown, row * P, out, o, U, P)
                    if has_states:
                        show_row(h, row * P, states, o, U, P)
                    if saves:
                        fill_row(gates, k, wide)
                    continue
                for j in range(0, P, L):
                    if after:
                        z = activate(g, load(sums, a + j) + load(gx, i + j) + load(bias, j))
                        r = activate(g, load(sums, a + P + j) + load(gx, i + P + j) + load(bias, P + j))
                        q = load(sums, a + 2 * P + j) + load(bias_n, j)
                        n = activate(f, fma(r, q, load(gx, i + 2 * P + j) + load(bias, 2 * P + j)))
                        if saves:
                            put(gates, k + j, q, U - j)
                            put(gates, k + z_at + j, z, U - j)
                            put(gates, k + r_at + j, r, U - j)
                    else:
                        z = load(sums, a + j)
                        n = activate(f, load(sums, a + 2 * P + j) + load(gx, i + 2 * P + j) + load(bias, 2 * P + j))
                    if has_keep:
                        i_keep = t * plan[at.KEEP_STEP] + order[row] * plan[at.KEEP_ROW] + j
                        z = zone_out(z, get(keep, i_keep, U - j))
                    new = mix(h, row, P, j, z, n)
                    if saves:
                        put(gates, k + n_at + j, n, U - j)
                    if has_out:
                        put(out, o + j, new, U - j)
                    if has_states:
                        put(states, o + j, new, U - j)
                    if has_mask:
                        store(shown, row * P + j, new)
    for row in range(rows):
        show_row(h, row * P, last, order[row] * U, U, P)


scan = Kernel(scan_part)
