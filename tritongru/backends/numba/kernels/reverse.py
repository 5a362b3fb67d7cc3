"""The reverse scan over a part of the batch: from gradients of states to gradients of pre-activations (docs/math.md).

    g = dh + d out    da_n = g (1 - z) f'(n)    da_z = g (h - n) g'(z)    with zoneout both times its mask
    reset_after:   dq = da_n r, q = h R_n + c_n    da_r = da_n q g'(r)    dh = g z + da_z R_z' + da_r R_r' + dq R_n'
    with a norm (da_z, da_r, dq) become the gradients of the sums before it (norms.py) on their way to dh
    otherwise:     ds = da_n R_n'                  da_r = ds h g'(r)      dh = g z + ds r + da_z R_z' + da_r R_r'

With zoneout dh is multiplied by 1 - mask (1 - z) in place of z. A bound is that of dh before it enters the step before.
A masked step passes dh on and nothing to the gates. The gradient of an output that repeats an earlier one waits until
the step that it repeats.
"""

from __future__ import annotations

from ..compile import Kernel, helper
from . import fields as at
from .functions import clamp, slope
from .norms import normalize_row_back
from .packing import pack_share
from .products import multiply
from .rows import copy_row, fill_row, get, put, show_row
from .scan import BYTE, place_rows, zone_out
from .vectors import advance, full, lanes, load, pointer, store


@helper
def add_row(source, i, target, o, U, P):
    """Add U numbers to the first of P."""
    for j in range(0, P, lanes(source)):
        store(target, o + j, load(target, o + j) + get(source, i + j, U - j))


@helper
def add_to_row(source, i, target, o, U, P):
    """Add the first U of P numbers to U numbers."""
    for j in range(0, P, lanes(source)):
        put(target, o + j, get(target, o + j, U - j) + load(source, i + j), U - j)


@helper
def entering_state(plan, s, t, before, b, has_resets, resets, states, h0, fresh, zeros):
    """Return the state that entered step s of row b: an array and where it begins there."""
    if has_resets and resets[t * plan[at.BATCH] + b] != 0:
        if plan[at.FRESH] != 0:
            return fresh, t * plan[at.FRESH_STEP] + b * plan[at.FRESH_ROW]
        return zeros, 0
    if s == 0:
        return h0, b * plan[at.H0_ROW]
    return states, (before * plan[at.BATCH] + b) * plan[at.UNITS]


@helper
def differentiate_state(f, g, total, z, n, h):
    """da_n and da_z of a state's gradient."""
    return total * (1.0 - z) * slope(f, n), total * (h - n) * slope(g, z)


@helper
def differentiate_reset(g, d_n, r, q):
    """dq and da_r with reset_after."""
    return d_n * r, d_n * q * slope(g, r)


def reverse_part(plan, like):
    """Run the steps of one part from the last to the first; see `fields` for the plan."""
    T, B, U, P, N = plan[at.STEPS], plan[at.BATCH], plan[at.UNITS], plan[at.PADDED], plan[at.COLUMNS]
    rows, size = plan[at.ROWS], plan[at.SIZE]
    reverse, after, zero_output = plan[at.REVERSE] != 0, plan[at.RESET_AFTER] != 0, plan[at.ZERO_OUTPUT] != 0
    f, g, drops = plan[at.ACTIVATION], plan[at.RECURRENT_ACTIVATION], plan[at.DROPS]
    has_mask, has_resets, has_out = plan[at.MASK] != 0, plan[at.RESETS] != 0, plan[at.D_OUT] != 0
    z_at, r_at, n_at, wide = plan[at.Z_AT], plan[at.R_AT], plan[at.N_AT], plan[at.WIDTH]
    order, groups, live = pointer(plan[at.PLACED], 0), pointer(plan[at.GROUPS], 0), pointer(plan[at.LIVE], 0)
    places = pointer(plan[at.PLACES], 0)
    mask, resets = pointer(plan[at.MASK], BYTE), pointer(plan[at.RESETS], BYTE)
    u, h0, fresh = pointer(plan[at.RECURRENT], like), pointer(plan[at.H0], like), pointer(plan[at.FRESH], like)
    states, gates, drop = pointer(plan[at.STATES], like), pointer(plan[at.GATES], like), pointer(plan[at.DROP], like)
    d_out, d_last = pointer(plan[at.D_OUT], like), pointer(plan[at.D_LAST], like)
    d_gates, d_h0, d_fresh = (
        pointer(plan[at.D_GATES], like),
        pointer(plan[at.D_H0], like),
        pointer(plan[at.D_FRESH], like),
    )
    dh, waiting, kept = pointer(plan[at.H], like), pointer(plan[at.SHOWN], like), pointer(plan[at.KEPT], like)
    d, sums, zeros = pointer(plan[at.ENTERING], like), pointer(plan[at.SUMS], like), pointer(plan[at.PROJECTED], like)
    keep, d_keep = pointer(plan[at.KEEP], like), pointer(plan[at.D_KEEP], like)
    has_keep, has_clip, clip = plan[at.KEEP] != 0, plan[at.CLIP] != 0, pointer(plan[at.CLIP], like)
    has_norm, scale, normal = plan[at.SCALE] != 0, pointer(plan[at.SCALE], like), pointer(plan[at.NORMAL], like)
    rstd, d_sums = pointer(plan[at.RSTD], like), pointer(plan[at.D_SUMS], like)
    L, count = lanes(like), -(-rows // size)
    R = count * size
    per_gate = R * N if drops == 3 else 0
    sums_z, sums_r = advance(sums, per_gate), advance(sums, 2 * per_gate)

    place_rows(plan, order, groups, rows, size, count)
    if plan[at.END] == T:
        if plan[at.PACKERS] == 0:
            pack_share(plan, 0, 1, like)
        for i in range(0, R * N, L):
            store(dh, i, full(like, 0.0))
            if has_mask:
                store(waiting, i, full(like, 0.0))
        for i in range(0, R * 3 * P, L):
            store(d, i, full(like, 0.0))
        for j in range(0, P, L):
            store(zeros, j, full(like, 0.0))
        for row in range(rows):
            if plan[at.D_LAST] != 0:
                copy_row(d_last, order[row] * U, dh, row * N, U, N)
            for k in range(drops):
                copy_row(drop, (k * B + order[row]) * U, kept, (k * R + row) * N, U, N)

    for s in range(plan[at.END] - 1, plan[at.BEGIN] - 1, -1):
        t = T - 1 - s if reverse else s
        before = t + 1 if reverse else t - 1
        active = 0
        for group in range(count):
            found = not has_mask
            for row in range(group * size, min((group + 1) * size, rows)):
                found = found or mask[t * B + order[row]] != 0
            if found:
                live[active] = groups[group]
                active += 1
        for row in range(rows):
            b = order[row]
            place = t * B + b
            i_out = t * plan[at.D_OUT_STEP] + b * plan[at.D_OUT_ROW]
            k, a = place * wide, row * 3 * P
            if has_mask and mask[place] == 0:
                if has_out and not zero_output:
                    add_row(d_out, i_out, waiting, row * N, U, N)
                for j in range(0, 3 * P, L):
                    store(d, a + j, full(like, 0.0))
                if plan[at.PLACES] == 0:
                    fill_row(d_gates, (place - plan[at.D_FIRST]) * wide, wide)
                continue
            o = ((places[place] if plan[at.PLACES] != 0 else place) - plan[at.D_FIRST]) * wide
            h, i_h = entering_state(plan, s, t, before, b, has_resets, resets, states, h0, fresh, zeros)
            for j in range(0, P, L):
                left = U - j
                total = load(dh, row * N + j)
                if has_out:
                    total = total + get(d_out, i_out + j, left)
                if has_mask:
                    total = total + load(waiting, row * N + j)
                    store(waiting, row * N + j, full(like, 0.0))
                z, r = get(gates, k + z_at + j, left), get(gates, k + r_at + j, left)
                n = get(gates, k + n_at + j, left)
                d_n, d_z = differentiate_state(f, g, total, z, n, get(h, i_h + j, left))
                if has_keep:
                    part = get(keep, t * plan[at.KEEP_STEP] + b * plan[at.KEEP_ROW] + j, left)
                    if plan[at.D_KEEP] != 0:
                        put(d_keep, place * U + j, total * (1.0 - z) * (n - get(h, i_h + j, left)), left)
                    d_n, d_z, z = d_n * part, d_z * part, zone_out(z, part)
                if after:
                    d_q, d_r = differentiate_reset(g, d_n, r, get(gates, k + j, left))
                    store(d, a + j, d_q)
                    store(d, a + 2 * P + j, d_r)
                    put(d_gates, o + j, d_q, left)
                    put(d_gates, o + r_at + j, d_r, left)
                else:
                    store(d, a + j, d_n)
                store(d, a + P + j, d_z)
                put(d_gates, o + z_at + j, d_z, left)
                put(d_gates, o + n_at + j, d_n, left)
                store(dh, row * N + j, total * z)
            if has_norm:
                o = o // wide
                normalize_row_back(d, a, U, P, normal, d_sums, o * 3 * U, rstd, o, scale, z_at - U, r_at - U)
        if s == 0 and after and plan[at.D_H0] == 0:  # nobody wants what the product leads to
            break
        back = s % 2 == 1
        if drops == 3:
            multiply(d, 3 * P, P, P, u, 3 * P, 0, P, sums_z, N, live, active, rows, size, back)
        if not after or drops == 3:
            multiply(d, 3 * P, 0, P, u, 3 * P, 0, P, sums, N, live, active, rows, size, back)
        if not after:
            for row in range(rows):
                b = order[row]
                place = t * B + b
                if has_mask and mask[place] == 0:
                    continue
                k, a = place * wide, row * 3 * P
                o = ((places[place] if plan[at.PLACES] != 0 else place) - plan[at.D_FIRST]) * wide
                h, i_h = entering_state(plan, s, t, before, b, has_resets, resets, states, h0, fresh, zeros)
                for j in range(0, P, L):
                    left = U - j
                    r = get(gates, k + r_at + j, left)
                    d_s = load(sums, row * N + j)
                    if drops > 0:
                        # Of the state times its mask, the last of the masks.
                        d_s = d_s * load(kept, ((drops - 1) * R + row) * N + j)
                    d_r = d_s * get(h, i_h + j, left) * slope(g, r)
                    store(d, a + 2 * P + j, d_r)
                    put(d_gates, o + r_at + j, d_r, left)
                    store(dh, row * N + j, load(dh, row * N + j) + d_s * r)
        if drops == 3:
            multiply(d, 3 * P, 2 * P, P, u, 3 * P, 0, P, sums_r, N, live, active, rows, size, back)
        elif after:
            multiply(d, 3 * P, 0, 3 * P, u, 3 * P, 0, P, sums, N, live, active, rows, size, back)
        else:
            multiply(d, 3 * P, P, 2 * P, u, 3 * P, 0, P, sums, N, live, active, rows, size, back)
        for row in range(rows):
            place = t * B + order[row]
            if not has_mask or mask[place] != 0:
                for j in range(0, P, L):
                    i = row * N + j
                    total = load(dh, i)
                    if drops == 3:
                        total = total + load(sums_z, i) * load(kept, i)
                        total = total + load(sums_r, i) * load(kept, R * N + i)
                        if after:
                            total = total + load(sums, i) * load(kept, 2 * R * N + i)
                    elif drops == 1:
                        total = total + load(sums, i) * load(kept, i)
                    else:
                        total = total + load(sums, i)
                    if has_clip:
                        total = clamp(total, full(like, 0.0 - clip[0]), full(like, clip[0]))
                    store(dh, i, total)
            if has_resets and resets[place] != 0:
                if plan[at.D_FRESH] != 0:
                    o = t * plan[at.D_FRESH_STEP] + order[row] * U
                    add_to_row(dh, row * N, d_fresh, o, U, N)
                for j in range(0, N, L):
                    store(dh, row * N + j, full(like, 0.0))
    if plan[at.BEGIN] == 0 and plan[at.D_H0] != 0:
        for row in range(rows):
            show_row(dh, row * N, d_h0, order[row] * U, U, N)


reverse_scan = Kernel(reverse_part)
