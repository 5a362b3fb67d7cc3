"""Where each row of a masked batch ends, and in which order batch tiles take the rows.

For `workspace` and `resident`. Everything stays on the device: nothing is read back.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from .kernels.stops import last_steps_kernel


def plan_rows(
    mask: Tensor | None, resets: Tensor | None, reverse: bool, grid: tuple[int, int], processors: int
) -> tuple[Tensor | None, Tensor | None]:
    """Return the order in which tiles take the rows, (B,) int64 or None for their own, and each row's stop, (B,) int32.

    Sorted by length, rows of one tile end together. That is worth a sort only where tiles wait for a free
    multiprocessor, since tiles that all run at once end with the longest row anyway.

    Args:
        mask, resets: (T,B) uint8 or None; without a mask there is nothing to return. reverse: the order of processing.
        grid: programs of a tile, tiles. processors: of the device.
    """
    if mask is None:
        return None, None
    T, B = mask.shape
    stops = torch.empty(B, dtype=torch.int32, device=mask.device)
    # Without data there is nothing to find; `ahead` asks with such tensors what a kernel would be given.
    if not mask.is_meta:
        with torch.cuda.device(mask.device) if mask.is_cuda else contextlib.nullcontext():
            last_steps_kernel[(-(-B // 16),)](mask, resets, stops, T, B, REVERSE=reverse, BLOCK_T=128, BLOCK_B=16)
    programs, tiles = grid
    if tiles == 1 or programs * tiles <= processors:
        return None, stops
    return torch.argsort(stops, descending=True, stable=True), stops
