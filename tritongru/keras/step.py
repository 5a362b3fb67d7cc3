"""One step of a layer's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import functional, repeats
from ..call.arguments import Arguments
from ..call.zoneout import draw_zoneout
from ..dispatch import Decision

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
        input_masks = [mask.unsqueeze(0) for mask in input_masks]
    arguments = _arguments(owner, x, state, weights)._replace(
        input_dropout=input_masks, recurrent_dropout=state_masks, layer_norm=owner._norm(),
        zoneout=draw_zoneout(x.unsqueeze(0), owner.units, owner.zoneout, owner.training),
    )  # fmt: skip
    _, new, decision = functional.run(arguments, backend)
    return new, decision


def step_again(owner: RecurrentWeights, x, state, backend: str) -> tuple[Tensor, Tensor] | None:
    """Return output and state (B,U) after a step without dropout of a known kind (`repeats`), None for any other.

    Their values are the same, their memory is not.
    """
    if torch.compiler.is_compiling() or not isinstance(x, Tensor) or not isinstance(state, Tensor) or x.dim() != 2:
        return None
    weights = owner._plain_weights()
    found = None if weights is None else repeats.again(_arguments(owner, x, state, weights), backend)
    return None if found is None else (found[0].squeeze(0), found[1])


def _arguments(owner: RecurrentWeights, x: Tensor, state: Tensor, weights: dict) -> Arguments:
    return Arguments(
        x.unsqueeze(0), **weights, initial_state=state, activation=owner.activation,
        recurrent_activation=owner.recurrent_activation, reset_after=owner.reset_after, time_major=True,
        gradient_clip=owner.gradient_clip,
    )  # fmt: skip
