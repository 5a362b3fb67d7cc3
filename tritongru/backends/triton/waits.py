"""Faults of scans whose programs wait for each other: read on the device's own time, raised at the next chance."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from ...call.errors import ExchangeError

_pending: deque = deque()


def check_faults(faults: Tensor | None) -> None:
    """Raise ExchangeError for a fault of this scan (CPU) or an earlier one (GPU, without waiting for it).

    Args:
        faults: int32, one word for each batch tile, not 0 where a program waited too long.
    """
    if faults is None:
        return
    if not faults.is_cuda:
        _raise_fault(faults)
        return
    if torch.cuda.is_current_stream_capturing():
        return
    host = torch.empty_like(faults, device="cpu", pin_memory=True).copy_(faults, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    _pending.append((event, host))
    while _pending and _pending[0][0].query():
        _raise_fault(_pending.popleft()[1])


def _raise_fault(faults: Tensor) -> None:
    if bool(faults.any()):
        raise ExchangeError(
            f"programs of batch tiles {faults.nonzero()[:, -1].tolist()} waited too long for each other; "
            "the results of that call are NaN from that step on"
        )
