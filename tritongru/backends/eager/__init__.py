"""The scan and the reverse scan in torch operations, for any device and dtype, without an autograd graph.

Both own everything between the inputs and the gradients, in chunks of steps that stay in the processor's cache.
`continuation` is the same computation with the arguments and results of the Triton kernels, which calls continue on
where a kernel fails.
"""

from ...call.check import Signature
from ..reasons import reasons_against_activations, reasons_against_transforms
from . import members
from .backward import run_backward
from .forward import run_forward

__all__ = ["reasons_against", "run_backward", "run_forward", "runs_at_once"]


def reasons_against(s: Signature) -> list[str]:
    """It needs derivatives that are functions of the output."""
    return reasons_against_transforms(s) + reasons_against_activations(s, "derivative")


def runs_at_once(s: Signature) -> bool:
    """Return whether several scans of a call run as one: plain ones on a CPU, where that is faster."""
    if s.device != "cpu" or s.shape is None or s.variant.layer_norm is not None:
        return False
    plain = not (s.has_mask or s.has_resets or s.has_zoneout)
    return plain and members.is_faster(s.members, s.shape.time, s.shape.batch, s.units)
