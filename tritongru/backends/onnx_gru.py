"""ONNX's GRU operator in the place of torch's own, while `torch.onnx.export` records a model.

Exporters that know nothing of this package pass no translation table; what is recorded here needs none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..call.problem import Problem, Variant


def can_record() -> bool:
    """Return whether this torch can name an ONNX operator in what it exports; it can from 2.8 on."""
    return hasattr(torch.onnx, "ops") and hasattr(torch.onnx.ops, "symbolic_multi_out")


def record_gru(problem: Problem) -> tuple[Tensor, Tensor]:
    """Record a call that torch's own GRU can compute: outputs (T,B,U) at the input's time index, last state (B,U).

    The state is kept in float32, as everywhere in this package; onnxruntime has no GRU in half precision.

    Source: ONNX operator specification, GRU (opset 14); gates z, r, h; linear_before_reset is `reset_after`.
    """
    a, variant = problem
    assert a.w is not None
    dtype, units = a.x.dtype, a.u.shape[0]
    x, h0 = a.x.float(), a.h0.float()
    w, u = (_in_onnx_order(value.t().float(), variant)[None] for value in (a.w, a.u))
    bias = None
    if a.bias_x is not None or a.bias_h is not None:
        zero = x.new_zeros(3 * units)
        pair = (zero if b is None else _in_onnx_order(b.float(), variant) for b in (a.bias_x, a.bias_h))
        bias = torch.cat(tuple(pair))[None]
    time, batch = x.shape[0], x.shape[1]
    outputs, last = torch.onnx.ops.symbolic_multi_out(
        "GRU",
        (x, w, u, bias, None, h0[None]),
        dict(hidden_size=units, direction="reverse" if variant.reverse else "forward", linear_before_reset=1),
        dtypes=(torch.float32, torch.float32),
        shapes=((time, 1, batch, units), (1, batch, units)),
    )
    return outputs.squeeze(1).to(dtype), last.squeeze(0).to(dtype)


def _in_onnx_order(value: Tensor, variant: Variant) -> Tensor:
    if not variant.reset_gate_first:
        return value
    # Slices and not a Split, so that constant weights fold.
    units = value.shape[0] // 3
    return torch.cat((value[units : 2 * units], value[:units], value[2 * units :]))
