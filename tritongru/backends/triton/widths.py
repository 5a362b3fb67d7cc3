"""Rows of units with zeros behind them, where a norm's kernel would load unaligned rows by element, and spill.

    width    U rounded up to a multiple of 16        every gate by itself: (...,kU) -> (...,k width)

The added units have weights, scales and gradients of zero. Their gates are finite and meet zeros in every product; what
a norm is over is told to the kernels as COUNTED (constants.py). So the results of the real units do not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from ...tuning.configs import norm_width
from ..eager.continuation import Norm


@dataclass(frozen=True)
class Widths:
    """How many units there are, and how many the kernels are given."""

    units: int
    width: int

    @classmethod
    def of(cls, units: int) -> Widths:
        """Return the widths for a call with a norm."""
        return cls(units, norm_width(units))

    @property
    def differ(self) -> bool:
        """Whether zeros are added."""
        return self.width > self.units

    @overload
    def widen(self, value: Tensor) -> Tensor: ...
    @overload
    def widen(self, value: Tensor | None) -> Tensor | None: ...
    def widen(self, value: Tensor | None) -> Tensor | None:
        """Return (...,k U) as (...,k width); None as it is."""
        if value is None:
            return value
        gates = value.unflatten(-1, (value.shape[-1] // self.units, self.units))
        return torch.nn.functional.pad(gates, (0, self.width - self.units)).flatten(-2)

    def widen_weights(self, u: Tensor) -> Tensor:
        """Return u (U,3U) as (width,3 width)."""
        return torch.nn.functional.pad(self.widen(u), (0, 0, 0, self.width - self.units))

    def widen_norm(self, norm: Norm) -> Norm:
        """Return the norm with its scale, bias and sums as `widen` makes them."""
        return norm._replace(scale=self.widen(norm.scale), bias=self.widen(norm.bias), sums=self.widen(norm.sums))

    def narrow(self, value: Tensor) -> Tensor:
        """Return (...,k width) as (...,k U), contiguous; (0,), which stands for nothing, as it is."""
        if value.shape == (0,):
            return value
        gates = value.unflatten(-1, (value.shape[-1] // self.width, self.width))
        return gates[..., : self.units].flatten(-2).contiguous()
