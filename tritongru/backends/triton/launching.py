"""What the launches of all kernels have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from ...environment import is_interpreted

# Polls before a fault: seconds on a GPU, where a healthy exchange takes microseconds; the interpreter polls slowly.
PATIENCE = 1 << 16 if is_interpreted() else 1 << 22


def contiguous(value: Tensor | None) -> Tensor | None:
    """Return the tensor, if there is one, with its elements one after another."""
    return None if value is None else value.contiguous()


def on_device(device: torch.device):
    """Return the context in which kernels are launched on a device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def waves(grid: tuple[int, ...], at_once: int) -> Iterator[tuple[int | None, tuple[int, ...]]]:
    """Yield the first tile and the grid of each launch: programs that wait for each other must run at once.

    None in place of 0 where there is one launch: the kernel then is compiled without the argument.

    Args:
        grid: programs of a tile, tiles, and what else there is. at_once: how many tiles are resident together.
    """
    programs, tiles, *rest = grid
    if at_once >= tiles:
        yield None, grid
        return
    for tile in range(0, tiles, at_once):
        yield tile, (programs, min(at_once, tiles - tile), *rest)


def restart(h0: Tensor, is_reset: Tensor, fresh: Tensor | None) -> Tensor:
    """Return the state that enters the first step.

    Args:
        h0: (..,B,U). is_reset: (..,B) bytes, of that step. fresh: the state after a reset, like h0; None: zeros.
    """
    replaced = is_reset.bool()[..., None]
    # Not `where` with a number: that copies the number to the device, and the host waits for it.
    return h0.masked_fill(replaced, 0) if fresh is None else torch.where(replaced, fresh, h0)
