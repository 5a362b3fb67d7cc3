"""Memory of packed weights that goes from call to call: fresh memory costs a page fault for every 4 KiB.

Only the memory is kept, and no value in it is read before it is written.
"""

from __future__ import annotations

import torch
from torch import Tensor

MOST_BYTES = 1 << 24

_spare: list[Tensor] = []


def borrow(size: int) -> Tensor:
    """Return at least `size` bytes, which nobody else has until they are given back."""
    try:
        found = _spare.pop()
    except IndexError:  # the first call, or another thread has it
        found = None
    if found is not None and found.numel() >= size:
        return found
    with torch.inference_mode(False):  # the next call may be outside of it
        return torch.empty(size, dtype=torch.uint8, device="cpu")


def give_back(memory: Tensor) -> None:
    """Keep `memory` for the next call, unless it is large or there is some."""
    if not _spare and memory.numel() <= MOST_BYTES:
        _spare.append(memory)
