"""Which steps of a padded batch are valid, from the lengths of its rows.

Floor 0. While a model is exported the comparison is one operator, `tritongru::valid_steps`: a translator (see
`tools/onnx.py`) then still finds the lengths behind the mask, which an ONNX GRU wants in the mask's place.
"""

from __future__ import annotations

import torch
from torch import Tensor


def valid_steps(lengths: Tensor, steps: int) -> Tensor:
    """Return (T,B), true where t < lengths[b].

    Args:
        lengths: (B,) integers. steps: T.
    """
    if _is_exporting():
        return torch.ops.tritongru.valid_steps(lengths, steps)
    return torch.arange(steps, device=lengths.device)[:, None] < lengths[None, :]


@torch.library.custom_op("tritongru::valid_steps", mutates_args=())
def _valid_steps(lengths: Tensor, steps: int) -> Tensor:
    return torch.arange(steps, device=lengths.device)[:, None] < lengths[None, :]


@_valid_steps.register_fake
def _(lengths, steps):
    return lengths.new_empty(steps, lengths.shape[0], dtype=torch.bool)


def is_exporting_to_onnx() -> bool:
    """Return whether `torch.onnx.export` is at work."""
    return _is_exporting() and torch.onnx.is_in_onnx_export()


def _is_exporting() -> bool:
    # torch 2.6 cannot say; there an exported model keeps the plain comparison.
    return hasattr(torch.compiler, "is_exporting") and torch.compiler.is_exporting()
