"""Reasons against a call that several backends share."""

from __future__ import annotations

from .. import activations
from ..call.check import Signature


def reasons_against_transforms(s: Signature) -> list[str]:
    """Operators have no rule for torch.func's transforms and dual numbers."""
    return (
        ["a torch.func transform or forward-mode differentiation (grad, vmap, jvp) is active"] if s.transformed else []
    )


def reasons_against_cells(s: Signature) -> list[str]:
    """What changes the cell itself, which torch's GRU does not have."""
    reasons = []
    if s.has_zoneout:
        reasons.append("zoneout given")
    if s.variant.gradient_clip is not None:
        reasons.append(f"gradient_clip={s.variant.gradient_clip:g}")
    if s.variant.layer_norm is not None:
        reasons.append(f"layer_norm={s.variant.layer_norm!r}")
    return reasons


def reasons_against_activations(s: Signature, needed: str) -> list[str]:
    """What a backend needs of an activation: "derivative", a function of its output, or "kernel_id"."""
    reasons = []
    names = s.variant.activation, s.variant.recurrent_activation
    for argument, name, known in zip(("activation", "recurrent_activation"), names, s.activations_known, strict=True):
        if not known:
            reasons.append(f"{argument}={name!r} is not one of this package's activations")
        elif getattr(activations.TABLE[name], needed) is None:
            reasons.append(f"{argument}={name!r}: its derivative is not a function of its output")
    return reasons
