"""The scan as an ONNX Scan over the steps: every variant that the GRU operator does not name.

The body is one step, z, r = g(gx + gh), n = f(gx_n + r * gh_n), h = z * h + (1 - z) * n, with the reset before and the
mask after it. It carries the state, and with a mask the last output; weights come from outside.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from onnxscript import evaluator, ir
from onnxscript import opset18 as op

_numbers = itertools.count()


class _Body:
    """Nodes of a subgraph, each value named apart from those of every other graph."""

    def __init__(self):
        self.prefix, self.nodes, self.count = f"gru_step_{next(_numbers)}", [], itertools.count()

    def value(self, dtype: ir.DataType, *shape) -> ir.Value:
        """Return a new input."""
        return ir.Value(name=self._name(), type=ir.TensorType(dtype), shape=ir.Shape(shape))

    def add(self, kind: str, *inputs, outputs: int = 1, **attributes) -> Any:
        """Add a node and return its output, or its outputs if there are several."""
        made = [ir.Value(name=self._name()) for _ in range(outputs)]
        attributes = ir.convenience.convert_attributes(attributes)
        self.nodes.append(ir.Node("", kind, inputs, attributes, outputs=made, name=self._name()))
        return made[0] if outputs == 1 else made

    def constant(self, value: float | list[int], dtype: ir.DataType) -> ir.Value:
        """Return a constant."""
        return self.add("Constant", value=ir.tensor(np.array(value, dtype.numpy())))

    def _name(self) -> str:
        return f"{self.prefix}_{next(self.count)}"


def _scaled(kind: str, **attributes) -> Callable:
    return lambda b, x: b.add(kind, x, **attributes)


# Each as in `activations.TABLE`.
ACTIVATIONS: dict[str, Callable[[_Body, ir.Value], ir.Value]] = {
    "linear": _scaled("Identity"),
    "tanh": _scaled("Tanh"),
    "sigmoid": _scaled("Sigmoid"),
    "relu": _scaled("Relu"),
    "hard_sigmoid": _scaled("HardSigmoid", alpha=0.2, beta=0.5),
    "elu": _scaled("Elu"),
    "selu": _scaled("Selu"),
    "softplus": _scaled("Softplus"),
    "softsign": _scaled("Softsign"),
    "exponential": _scaled("Exp"),
    "leaky_relu": _scaled("LeakyRelu", alpha=0.2),
}


def scan_steps(
    x, w, bias_x, u, bias_h, h0, mask, resets, fresh, drop, keep,
    activation: str, recurrent_activation: str, reset_after: bool, zero_output_for_mask: bool, reverse: bool,
    reset_gate_first: bool,
):  # fmt: skip
    """Record the recurrence; see `ops.scan` for the arguments. Returns out (T,B,U) and the last state (B,U)."""
    units, dtype = int(h0.shape[1]), h0.dtype
    gx = x if w is None else op.MatMul(x, w)
    bias_n = None
    if bias_x is not None:
        gx = op.Add(gx, bias_x)
    if bias_h is not None and reset_after:
        none = op.Constant(value=ir.tensor(np.zeros(units, dtype.numpy())))
        bias_n = op.Slice(bias_h, [2 * units], [3 * units])
        gx = op.Add(gx, op.Concat(op.Slice(bias_h, [0], [2 * units]), none, axis=0))
    elif bias_h is not None:
        gx = op.Add(gx, bias_h)
    # Slices and not a Split, so that constant weights fold.
    parts = [op.Slice(u, [start], [start + units], [1]) for start in (0, units, 2 * units)]
    weights = _in_order(parts, reset_gate_first)
    masks = _gate_masks(drop, reset_gate_first)

    b = _Body()
    state = b.value(dtype, None, units)
    shown = None if mask is None else b.value(dtype, None, units)
    sequences, places = [gx], [b.value(dtype, None, 3 * units)]
    for value in (mask, resets):
        if value is not None:
            sequences.append(value)
            places.append(b.value(ir.DataType.BOOL, None))
    if keep is not None:
        sequences.append(keep)
        places.append(b.value(dtype, None, units))
    if fresh is not None and len(fresh.shape) == 3:
        sequences.append(fresh)
        places.append(b.value(dtype, None, units))
    given = iter(places)
    gx_t = next(given)
    valid = None if mask is None else next(given)
    restart = None if resets is None else next(given)
    taken = None if keep is None else next(given)
    start = next(given, fresh)
    h = _restart(b, state, restart, start, dtype)
    new = _advance(
        b, gx_t, h, dtype, weights, masks, taken, bias_n, activation, recurrent_activation, reset_after,
        reset_gate_first,
    )  # fmt: skip
    if valid is None:
        carried = [new]
    else:
        column = b.add("Unsqueeze", valid, b.constant([1], ir.DataType.INT64))
        idle = b.constant(0.0, dtype) if zero_output_for_mask else shown
        carried = [b.add("Where", column, new, h), b.add("Where", column, new, idle)]
    # The state of one step and its output may be one value; a graph's outputs must not be.
    outputs = [*carried, b.add("Identity", carried[-1])]
    inputs = [state, *([] if shown is None else [shown]), *places]
    body = ir.Graph(inputs, outputs, nodes=b.nodes, name=b.prefix, opset_imports={"": 18})
    for value in outputs:
        value.type = ir.TensorType(dtype)
        value.shape = ir.Shape((None, units))

    starts = [h0] if mask is None else [h0, op.Sub(h0, h0)]
    attributes = dict(
        body=body,
        num_scan_inputs=len(sequences),
        scan_input_directions=[int(reverse)] * len(sequences),
        scan_output_directions=[int(reverse)],
    )
    node = ir.Node(
        "", "Scan", [*starts, *sequences], ir.convenience.convert_attributes(attributes), num_outputs=len(starts) + 1
    )
    # onnxscript's own `op.Scan` gives one output only.
    recorder: Any = evaluator.default()
    recorder.nodes.append(node)
    return node.outputs[-1], node.outputs[0]


def _restart(b: _Body, state, restart, start, dtype):
    """The state after the reset: h = reset ? fresh : h."""
    if restart is None:
        return state
    column = b.add("Unsqueeze", restart, b.constant([1], ir.DataType.INT64))
    return b.add("Where", column, b.constant(0.0, dtype) if start is None else start, state)


def _advance(
    b: _Body,
    gx,
    h,
    dtype,
    weights,
    masks,
    taken,
    bias_n,
    activation,
    recurrent_activation,
    reset_after,
    reset_gate_first,
):
    """One step from h (B,U): the new state (B,U)."""
    f, g = ACTIVATIONS[activation], ACTIVATIONS[recurrent_activation]
    x_z, x_r, x_n = _in_order(b.add("Split", gx, outputs=3, num_outputs=3, axis=1), reset_gate_first)
    h_z, h_r, h_n = (h if m is None else b.add("Mul", h, m) for m in masks)
    u_z, u_r, u_n = weights
    z = g(b, b.add("Add", x_z, b.add("MatMul", h_z, u_z)))
    r = g(b, b.add("Add", x_r, b.add("MatMul", h_r, u_r)))
    if reset_after:
        gh = b.add("MatMul", h_n, u_n)
        gh = gh if bias_n is None else b.add("Add", gh, bias_n)
        n = f(b, b.add("Add", x_n, b.add("Mul", r, gh)))
    else:
        n = f(b, b.add("Add", x_n, b.add("MatMul", b.add("Mul", r, h_n), u_n)))
    rest = b.add("Sub", b.constant(1.0, dtype), z)
    if taken is not None:
        rest = b.add("Mul", taken, rest)
        z = b.add("Sub", b.constant(1.0, dtype), rest)
    return b.add("Add", b.add("Mul", z, h), b.add("Mul", rest, n))


def _gate_masks(drop, reset_gate_first: bool):
    """Return the recurrent dropout masks (B,U) of z, r, h, each None without."""
    if drop is None:
        return None, None, None
    if drop.shape[0] == 1:
        return (op.Squeeze(drop, [0]),) * 3
    return _in_order([op.Squeeze(op.Slice(drop, [i], [i + 1], [0]), [0]) for i in range(3)], reset_gate_first)


def _in_order(parts, reset_gate_first: bool):
    first, second, n = parts
    return (second, first, n) if reset_gate_first else (first, second, n)
