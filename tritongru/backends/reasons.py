"""Reasons against a call that several backends share."""

from __future__ import annotations

from .. import activations
from ..call.check import Signature
from ..call.problem import Variant


def reasons_against_transforms(s: Signature) -> list[str]:
    """Gradients of the fast backends are hand-written: they have no derivatives, and no dual numbers."""
    if not s.transformed:
        return []
    return [
        "a torch.func transform of more than one derivative, or forward-mode differentiation, is active (hessian, jvp)"
    ]


def reasons_against_cells(has_zoneout: bool, variant: Variant) -> list[str]:
    """What changes the cell itself, which neither torch's GRU nor the kernels with weights in registers have."""
    reasons = []
    if has_zoneout:
        reasons.append("zoneout given")
    if variant.gradient_clip is not None:
        reasons.append(f"gradient_clip={variant.gradient_clip:g}")
    if variant.layer_norm is not None:
        reasons.append(f"layer_norm={variant.layer_norm!r}")
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
