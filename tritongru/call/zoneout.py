"""Zoneout: which units keep their old state at a step, drawn in training, in the mean otherwise.

Source: Krueger et al. 2017 (arXiv 1606.01305).
"""

from __future__ import annotations

import torch
from torch import Tensor


def check_zoneout_rate(rate: object) -> float:
    """Return the probability of keeping the old state; TypeError unless a number, ValueError outside of [0, 1]."""
    if isinstance(rate, (bool, str, bytes)) or not hasattr(rate, "__float__"):
        raise TypeError(f"`zoneout` must be a number in [0, 1], got {rate!r}")
    value = float(rate)  # type: ignore[arg-type]
    if not 0 <= value <= 1:
        raise ValueError(f"`zoneout` must be a number in [0, 1], got {rate!r}")
    return value


def draw_zoneout(x: Tensor, units: int, rate: float, training: bool) -> Tensor | None:
    """Return the argument `zoneout` of `tritongru.gru`, None without.

    Args:
        x: the input, (B,T,I) or (T,B,I). rate: the probability of keeping the old state.

    Returns:
        In training 1 where a unit takes its new state and 0 where it keeps the old, of the first axes of `x` and U;
        else the mean of that everywhere, in one number of memory.
    """
    if not rate:
        return None
    shape = (*x.shape[:2], units)
    if not training:
        return x.new_full((), 1 - rate).expand(shape)
    return torch.bernoulli(x.new_full(shape, 1 - rate))
