"""What the last call of a `compat.GRU` with few steps decided, so that a call alike is not checked and decided again.

It is `repeats.py` for one layer: with one kind to compare with, and nothing to look up, a call of one step takes less
time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import environment
from .backends.operators import is_watched
from .call.check import is_transformed
from .dispatch import Decision
from .repeats import EXACT
from .stacking import is_one_plain_layer

if TYPE_CHECKING:
    from .backends.numba.short import BoundShort
    from .compat import GRU
    from .repeats import Repeat


class LastCall:
    """The last call that numba's code for few steps can run.

    Attributes:
        known: its kind, the decision, the function that runs one alike, and the state (B,U) of zeros that it begins
            with where none is given; as one value, since another thread may be reading it. None where every call goes
            the whole way.
    """

    __slots__ = ("known",)

    def __init__(self) -> None:
        self.known: tuple[tuple, Decision, BoundShort, Tensor] | None = None

    def __reduce__(self):
        return LastCall, ()  # a copy remembers nothing

    def remember(self, layer: GRU, x: Tensor, hx: Tensor | None, repeat: Repeat) -> None:
        """Remember a call of `layer` with x and hx that `repeat` runs."""
        if (kind := _kind(layer, x, hx)) is not None:
            self.known = kind, repeat.decision, repeat.bound, repeat.zeros

    def again(self, layer: GRU, x: Any, hx: Any) -> tuple[Tensor, Tensor] | None:
        """Return output and h_n of a call of `layer` that is like the last one, None for any other."""
        known = self.known
        if known is None or known[0] != _kind(layer, x, hx):
            return None
        _, decision, call, zeros = known
        if layer.last_decision is not decision:
            layer.last_decision = decision
        weights: Any = layer._parameters
        bias_x, bias_h = (
            (weights["bias_ih_l0"].data_ptr(), weights["bias_hh_l0"].data_ptr()) if layer.bias else (0, 0)
        )  # fmt: skip
        output, h_n, _ = call.run(
            x, (x.data_ptr(), weights["weight_ih_l0"].data_ptr(), bias_x, weights["weight_hh_l0"].data_ptr(), bias_h,
                (zeros if hx is None else hx).data_ptr()),
        )  # fmt: skip
        return (output.transpose(0, 1) if layer.batch_first else output), h_n.unsqueeze(0)


def _kind(layer: GRU, x: Any, hx: Any) -> tuple | None:
    """Return what a call depends on but for values; None for one that has to go the whole way.

    That is: one with gradients, one that a tracer, a mode or autocast watches, weights behind a parametrization,
    several layers, both directions, whatever `torch.nn.GRU` lacks, half precision, and an input without a batch.
    """
    if not isinstance(x, Tensor) or x.dtype not in EXACT or not x.is_cpu or x.dim() != 3:
        return None
    if not is_one_plain_layer(layer):
        return None
    weights: Any = layer._parameters
    tensors = x, hx, weights.get("weight_ih_l0"), weights.get("weight_hh_l0")
    if tensors[2] is None or tensors[3] is None or not (hx is None or isinstance(hx, Tensor)):
        return None
    if layer.bias:
        tensors = *tensors, weights.get("bias_ih_l0"), weights.get("bias_hh_l0")
        if tensors[4] is None or tensors[5] is None:
            return None
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return None
    if is_watched(tensors) or is_transformed() or torch.is_autocast_enabled("cpu"):
        return None
    kinds = [None if t is None else (t.shape, t.stride(), t.dtype, t.is_cpu) for t in tensors]
    return *kinds, layer.batch_first, layer.backend, environment.changes()
