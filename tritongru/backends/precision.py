"""The context that holds the vendor's library to the precision of a call's float32 products."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor


@contextlib.contextmanager
def product_precision(x: Tensor, precision: str):
    """Hold the vendor library's float32 products to `precision` on a GPU for the length of the block."""
    if x.device.type != "cuda" or x.dtype != torch.float32:
        yield
        return
    # cuBLAS and cuDNN, whose recurrent layers have a switch of their own.
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value
