"""Weights as the products want them: in panels (see products.py), with the gates' columns or rows padded.

A call packs its weights anew: that costs about what reading them costs, and no copy can be out of date.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...spec import Variant
from .compile import Kernel
from .vectors import full, lanes, load, load_first, pointer, store

(
    MATRIX, ROW_STRIDE, COLUMN_STRIDE,
    ROW_BLOCK, ROWS, ROW_0, ROW_1, ROW_2, ROW_BLOCKS,  # padded and true rows of a block, and where each begins
    COLUMN_BLOCK, COLUMNS, COLUMN_0, COLUMN_1, COLUMN_2, COLUMN_BLOCKS,
    TARGET,
) = range(16)  # fmt: skip


def pack_matrix(plan, like):
    """Fill panels with the blocks of a matrix, each padded with zeros."""
    source, target = pointer(plan[MATRIX], like), pointer(plan[TARGET], like)
    row_stride, column_stride = plan[ROW_STRIDE], plan[COLUMN_STRIDE]
    row_block, rows, column_block, columns = plan[ROW_BLOCK], plan[ROWS], plan[COLUMN_BLOCK], plan[COLUMNS]
    L = lanes(like)
    height, width = row_block * plan[ROW_BLOCKS], column_block * plan[COLUMN_BLOCKS]
    for c in range(0, width, L):
        block, j = c // column_block, c % column_block
        count = max(min(columns - j, L), 0)
        place = c // (3 * L) * height * 3 * L + c % (3 * L)
        for b in range(plan[ROW_BLOCKS]):
            start = plan[ROW_0 + b] * row_stride + (plan[COLUMN_0 + block] + j) * column_stride
            o = place + b * row_block * 3 * L
            if column_stride == 1 and count == L:
                for k in range(rows):
                    store(target, o + k * 3 * L, load(source, start + k * row_stride))
            elif column_stride == 1:
                for k in range(rows):
                    store(target, o + k * 3 * L, load_first(source, start + k * row_stride, count))
            else:
                for k in range(rows):
                    for lane in range(count):
                        target[o + k * 3 * L + lane] = source[start + k * row_stride + lane * column_stride]
                    for lane in range(count, L):
                        target[o + k * 3 * L + lane] = 0.0
            for k in range(rows, row_block):
                store(target, o + k * 3 * L, full(like, 0.0))


pack = Kernel(pack_matrix)


def gate_columns(variant: Variant, U: int) -> tuple[int, int, int]:
    """Return where the columns of z, r and h begin in the weights."""
    return (U, 0, 2 * U) if variant.reset_gate_first else (0, U, 2 * U)


def pack_gates(weights: Tensor, variant: Variant, padded: int) -> Tensor:
    """Return (K,3U) weights as a packed matrix (K,3P), its columns in the order z, r, n."""
    K, U = weights.shape[0], weights.shape[1] // 3
    target = weights.new_empty(max(K, 1) * 3 * padded)
    _run(weights, weights.stride(), (K, K, (0, 0, 0), 1), (padded, U, gate_columns(variant, U), 3), target)
    return target


def pack_transposed(u: Tensor, variant: Variant, padded: int, columns: int) -> Tensor:
    """Return (U,3U) recurrent weights as a packed matrix (3P,N) of the transposed: rows in the order n, z, r."""
    U = u.shape[0]
    z, r, n = gate_columns(variant, U)
    target = u.new_empty(3 * padded * columns)
    _run(u, u.stride()[::-1], (padded, U, (n, z, r), 3), (columns, U, (0, 0, 0), 1), target)
    return target


def pack_biases(bias_x, bias_h, variant: Variant, U: int, padded: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return (3P,) every bias that is added before the reset product, in the order z, r, n, and (P,) the other one."""
    both = like.new_zeros(4, padded)
    z, r, n = gate_columns(variant, U)
    if bias_x is not None:
        both[: 3, :U] = bias_x.view(3, U) if z == 0 else bias_x.view(3, U)[[1, 0, 2]]
    if bias_h is not None:
        parts = bias_h.unflatten(0, (3, U))
        both[0, :U] += parts[z // U]
        both[1, :U] += parts[r // U]
        both[3 if variant.reset_after else 2, :U] += parts[2]
    return both[:3], both[3]


def _run(matrix: Tensor, strides, rows: tuple, columns: tuple, target: Tensor) -> None:
    """Pack `matrix`; rows and columns: (size of a padded block, of a block, where each begins, number of blocks)."""
    plan = [matrix.data_ptr(), *strides]
    for padded, size, starts, blocks in (rows, columns):
        plan += [padded, size, *starts, blocks]
    plan.append(target.data_ptr())
    pack.for_dtype(numpy_dtype(matrix.dtype))(np.array(plan))


def numpy_dtype(dtype: torch.dtype) -> np.dtype:
    """Return the kernels' dtype for float32 or float64."""
    return np.dtype(np.float64 if dtype == torch.float64 else np.float32)
