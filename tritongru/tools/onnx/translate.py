"""This package's operators in ONNX: the GRU operator where its meaning fits, else a Scan over the steps.

Each function here is called by `torch.onnx.export` in place of one operator of an exported model, with ONNX values for
tensors and Python values for the rest, and records ONNX nodes. Imported only where onnxscript is installed.

Source: ONNX operator specification, GRU (opset 14) and Scan (opset 16); linear_before_reset is `reset_after`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnxscript import ir
from onnxscript import opset18 as op

from .scan_node import scan_steps

# What ONNX calls an activation, and its alpha and beta. The others have no name in an ONNX GRU.
ACTIVATIONS: dict[str, tuple[str, tuple[float, ...], tuple[float, ...]]] = {
    "linear": ("Affine", (1.0,), (0.0,)),
    "tanh": ("Tanh", (), ()),
    "sigmoid": ("Sigmoid", (), ()),
    "relu": ("Relu", (), ()),
    "hard_sigmoid": ("HardSigmoid", (0.2,), (0.5,)),
    "elu": ("Elu", (1.0,), ()),
    "softplus": ("Softplus", (), ()),
    "softsign": ("Softsign", (), ()),
    "leaky_relu": ("LeakyRelu", (0.2,), ()),
}
_LENGTHS = "tritongru.lengths"
_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def translate_valid_steps(lengths, steps):
    """Record `tritongru::valid_steps`: (T,B), true where t < lengths[b]."""
    steps = _integer(steps)
    place = op.Range(_integer(0), steps, _integer(1))
    lengths = op.Cast(lengths, to=ir.DataType.INT64.value)
    mask: Any = op.Less(op.Unsqueeze(place, [1]), op.Unsqueeze(lengths, [0]))
    mask.meta[_LENGTHS] = op.Cast(op.Clip(lengths, _integer(0), steps), to=ir.DataType.INT32.value)
    return mask


def translate_scan(
    x,
    w,
    bias_x,
    u,
    bias_h,
    h0,
    mask,
    resets,
    fresh,
    drop,
    keep,
    scale,
    activation: str,
    recurrent_activation: str,
    reset_after: bool,
    zero_output_for_mask: bool,
    reverse: bool,
    reset_gate_first: bool,
    gradient_clip: float | None,
    layer_norm: str | None,
    epsilon: float,
    precision: str,
    save: str,
    backend: str,
):
    """Record `tritongru::scan`; see `ops.scan` for the arguments.

    Returns:
        out (T,B,U), last state (B,U), and empty values for what only a backward pass reads.
    """
    if layer_norm is not None:
        raise ValueError(f"layer_norm={layer_norm!r} has no ONNX form here")
    units, dtype = int(u.shape[0]), x.dtype
    lengths = None if mask is None else _find_lengths(mask)
    plain = w is not None and resets is None and drop is None and keep is None and (mask is None or lengths is not None)
    named = activation in ACTIVATIONS and recurrent_activation in ACTIVATIONS
    # The state is kept in float32, as everywhere in this package; ONNX has no GRU in bfloat16 at all.
    x, w, bias_x, u, bias_h, h0, fresh, drop, keep = (
        _from_half(value, dtype) for value in (x, w, bias_x, u, bias_h, h0, fresh, drop, keep)
    )
    # onnxruntime has no GRU in float64, and the operator no exponential or selu.
    if plain and named and dtype != ir.DataType.DOUBLE:
        w, u, bias = _gru_weights(w, u, bias_x, bias_h, units, reset_gate_first)
        names = (ACTIVATIONS[recurrent_activation], ACTIVATIONS[activation])
        both: Any = op.GRU(
            x, w, u, bias, lengths, op.Unsqueeze(h0, [0]),
            hidden_size=units, direction="reverse" if reverse else "forward", linear_before_reset=int(reset_after),
            activations=[name for name, _, _ in names],
            activation_alpha=[value for _, alpha, _ in names for value in alpha] or None,
            activation_beta=[value for _, _, beta in names for value in beta] or None,
        )  # fmt: skip
        out, last = op.Squeeze(both[0], [1]), op.Squeeze(both[1], [0])
        if mask is not None:
            out, last = _finish_rows(out, last, h0, mask, lengths, reverse, zero_output_for_mask)
    else:
        out, last = scan_steps(
            x, w, bias_x, u, bias_h, h0, mask, resets, fresh, drop, keep,
            activation, recurrent_activation, reset_after, zero_output_for_mask, reverse, reset_gate_first,
        )  # fmt: skip
    if dtype in _HALF:
        out, last = op.Cast(out, to=dtype.value), op.Cast(last, to=dtype.value)
    # A value each, though nothing reads them: the exporter names every output.
    unused = [op.Constant(value=ir.tensor(np.zeros(0, np.float32))) for _ in range(2)]
    return out, last, *unused


def _find_lengths(mask: Any) -> ir.Value | None:
    """Return the lengths (B,) int32 that the mask (T,B) was made of, None for any other mask."""
    turned = False
    while (node := mask.producer()) is not None and node.op_type in ("Transpose", "Identity"):
        turned ^= node.op_type == "Transpose"
        mask = node.inputs[0]
    return None if turned else mask.meta.get(_LENGTHS)


def _gru_weights(w, u, bias_x, bias_h, units: int, reset_gate_first: bool):
    """Return W (1,3U,I), R (1,3U,U) and B (1,6U) or None, gates z, r, h."""

    # One Gather and not a Split, so that constant weights fold.
    rows = np.arange(3 * units).reshape(3, units)[[1, 0, 2]].ravel()

    def in_order(value):
        return op.Gather(value, op.Constant(value=ir.tensor(rows)), axis=0) if reset_gate_first else value

    w, u = (op.Unsqueeze(in_order(op.Transpose(value, perm=[1, 0])), [0]) for value in (w, u))
    if bias_x is None and bias_h is None:
        return w, u, None
    zeros = op.Constant(value=ir.tensor(np.zeros(3 * units, np.float32)))
    pair = (zeros if value is None else in_order(value) for value in (bias_x, bias_h))
    return w, u, op.Unsqueeze(op.Concat(*pair, axis=0), [0])


def _finish_rows(out, last, h0, mask, lengths, reverse: bool, zero_output_for_mask: bool):
    """Return outputs and last state as this package defines them in the padding, and for a length of zero."""
    empty = op.Unsqueeze(op.Equal(lengths, op.Constant(value=ir.tensor(np.int32(0)))), [1])
    # ONNX leaves open what the state of an empty row is; onnxruntime gives zeros.
    state = op.Where(empty, h0, last)
    # Going backwards, the padding comes before the first valid step, and is zero in either meaning.
    if not reverse and not zero_output_for_mask:
        nothing = op.Constant(value=ir.tensor(np.float32(0)))
        out = op.Where(op.Unsqueeze(mask, [2]), out, op.Where(empty, nothing, last))
    return out, state


def _from_half(value, dtype: ir.DataType):
    if value is None or dtype not in _HALF:
        return value
    # onnxruntime 1.32 crashes while it loads a Scan beside a transposed float16 value that is cast to float32 at once
    # (its NchwcTransformer); the way over float64 is exact, and goes around that.
    wide: Any = op.Cast(op.Cast(value, to=ir.DataType.DOUBLE.value), to=ir.DataType.FLOAT.value)
    wide.shape, wide.type = value.shape, ir.TensorType(ir.DataType.FLOAT)
    return wide


def _integer(value):
    return op.Constant(value=ir.tensor(np.int64(value))) if isinstance(value, int) else value
