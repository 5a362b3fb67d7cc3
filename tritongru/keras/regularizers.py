"""Penalties on a weight or an output: callables `w -> scalar`, under Keras's names.

>>> get("l2")
L2(l2=0.009999999776482582)

Source: `tf.keras.regularizers` (v2.9).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._identifiers import Configurable, Registry, name_classes


class Regularizer(Configurable):
    """The base: a callable that maps a tensor to a scalar penalty."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return the penalty of `x`, a scalar in x's dtype."""
        return x.new_zeros(())


class L1L2(Regularizer):
    """l1 * sum|x| + l2 * sum x^2"""

    def __init__(self, l1: float | None = 0.0, l2: float | None = 0.0) -> None:
        self.l1 = _factor("l1", 0.0 if l1 is None else l1)
        self.l2 = _factor("l2", 0.0 if l2 is None else l2)

    def __call__(self, x: Tensor) -> Tensor:
        penalty = x.new_zeros(())
        if self.l1:
            penalty = penalty + self.l1 * x.abs().sum()
        if self.l2:
            penalty = penalty + self.l2 * x.square().sum()
        return penalty

    def get_config(self) -> dict[str, Any]:
        return {"l1": self.l1, "l2": self.l2}


class L1(Regularizer):
    """l1 * sum|x|"""

    def __init__(self, l1: float | None = 0.01) -> None:
        self.l1 = _factor("l1", 0.01 if l1 is None else l1)

    def __call__(self, x: Tensor) -> Tensor:
        return self.l1 * x.abs().sum()

    def get_config(self) -> dict[str, Any]:
        return {"l1": self.l1}


class L2(Regularizer):
    """l2 * sum x^2"""

    def __init__(self, l2: float | None = 0.01) -> None:
        self.l2 = _factor("l2", 0.01 if l2 is None else l2)

    def __call__(self, x: Tensor) -> Tensor:
        return self.l2 * x.square().sum()

    def get_config(self) -> dict[str, Any]:
        return {"l2": self.l2}


class OrthogonalRegularizer(Regularizer):
    """factor * the mean |cosine| over the pairs of rows (or columns) of a matrix.

    Raises:
        ValueError: an unknown `mode`, or a tensor that has not two axes.
    """

    def __init__(self, factor: float = 0.01, mode: str = "rows") -> None:
        if mode not in ("rows", "columns"):
            raise ValueError(f"Invalid value for `mode`: expected 'rows' or 'columns'. Received: mode={mode!r}")
        self.factor, self.mode = _factor("factor", factor), mode

    def __call__(self, x: Tensor) -> Tensor:
        if x.ndim != 2:
            raise ValueError(f"OrthogonalRegularizer needs a tensor of two axes. Received: shape={tuple(x.shape)}")
        rows = x if self.mode == "rows" else x.T
        size = rows.shape[0]
        if size < 2:
            return x.new_zeros(())
        # 1e-6 under the norm is TensorFlow's 1e-12 under the squared norm.
        unit = F.normalize(rows, dim=1, eps=1e-6)
        cosines = (unit @ unit.T).triu(diagonal=1)
        return self.factor * cosines.abs().sum() / (size * (size - 1) / 2)

    def get_config(self) -> dict[str, Any]:
        return {"factor": self.factor, "mode": self.mode}


def _factor(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) and not hasattr(value, "__float__"):
        raise ValueError(f"Invalid value for argument `{name}`: expected a non-negative float. Received: {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"Invalid value for argument `{name}`: it must be finite. Received: {value!r}")
    # Keras keeps the factor in float32, so its config reads 0.009999999776482582 for 0.01.
    return torch.tensor(float(value), dtype=torch.float32).item()


def l1_l2(l1: float = 0.01, l2: float = 0.01) -> L1L2:
    """Return `L1L2` with Keras's defaults for this spelling, 0.01 each."""
    return L1L2(l1=l1, l2=l2)


l1, l2 = L1, L2
orthogonal_regularizer = OrthogonalRegularizer

TABLE = name_classes((L1, L2, OrthogonalRegularizer), l1_l2=l1_l2, L1L2=L1L2)
registry = Registry("regularizer", TABLE)
get, serialize, deserialize = registry.get, registry.serialize, registry.deserialize
