"""How float32 products are taken on a GPU, and the context that holds the vendor's library to it."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor


def resolve_precision(precision: str) -> str:
    """Return the float32 product mode: `"auto"` follows `torch.get_float32_matmul_precision()`."""
    if precision != "auto":
        return precision
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


# Dynamo cannot trace the query; it guards the setting by itself. This is torch.compiler.assume_constant_result without
# importing the compiler with the package.
resolve_precision._dynamo_marked_constant = True  # type: ignore[attr-defined]


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
