"""Weights as the products want them: in panels (see products.py), with the gates' columns or rows padded.

A call packs its weights anew. That costs about what reading them costs, and no copy can be out of date.
"""

from __future__ import annotations

from ..compile import Kernel, helper
from . import fields as at
from .vectors import full, lanes, load, load_first, pointer, store


@helper
def pack_block(source, start, next_row, next_column, K, columns, target, o, like):
    """Write K rows of one vector of columns, zeros beyond `columns`; rows of the target are a panel apart."""
    L, C = lanes(like), 3 * lanes(like)
    if next_column == 1 and columns >= L:
        for k in range(K):
            store(target, o + k * C, load(source, start + k * next_row))
    elif next_column == 1:
        for k in range(K):
            store(target, o + k * C, load_first(source, start + k * next_row, columns))
    else:
        for k in range(K):
            for lane in range(L):
                i = start + k * next_row + lane * next_column
                target[o + k * C + lane] = source[i] if lane < columns else like


@helper
def pack_gates(source, next_row, next_column, K, U, P, z, r, first, last, target, like):
    """(K,3U), z and r from columns `z` and `r` on, to a packed (K,3P) in the order z, r, n: the units first..last."""
    L, C = lanes(like), 3 * lanes(like)
    for gate in range(3):
        begin = z if gate == 0 else r if gate == 1 else 2 * U
        for j in range(first, last, L):
            o = (gate * P + j) // C * K * C + (gate * P + j) % C
            pack_block(source, (begin + j) * next_column, next_row, next_column, K, max(U - j, 0), target, o, like)


@helper
def pack_transposed(source, next_row, next_column, U, P, N, z, r, target, like):
    """The transposed of (U,3U) to a packed (3P,N), its rows in the order n, z, r."""
    L, C = lanes(like), 3 * lanes(like)
    for column in range(0, N, L):
        o = column // C * 3 * P * C + column % C
        for gate in range(3):
            first = 2 * U if gate == 0 else z if gate == 1 else r
            start, to = first * next_column + column * next_row, o + gate * P * C
            pack_block(source, start, next_column, next_row, U, max(U - column, 0), target, to, like)
            for k in range(U, P):
                store(target, to + k * C, full(like, 0.0))


@helper
def pack_biases(bias_x, has_x, bias_h, has_h, U, P, z, r, after, bias, bias_n, like):
    """bias (3P,) of every bias that is added before the reset product, bias_n (P,) of the other."""
    zero = like
    for gate in range(3):
        first = z if gate == 0 else r if gate == 1 else 2 * U
        for j in range(P):
            total = zero
            if has_x and j < U:
                total += bias_x[first + j]
            if has_h and j < U and not (after and gate == 2):
                total += bias_h[first + j]
            bias[gate * P + j] = total
    for j in range(P):
        bias_n[j] = bias_h[2 * U + j] if has_h and after and j < U else zero


@helper
def pack_units(plan, first, last, like):
    """Pack the weights that lead to the units first..last, and all biases."""
    U, P, after = plan[at.UNITS], plan[at.PADDED], plan[at.RESET_AFTER] != 0
    base = plan[at.N_AT] - 2 * U
    z, r = plan[at.Z_AT] - base, plan[at.R_AT] - base
    u, recurrent = pointer(plan[at.U_GIVEN], like), pointer(plan[at.RECURRENT], like)
    pack_gates(u, plan[at.U_ROW], plan[at.U_COLUMN], U, U, P, z, r, first, last, recurrent, like)
    if plan[at.W] != 0:
        w, packed = pointer(plan[at.W_GIVEN], like), pointer(plan[at.W], like)
        pack_gates(w, plan[at.W_ROW], plan[at.W_COLUMN], plan[at.INPUT], U, P, z, r, first, last, packed, like)
    pack_biases(
        pointer(plan[at.BIAS_X], like), plan[at.BIAS_X] != 0, pointer(plan[at.BIAS_H], like), plan[at.BIAS_H] != 0,
        U, P, z, r, after, pointer(plan[at.BIAS], like), pointer(plan[at.BIAS_N], like), like,
    )  # fmt: skip


def pack_weights(plan, like):
    """Pack the weights of a plan, whose `like` is zero."""
    if plan[at.TRANSPOSED] == 0:
        pack_units(plan, 0, plan[at.PADDED], like)
        return
    U, P = plan[at.UNITS], plan[at.PADDED]
    base = plan[at.N_AT] - 2 * U
    z, r = plan[at.Z_AT] - base, plan[at.R_AT] - base
    u, recurrent = pointer(plan[at.U_GIVEN], like), pointer(plan[at.RECURRENT], like)
    pack_transposed(u, plan[at.U_ROW], plan[at.U_COLUMN], U, P, plan[at.COLUMNS], z, r, recurrent, like)


pack = Kernel(pack_weights)
