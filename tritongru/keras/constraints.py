"""Projections of a weight after the optimizer's step: callables `w -> w`, under Keras's names.

>>> get("unit_norm")
UnitNorm(axis=0)

The norms are over `axis` (0, the rows, by default), so every column of a kernel has its own.

Source: `tf.keras.constraints` (v2.9).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ._identifiers import Configurable, Registry, name_classes

EPSILON = 1e-7  # Keras's backend.epsilon()


class Constraint(Configurable):
    """The base: a callable that maps a weight to the nearest one it allows; this one allows all."""

    def __call__(self, w: Tensor) -> Tensor:
        """Return the projected weight, a new tensor of w's shape and dtype."""
        return w


class MaxNorm(Constraint):
    """w * clip(|w|, 0, max_value) / (1e-7 + |w|)"""

    def __init__(self, max_value: float = 2, axis: int | Sequence[int] = 0) -> None:
        self.max_value, self.axis = max_value, _axis(axis)

    def __call__(self, w: Tensor) -> Tensor:
        norm = _norm(w, self.axis)
        return w * (norm.clamp(0, self.max_value) / (EPSILON + norm))

    def get_config(self) -> dict[str, Any]:
        return {"max_value": self.max_value, "axis": self.axis}


class NonNeg(Constraint):
    """max(w, 0)"""

    def __call__(self, w: Tensor) -> Tensor:
        return w * (w >= 0).to(w.dtype)


class UnitNorm(Constraint):
    """w / (1e-7 + |w|)"""

    def __init__(self, axis: int | Sequence[int] = 0) -> None:
        self.axis = _axis(axis)

    def __call__(self, w: Tensor) -> Tensor:
        return w / (EPSILON + _norm(w, self.axis))

    def get_config(self) -> dict[str, Any]:
        return {"axis": self.axis}


class MinMaxNorm(Constraint):
    """w * (rate * clip(|w|, min_value, max_value) + (1 - rate) * |w|) / (1e-7 + |w|)"""

    def __init__(
        self, min_value: float = 0.0, max_value: float = 1.0, rate: float = 1.0, axis: int | Sequence[int] = 0
    ) -> None:
        self.min_value, self.max_value, self.rate, self.axis = min_value, max_value, rate, _axis(axis)

    def __call__(self, w: Tensor) -> Tensor:
        norm = _norm(w, self.axis)
        wanted = self.rate * norm.clamp(self.min_value, self.max_value) + (1 - self.rate) * norm
        return w * (wanted / (EPSILON + norm))

    def get_config(self) -> dict[str, Any]:
        return {"min_value": self.min_value, "max_value": self.max_value, "rate": self.rate, "axis": self.axis}


class RadialConstraint(Constraint):
    """Make each (height, width) kernel of a rank 4 convolution weight constant along squares around its centre.

    Raises:
        ValueError: a weight that has not four axes; every weight of a GRU has fewer.
    """

    def __call__(self, w: Tensor) -> Tensor:
        if w.ndim != 4:
            raise ValueError(f"The weight tensor must have rank 4. Received weight tensor with shape: {tuple(w.shape)}")
        start, odd = divmod(w.shape[0], 2)
        # As Keras does it: the centre is the diagonal entry before `start`, also for an odd size.
        centre = w[start - 1, start - 1]
        if odd:
            first, rings = 0, centre[None, None]
        else:
            first, rings = 1, centre.expand(2, 2, *centre.shape)
        flat = rings.permute(2, 3, 0, 1)
        for i in range(first, start):
            inner = F.pad(flat, (1, 1, 1, 1))
            border = F.pad(flat.new_zeros(flat.shape), (1, 1, 1, 1), value=1.0)
            flat = inner + border * w[start + i, start + i][..., None, None]
        return flat.permute(2, 3, 0, 1)


def _axis(axis: int | Sequence[int]) -> int | list[int]:
    return axis if isinstance(axis, int) else list(axis)


def _norm(w: Tensor, axis: int | list[int]) -> Tensor:
    return w.square().sum(dim=axis, keepdim=True).sqrt()


max_norm, non_neg, unit_norm = MaxNorm, NonNeg, UnitNorm
min_max_norm, radial_constraint = MinMaxNorm, RadialConstraint

TABLE = name_classes(
    (MaxNorm, NonNeg, UnitNorm, MinMaxNorm, RadialConstraint),
    # Keras 1's spellings, which 2.9 still takes.
    maxnorm=MaxNorm,
    nonneg=NonNeg,
    unitnorm=UnitNorm,
)
registry = Registry("constraint", TABLE)
get, serialize, deserialize = registry.get, registry.serialize, registry.deserialize
