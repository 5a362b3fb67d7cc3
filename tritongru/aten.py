"""torch's own GRU as a backend: one call of `torch.gru`, which on NVIDIA devices is cuDNN's.

cuDNN has its own conditions, which this module takes upon itself: it keeps what a gradient needs only in training mode,
it has no second derivative, and it wants all weights in one piece, which torch copies together with a warning.
"""

from __future__ import annotations

import contextlib
import warnings

import torch
from torch import Tensor

from .gradients import differentiable_gradients, wants_gradients
from .inputs import Inputs
from .onnx_gru import record_gru
from .padding import is_exporting_to_onnx
from .precision import product_precision
from .sequence import Problem
from .spec import Variant


def run_aten(problem: Problem) -> tuple[Tensor, Tensor]:
    """Return outputs (T,B,U) at the time index of the input, and the last state (B,U)."""
    p = problem
    if is_exporting_to_onnx():
        return record_gru(p)
    assert p.w is not None
    bias_x, bias_h = p.bias_x, p.bias_h
    has_bias = bias_x is not None or bias_h is not None
    weights = [_in_torch_order(p.w, p).t(), _in_torch_order(p.u, p).t()]
    if has_bias:
        zero = p.x.new_zeros(3 * p.shape.units)
        weights += [zero if b is None else _in_torch_order(b, p) for b in (bias_x, bias_h)]
    x = p.x.flip(0) if p.variant.reverse else p.x
    with product_precision(p.x, p.precision), _without_autocast(p.x.device.type):
        if torch.jit.is_tracing():
            # One operator, and the same whether or not gradients are on: the trace is for both.
            outputs, last = call_torch(x, p.h0, weights, train=True)
        elif p.x.device.type == "cuda" and wants_gradients((x, p.h0, *weights)):
            outputs, last = TwiceDifferentiable.apply(x, p.h0, *weights)
        else:
            outputs, last = call_torch(x, p.h0, weights, train=False)
    return (outputs.flip(0) if p.variant.reverse else outputs), last


def call_torch(x: Tensor, h0: Tensor, weights: list[Tensor], train: bool) -> tuple[Tensor, Tensor]:
    """Return outputs (T,B,U) and the last state (B,U).

    Args:
        x: (T,B,I). h0: (B,U). weights: (3U,I), (3U,U), then both biases (3U,) or none; gates r, z, n.
        train: whether cuDNN keeps what its gradient needs.
    """
    with _without_copy_warning(x):
        outputs, last = torch.gru(x, h0[None].contiguous(), weights, len(weights) > 2, 1, 0.0, train, False, False)
    return outputs, last[0]


class TwiceDifferentiable(torch.autograd.Function):
    """`call_torch` whose gradient has a gradient: the first is torch's own, a graph of it comes from the reference."""

    @staticmethod
    def forward(ctx, x: Tensor, h0: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        """Run torch's GRU with a graph of its own, kept for `backward`."""
        inner = [t.detach().requires_grad_(t.requires_grad) for t in (x, h0, *weights)]
        with torch.enable_grad():
            ctx.graph = inner, call_torch(inner[0], inner[1], inner[2:], train=True)
        ctx.save_for_backward(x, h0, *weights)
        outputs, last = ctx.graph[1]
        return outputs.detach(), last.detach()

    @staticmethod
    def backward(ctx, d_out: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of all inputs; as a graph where autograd asks for one."""
        saved = ctx.saved_tensors  # an error where an earlier backward pass has freed the graph
        if torch.is_grad_enabled():
            return _from_reference(saved, ctx.needs_input_grad, d_out, d_last)
        inner, results = ctx.graph
        wanted = [t for t in inner if t.requires_grad]
        found = iter(torch.autograd.grad(results, wanted, (d_out, d_last), retain_graph=True, allow_unused=True))
        return tuple(next(found) if t.requires_grad else None for t in inner)


def _from_reference(
    saved: tuple[Tensor, ...], needs: tuple[bool, ...], d_out: Tensor, d_last: Tensor
) -> tuple[Tensor | None, ...]:
    x, h0, w, u, *biases = saved
    bias_x, bias_h = biases or (None, None)
    # Where the arguments of `forward` are among the inputs of a scan.
    places = [Inputs._fields.index(name) for name in ("x", "h0", "w", "u", "bias_x", "bias_h")[: len(saved)]]
    wanted = [place in places and needs[places.index(place)] for place in range(len(Inputs._fields))]
    inputs = Inputs(x, w.t(), bias_x, u.t(), bias_h, h0, None, None, None, None)
    found = differentiable_gradients(Variant(reset_gate_first=True), inputs, Inputs(*wanted), d_out, d_last)
    d_x, d_h0, d_w, d_u, *d_biases = (found[place] for place in places)
    return (d_x, d_h0, *(d if d is None else d.t() for d in (d_w, d_u)), *d_biases)


def _in_torch_order(value: Tensor, p: Problem) -> Tensor:
    if p.variant.reset_gate_first:
        return value
    z, r, n = value.split(p.shape.units, dim=-1)
    return torch.cat((r, z, n), dim=-1)


def _without_autocast(device: str) -> contextlib.AbstractContextManager:
    # The arguments are in autocast's dtype already. Where it is off, its context would cost more than a step.
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else contextlib.nullcontext()


@contextlib.contextmanager
def _without_copy_warning(x: Tensor):
    # The copy costs a step's worth of time at most; the advice to call flatten_parameters() is not for our callers.
    if x.device.type != "cuda":
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
        yield
