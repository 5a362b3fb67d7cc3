"""One step of a layer's weights, and what the step before it decided.

It is `repeats.py` for one owner of weights: with one kind to compare with, and nothing to look up, a step takes less
time.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import activations, environment, functional
from ..backends.eager import short
from ..backends.operators import is_watched
from ..call.arguments import Arguments
from ..call.check import is_transformed
from ..call.problem import Inputs, Variant
from ..call.zoneout import draw_zoneout
from ..dispatch import Decision
from ..repeats import EXACT

if TYPE_CHECKING:
    from .base import RecurrentWeights


def run_step(
    owner: RecurrentWeights, x: Tensor, state: Tensor, weights: dict, input_masks, state_masks, backend: str
) -> tuple[Tensor, Decision]:
    """Return the state (B,U) after one step of `owner` with input x (B,I), and the decision.

    Args:
        weights: of `owner`, in the dtype of `x`. input_masks, state_masks: of dropout, as the layer drew them.
    """
    if input_masks is not None:
        input_masks = [input_masks] if isinstance(input_masks, Tensor) else input_masks
        input_masks = [mask.unsqueeze(1) for mask in input_masks]
    x = x.unsqueeze(1)
    arguments = Arguments(
        x, **weights, initial_state=state, activation=owner.activation,
        recurrent_activation=owner.recurrent_activation, reset_after=owner.reset_after, input_dropout=input_masks,
        recurrent_dropout=state_masks, zoneout=draw_zoneout(x, owner.units, owner.zoneout, owner.training),
        gradient_clip=owner.gradient_clip, layer_norm=owner._norm(),
    )  # fmt: skip
    _, new, decision = functional.run(arguments, backend)
    return new, decision


# From x (B,I), the state (B,U) and the weights by their names to the state after a step, twice.
Step = Callable[[Tensor, Tensor, Any], tuple[Tensor, Tensor]]


class LastStep:
    """What the last step depended on but for the values of its tensors: a step alike is not checked and decided again.

    Attributes:
        known: that, the decision, and the function that takes the step, as one value, since another thread may be
            reading it; None where the next step has to go the whole way.
    """

    __slots__ = ("known",)

    def __init__(self) -> None:
        self.known: tuple[tuple, Decision, Step] | None = None

    def __reduce__(self):
        return LastStep, ()  # a copy remembers nothing

    def remember(self, owner: RecurrentWeights, x: Tensor, state: Tensor, backend: str, decision: Decision) -> None:
        """Remember a step without dropout that went the whole way."""
        kind = _kind(owner, x, state, backend) if decision.backend in ("eager", "numba") else None
        step = None if kind is None else _make_step(owner, x, state, decision.backend)
        self.known = None if kind is None or step is None else (kind, decision, step)

    def again(self, owner: RecurrentWeights, x: Any, state: Tensor, backend: str) -> tuple[Tensor, Tensor] | None:
        """Return the output and the state (B,U) after a step that is like the last one, None for any other.

        Their values are the same, their memory is not.
        """
        known = self.known
        if known is None or known[0] != _kind(owner, x, state, backend):
            return None
        return known[2](x, state, owner._parameters)


def _make_step(owner: RecurrentWeights, x: Tensor, state: Tensor, backend: str) -> Step | None:
    """Return the function that takes a step like that of x (B,I) from the state (B,U), None where `repeats` has it."""
    f, g = (activations.resolve(one).name for one in (owner.activation, owner.recurrent_activation))
    variant, weights = Variant(f, g), owner._parameters
    bias_x, bias_h = _biases(weights)
    inputs = Inputs(x, weights["kernel"], bias_x, weights["recurrent_kernel"], bias_h, state)
    if backend == "numba":
        numba = importlib.import_module("tritongru.backends.numba.short")  # imports numba
        sequence = inputs._replace(x=x.unsqueeze(0))
        if numba.is_short(sequence, variant) and all(t is None or t.stride(-1) == 1 for t in (x, inputs.bias_x, state)):
            call, no_bias = numba.BoundShort(sequence, variant), inputs.bias_x is None
            second = 0 if no_bias else owner.bias.stride(0) * x.element_size()

            def take(x: Tensor, state: Tensor, weights: Any) -> tuple[Tensor, Tensor]:
                bias = 0 if no_bias else weights["bias"].data_ptr()
                out, new = torch.empty_like(state), torch.empty_like(state)
                call.write(
                    x.data_ptr(), weights["kernel"].data_ptr(), bias, weights["recurrent_kernel"].data_ptr(),
                    bias + second, state.data_ptr(), out.data_ptr(), new.data_ptr(), 0,
                )  # fmt: skip
                return out, new

            return take
        return None

    step = short.make_step(variant)

    def take_eagerly(x: Tensor, state: Tensor, weights: Any) -> tuple[Tensor, Tensor]:
        bias_x, bias_h = _biases(weights)
        new = step(x, weights["kernel"], bias_x, state, weights["recurrent_kernel"], bias_h)
        return new.clone(), new

    return take_eagerly


def _biases(weights: Any) -> tuple[Tensor | None, ...]:
    return (None, None) if weights["bias"] is None else weights["bias"].unbind(0)


def _kind(owner: RecurrentWeights, x: Any, state: Tensor, backend: str) -> tuple | None:
    """Return what a step depends on but for values; None for one that has to go the whole way.

    That is: one with gradients, one that a tracer, a mode or autocast watches, weights behind a parametrization,
    another cell, the other reset convention, and half precision, whose sums are kept in float32.
    """
    if not isinstance(x, Tensor) or x.dtype not in EXACT or not x.is_cpu or not owner.reset_after:
        return None
    weights: Any = owner._parameters
    if owner.zoneout or owner.layer_norm is not None or owner.heads > 1:
        return None
    if "kernel" not in weights or "recurrent_kernel" not in weights or "bias" not in weights:
        return None
    tensors = (x, state, weights["kernel"], weights["recurrent_kernel"], weights["bias"])
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return None
    if is_watched(tensors) or is_transformed() or torch.is_autocast_enabled("cpu"):
        return None
    kinds = [None if t is None else (t.shape, t.stride(), t.dtype, t.is_cpu) for t in tensors]
    return *kinds, owner.activation, owner.recurrent_activation, backend, environment.changes()
