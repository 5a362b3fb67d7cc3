"""The tensor inputs of a scan, which its gradient returns one for one."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Inputs(NamedTuple):
    """The tensor inputs of the operator `tritongru::scan`, in its order; see `sequence.Problem` for their shapes."""

    x: Tensor
    w: Tensor | None
    bias_x: Tensor | None
    u: Tensor
    bias_h: Tensor | None
    h0: Tensor
    mask: Tensor | None
    resets: Tensor | None
    fresh: Tensor | None
    drop: Tensor | None
