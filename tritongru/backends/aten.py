"""torch's own GRU as a backend: one call of `torch.gru`, which on NVIDIA devices is cuDNN's.

cuDNN has its own conditions, which this module takes upon itself: it keeps what a gradient needs only in training mode,
it has no second derivative, and it wants all weights in one piece, which torch copies together with a warning.
"""

from __future__ import annotations

import contextlib
import warnings

import torch
from torch import Tensor

from ..call.check import Signature
from ..call.problem import Inputs, Problem, Variant
from ..call.recording import is_exporting_to_onnx, is_recorded
from .gradients import differentiable_gradients
from .onnx_gru import can_record, record_gru
from .precision import product_precision
from .reasons import reasons_against_cells, reasons_against_transforms


def reasons_against(s: Signature) -> list[str]:
    """torch's own GRU runs one variant only."""
    v, reasons = s.variant, reasons_against_transforms(s) + reasons_against_cells(s.has_zoneout, s.variant)
    if s.composed:
        reasons.append("a torch.func transform (grad, vmap) is active")
    if v.activation != "tanh":
        reasons.append(f"activation={v.activation!r} is not 'tanh'")
    if v.recurrent_activation != "sigmoid":
        reasons.append(f"recurrent_activation={v.recurrent_activation!r} is not 'sigmoid'")
    if not v.reset_after:
        reasons.append("reset_after=False")
    if s.has_mask:
        reasons.append("mask or lengths given")
    if s.has_resets:
        reasons.append("resets given")
    if not s.has_kernel:
        reasons.append("gates given: torch's GRU multiplies its input by a kernel")
    if s.input_dropouts > 1:
        reasons.append(f"input_dropout has {s.input_dropouts} masks")
    if s.recurrent_dropouts:
        reasons.append("recurrent_dropout given")
    if s.recompute:
        reasons.append("recompute=True")
    if s.precision not in ("ieee", "tf32"):
        reasons.append(f"precision={s.precision!r}")
    if s.tracing and is_exporting_to_onnx() and can_record():
        if s.dtype == torch.float64:
            reasons.append("dtype=torch.float64: onnxruntime has no such GRU")
    elif s.tracing and not is_recorded():
        reasons.append("torch.compile and torch.export cannot trace torch's GRU")
    elif s.shape is not None and 0 in (s.shape.time, s.shape.batch):
        reasons.append(f"an empty input: T={s.shape.time}, B={s.shape.batch}")
    return reasons


def run_aten(problem: Problem, precision: str, wants_gradients: bool) -> tuple[Tensor, Tensor]:
    """Return outputs (T,B,U) at the time index of the input, and the last state (B,U)."""
    if is_exporting_to_onnx():
        return record_gru(problem)
    a, v = problem
    assert a.w is not None
    weights = [_in_torch_order(a.w, v).t(), _in_torch_order(a.u, v).t()]
    if a.bias_x is not None or a.bias_h is not None:
        zero = a.x.new_zeros(a.u.shape[1])
        weights += [zero if b is None else _in_torch_order(b, v) for b in (a.bias_x, a.bias_h)]
    x = a.x.flip(0) if v.reverse else a.x
    with product_precision(a.x, precision), _without_autocast(a.x.device.type):
        if is_recorded():
            # One operator, and the same whether or not gradients are on: the trace is for both.
            outputs, last = call_torch(x, a.h0, weights, train=True)
        elif a.x.device.type == "cuda" and wants_gradients:
            outputs, last = TwiceDifferentiable.apply(x, a.h0, *weights)
        else:
            outputs, last = call_torch(x, a.h0, weights, train=False)
    return (outputs.flip(0) if v.reverse else outputs), last


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
    def as_inputs(x, h0, w, u, bias_x=None, bias_h=None) -> Inputs:
        return Inputs(x, w, bias_x, u, bias_h, h0)

    x, h0, w, u, *biases = saved
    inputs, wanted = as_inputs(x, h0, w.t(), u.t(), *biases), as_inputs(*needs)
    d = differentiable_gradients(Variant(reset_gate_first=True), inputs, wanted, d_out, d_last)
    d_weights = (gradient if gradient is None else gradient.t() for gradient in (d.w, d.u))
    return (d.x, d.h0, *d_weights, d.bias_x, d.bias_h)[: len(saved)]


def _in_torch_order(value: Tensor, v: Variant) -> Tensor:
    if v.reset_gate_first:
        return value
    z, r, n = value.chunk(3, dim=-1)
    return torch.cat((r, z, n), dim=-1)


def _without_autocast(device: str) -> contextlib.AbstractContextManager:
    # The arguments are in autocast's dtype already. Where it is off, its context would cost more than a step.
    # The meta device, on which only shapes are worked out, knows no autocast.
    on = device != "meta" and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else contextlib.nullcontext()


@contextlib.contextmanager
def _without_copy_warning(x: Tensor):
    # The copy costs a step's worth of time at most; the advice to call flatten_parameters() is not for our callers.
    if x.device.type != "cuda":
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
        yield
