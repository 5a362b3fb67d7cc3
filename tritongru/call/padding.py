"""Which steps of a padded batch are valid, from the lengths of its rows.

While a model is exported the comparison is one operator, `tritongru::valid_steps`: a translator (see
`tools/onnx/translate.py`) then still finds the lengths behind the mask, which an ONNX GRU wants in the mask's place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .recording import is_exporting


def valid_steps(lengths: Tensor, steps: int) -> Tensor:
    """Return (T,B), true where t < lengths[b].

    Args:
        lengths: (B,) integers. steps: T.
    """
    if is_exporting():
        return torch.ops.tritongru.valid_steps(lengths, steps)
    return torch.arange(steps, device=lengths.device)[:, None] < lengths[None, :]


@torch.library.custom_op("tritongru::valid_steps", mutates_args=())
def _valid_steps(lengths: Tensor, steps: int) -> Tensor:
    return torch.arange(steps, device=lengths.device)[:, None] < lengths[None, :]


@_valid_steps.register_fake
def _(lengths, steps):
    return lengths.new_empty(steps, lengths.shape[0], dtype=torch.bool)
