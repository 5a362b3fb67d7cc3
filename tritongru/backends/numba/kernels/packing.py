"""Weights as the products want them: in panels (see products.py), with the gates' columns or rows padded.

A call packs its weights anew. That costs about what reading them costs, and no copy can be out of date. They are read
in the order in which they lie: some rows at a time from end to end, or columns from end to end, turned in registers.
"""

from __future__ import annotations

from ..compile import Kernel, helper
from . import fields as at
from .rows import get
from .vectors import full, lanes, pick, pointer, store, store_turned

# Rows that are read together, in parts as long as a panel is wide; chosen on an AMD EPYC with AVX2.
STRIP = 16


@helper
def pack_block(source, start, next_row, next_column, K, columns, target, o):
    """Write K rows of one vector of columns, zeros beyond `columns`; rows of the target are a panel apart.

    Nothing is written that is not right: another thread may be packing the same, or already reading it (shared.py).
    """
    L, C = lanes(source), 3 * lanes(source)
    if next_column == 1:
        for k in range(K):
            store(target, o + k * C, get(source, start + k * next_row, columns))
        return
    zero, turned = pick(full(source, 0.0), 0), K // L * L if next_row == 1 and columns >= L else 0
    for k in range(0, turned, L):
        store_turned(target, o + k * C, C, source, start + k, next_column)
    for k in range(turned, K):
        for lane in range(L):
            i = start + k * next_row + lane * next_column
            target[o + k * C + lane] = source[i] if lane < columns else zero


@helper
def pack_panels(source, next_row, next_column, K, U, P, z, r, n, first, last, target, o, pitch):
    """Pack the panels first..last of a matrix of K rows and three gates of P columns, of which U are there.

    Args:
        z, r, n: where the gates begin in the source. o, pitch: where the first panel of all begins, and how far the
            next one is behind it.
    """
    L, C = lanes(source), 3 * lanes(source)
    strip, block = (K, L) if next_row == 1 else (STRIP, STRIP)
    for top in range(0, K, max(strip, 1)):
        end = min(top + strip, K)
        for panel in range(first, last):
            for k in range(top, end, block):
                for part in range(0, C, L):
                    gate, j = (panel * C + part) // P, (panel * C + part) % P
                    begin = z if gate == 0 else r if gate == 1 else n
                    i, to = begin + k * next_row + j * next_column, o + panel * pitch + k * C + part
                    pack_block(source, i, next_row, next_column, min(block, end - k), U - j, target, to)


@helper
def pack_gates(plan, gates, first, last, like):
    """Pack the panels first..last of the recurrent and the input's weights, and those as far behind in other gates.

    Args:
        gates: 1 for panels of all gates, 3 where each of the gates begins with a panel.
    """
    U, P, C = plan[at.UNITS], plan[at.PADDED], 3 * lanes(like)
    base = plan[at.N_AT] - 2 * U
    z, r, n = plan[at.Z_AT] - base, plan[at.R_AT] - base, 2 * U
    for of_input in range(2 if plan[at.W] != 0 else 1):
        source, target = pointer(plan[at.U_GIVEN], like), pointer(plan[at.RECURRENT], like)
        K, row, column = U, plan[at.U_ROW], plan[at.U_COLUMN]
        if of_input:
            source, target = pointer(plan[at.W_GIVEN], like), pointer(plan[at.W], like)
            K, row, column = plan[at.INPUT], plan[at.W_ROW], plan[at.W_COLUMN]
        for gate in range(gates):
            begin = gate * P // C
            pack_panels(
                source, row, column, K, U, P, z * column, r * column, n * column,
                begin + first, begin + last, target, 0, K * C,
            )  # fmt: skip


@helper
def pack_transposed(plan, first, last, like):
    """Pack the panels first..last of the transposed recurrent weights, (3P,N) with its rows in the order n, z, r."""
    U, P, N, L, C = plan[at.UNITS], plan[at.PADDED], plan[at.COLUMNS], lanes(like), 3 * lanes(like)
    u, target = pointer(plan[at.U_GIVEN], like), pointer(plan[at.RECURRENT], like)
    row, column, base = plan[at.U_ROW], plan[at.U_COLUMN], plan[at.N_AT] - 2 * U
    for gate in range(3):
        begin = (2 * U if gate == 0 else plan[at.Z_AT if gate == 1 else at.R_AT] - base) * column
        o = gate * P * C
        pack_panels(u, column, row, U, U, N, begin, begin, begin, first, last, target, o, 3 * P * C)
        for panel in range(first, last):
            for i in range(U * C, P * C, L):
                store(target, o + panel * 3 * P * C + i, full(u, 0.0))


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
def pack_all_biases(plan, like):
    """Pack the biases of a plan, whose `like` is zero."""
    U, base = plan[at.UNITS], plan[at.N_AT] - 2 * plan[at.UNITS]
    pack_biases(
        pointer(plan[at.BIAS_X], like), plan[at.BIAS_X] != 0, pointer(plan[at.BIAS_H], like), plan[at.BIAS_H] != 0,
        U, plan[at.PADDED], plan[at.Z_AT] - base, plan[at.R_AT] - base, plan[at.RESET_AFTER] != 0,
        pointer(plan[at.BIAS], like), pointer(plan[at.BIAS_N], like), like,
    )  # fmt: skip


@helper
def pack_share(plan, packer, packers, like):
    """Pack a thread's share of the weights of a plan; `like` is zero."""
    C = 3 * lanes(like)
    is_transposed = plan[at.TRANSPOSED] != 0
    panels = plan[at.COLUMNS] // C if is_transposed else 3 * plan[at.PADDED] // C
    first, last = packer * panels // packers, (packer + 1) * panels // packers
    if is_transposed:
        # With reset_after one step's product leads to the gradient of the initial state alone.
        if plan[at.STEPS] > 1 or plan[at.D_H0] != 0 or plan[at.RESET_AFTER] == 0:
            pack_transposed(plan, first, last, like)
        return
    pack_gates(plan, 1, first, last, like)
    if packer == 0:
        pack_all_biases(plan, like)


def pack_weights(plan, like):
    """Pack the weights of a plan for all of its parts, or a thread's share of them."""
    pack_share(plan, plan[at.PACKER], plan[at.PACKERS], like)


pack = Kernel(pack_weights)
