"""GRU layers as ONNX: a file of one layer, and the table with which `torch.onnx.export` writes a model that has some.

A layer becomes the standard ONNX GRU operator, `sequence_lens` and `linear_before_reset` included, where its meaning
fits: tanh, sigmoid, relu, hard_sigmoid, elu, softplus, softsign, leaky_relu or linear, in float32 or half precision, no
resets, no recurrent dropout, and `lengths` as the only mask. Everything else becomes an ONNX Scan over the steps. Both
have dynamic B and T. Needs onnx and onnxscript; onnxruntime runs the result.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ... import activations
from ...backends import operators as ops  # noqa: F401  (ops registers the operator)
from ...call.padding import valid_steps
from ...compat import GRU as TorchGRU
from ...keras import GRU, Bidirectional
from ..files import replace_file

LEAST_OPSET = 18  # what torch.onnx and the translations here are written in


def translation_table() -> dict[Callable, Callable]:
    """Return what `torch.onnx.export(..., dynamo=True, custom_translation_table=...)` needs for this package's layers.

    Raises:
        ImportError: onnxscript is not installed.
    """
    from . import translate as onnx_translate

    return {
        torch.ops.tritongru.scan.default: onnx_translate.translate_scan,
        torch.ops.tritongru.valid_steps.default: onnx_translate.translate_valid_steps,
    }


def export(
    layer: nn.Module,
    path: str | Path,
    *,
    lengths: bool = False,
    initial_state: bool = False,
    opset_version: int = 18,
) -> None:
    """Write one layer as an ONNX file that takes any B and T from 1 on.

    Args:
        layer: a `compat.GRU`, `tritongru.GRU` or `tritongru.Bidirectional`, built, without active dropout.
        path: the file; it is replaced in one step.
        lengths: whether the graph has an input "lengths" (B,) int64.
        initial_state: whether it has an input "initial_state", (L*D,B,U) for `compat.GRU` and (B,U) for
            `tritongru.GRU`, or two for `Bidirectional`, "initial_state_forward" and "initial_state_backward".
        opset_version: of the ONNX operators, from 18 on.

    The sequence is the input "x", with the axes the layer takes. The outputs are "output" and "h_n" for `compat.GRU`,
    else "output" (or "output_forward" and "output_backward"), followed by the states the layer returns.

    Raises:
        TypeError: another layer. ValueError: a layer that is not built, is stateful, would draw dropout masks, or
            has an activation that only the reference runs; an `opset_version` that cannot be written.
        ImportError: onnx or onnxscript is not installed.
    """
    _check_layer(layer)
    if isinstance(opset_version, bool) or not isinstance(opset_version, int) or opset_version < LEAST_OPSET:
        raise ValueError(f"`opset_version` must be an integer from {LEAST_OPSET} on, got {opset_version!r}")
    call = _Call(layer, lengths, initial_state)
    arguments, axes = call.example()
    training, backends = layer.training, [each.backend for each in _layers_of(layer)]
    # A named backend is this package's operator, which the table translates; on "auto" torch translates its own GRU.
    for each in _layers_of(layer):
        each.backend = "eager"
    try:
        program = torch.onnx.export(
            call.eval(), tuple(arguments.values()), dynamo=True, custom_translation_table=translation_table(),
            input_names=list(arguments), output_names=call.output_names(), dynamic_shapes=(tuple(axes),),
            opset_version=opset_version, verbose=False,
        )  # fmt: skip
    finally:
        layer.train(training)
        for each, backend in zip(_layers_of(layer), backends, strict=True):
            each.backend = backend
    assert program is not None
    if (written := program.model.opset_imports[""]) != opset_version:
        raise ValueError(f"`opset_version`={opset_version} cannot be written here: torch.onnx gave {written}")
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    from onnxscript import optimizer

    # Weights in the operator's own order, and no traces of this computer's paths.
    optimizer.fold_constants(program.model, input_size_limit=1 << 40, output_size_limit=1 << 40)
    optimizer.remove_unused_nodes(program.model)
    ClearMetadataAndDocStringPass()(program.model)
    replace_file(path, program.model_proto.SerializeToString())


class _Call(nn.Module):
    """A layer called with the graph's inputs, in their order."""

    def __init__(self, layer: nn.Module, lengths: bool, initial_state: bool):
        super().__init__()
        self.layer, self.lengths, self.initial_state = layer, lengths, initial_state

    def forward(self, *arguments: Tensor):
        x, *rest = arguments
        lengths = rest.pop(0) if self.lengths else None
        if isinstance(self.layer, TorchGRU):
            return self.layer(x, *rest, lengths=lengths)
        first = self.layer.forward_layer if isinstance(self.layer, Bidirectional) else self.layer
        mask = None
        if lengths is not None:
            mask = valid_steps(lengths, x.shape[first._time_axis])
            mask = mask if first.time_major else mask.t()
        return self.layer(x, mask=mask, initial_state=rest or None)

    def example(self) -> tuple[dict[str, Tensor], list[dict]]:
        """Return inputs by name, and the dynamic axes of each."""
        B, T = torch.export.Dim("B"), torch.export.Dim("T")
        layer, rows, steps = self.layer, 2, 3
        if isinstance(layer, TorchGRU):
            weight, time_major, features = layer.weight_ih_l0, not layer.batch_first, layer.input_size
            depth = layer.num_layers * (2 if layer.bidirectional else 1)
            states, shape, axes = ["initial_state"], (depth, rows, layer.hidden_size), {1: B}
            dtype = weight.dtype
        else:
            first = layer.forward_layer if isinstance(layer, Bidirectional) else layer
            assert isinstance(first, GRU)
            weight, time_major, features = first.kernel, first.time_major, first.kernel.shape[0]
            both = isinstance(layer, Bidirectional)
            states = ["initial_state_forward", "initial_state_backward"] if both else ["initial_state"]
            shape, axes, dtype = (rows, first.units), {0: B}, first.compute_dtype
        values = {
            "x": weight.new_zeros((steps, rows, features) if time_major else (rows, steps, features), dtype=dtype)
        }
        dynamic = [{0: T, 1: B} if time_major else {0: B, 1: T}]
        if self.lengths:
            values["lengths"] = torch.tensor([steps, 1], device=weight.device)
            dynamic.append({0: B})
        if self.initial_state:
            for name in states:
                values[name] = weight.new_zeros(shape, dtype=dtype)
                dynamic.append(axes)
        return values, dynamic

    def output_names(self) -> list[str]:
        """Return a name for each output."""
        layer = self.layer
        if isinstance(layer, TorchGRU):
            return ["output", "h_n"]
        if isinstance(layer, GRU):
            return ["output", "state"] if layer.return_state else ["output"]
        assert isinstance(layer, Bidirectional)
        outputs = ["output"] if layer.merge_mode else ["output_forward", "output_backward"]
        return outputs + (["state_forward", "state_backward"] if layer.return_state else [])


def _layers_of(layer: nn.Module) -> list[nn.Module]:
    """Return the layers that choose a backend."""
    return [layer.forward_layer, layer.backward_layer] if isinstance(layer, Bidirectional) else [layer]


def _check_layer(layer: nn.Module) -> None:
    """Raise unless `export` can write `layer`."""
    for part in layer.modules():
        if getattr(part, "layer_norm", None):
            raise ValueError(f"`layer` has layer_norm={part.layer_norm!r}, which has no ONNX form here")
    if isinstance(layer, TorchGRU):
        if layer.training and (layer.recurrent_dropout or layer.zoneout or (layer.dropout and layer.num_layers > 1)):
            raise ValueError("`layer` is in training mode and has dropout: call `layer.eval()` first")
        return
    for each in _layers_of(layer):
        if not isinstance(each, GRU):
            raise TypeError(
                "`layer` must be a tritongru.GRU, tritongru.Bidirectional or tritongru.compat.GRU, got "
                f"{type(each).__name__}; for a model that contains some, see `translation_table`"
            )
        if not each.built:
            raise ValueError(f"`layer` {each.name} has no weights yet: give `input_size`, or call it once")
        if each.stateful:
            raise ValueError(f"`layer` {each.name} has stateful=True: a file keeps no state; use `initial_state`")
        if each.training and (each.dropout or each.recurrent_dropout or each.zoneout):
            raise ValueError(f"`layer` {each.name} is in training mode and has dropout: call `eval()` first")
        for name in ("activation", "recurrent_activation"):
            known = activations.resolve(getattr(each, name), name)
            if known.derivative is None:
                raise ValueError(
                    f"`layer` {each.name} has {name}={known.name!r}, which runs as a loop of a fixed length"
                )
