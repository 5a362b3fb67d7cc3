"""Convert GRU layers between Keras files, torch modules and safetensors; neither Keras nor pickle ever runs.

Keras .h5, .weights.h5, .keras  <->  tritongru.GRU  <->  torch.nn.GRU, .pt, .pth, .safetensors; .ckpt and .bin are read
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...keras import GRU, Bidirectional
from ...layouts import keras_to_torch, torch_to_keras
from . import keras_write
from .entries import knows_order, list_names, select_entry, select_layers
from .keras_read import read_entries
from .layers import build_layer, describe_layers, fill_layer, in_keras_terms
from .state_files import READ_SUFFIXES, SUFFIXES, keras_tensors, read_states, write_states
from .untrusted import naming


def from_torch(module: nn.RNNBase, **options: Any) -> GRU | Bidirectional | list[GRU | Bidirectional]:
    """Return a `torch.nn.GRU` as a layer, or as the list of its layers where it has several.

    Args:
        module: `nn.GRU` or `tritongru.compat.GRU`; its dtype and device are kept, `batch_first=False` is `time_major`.
        options: further arguments of `tritongru.GRU`; `return_sequences=True` unless given. `zoneout` and
            `gradient_clip` of a `compat.GRU` are kept.

    Returns:
        `GRU`, or `Bidirectional` with `merge_mode="concat"` if `bidirectional=True`; the weights are copies.

    Raises:
        TypeError: `module` is not a GRU.

    >>> from_torch(nn.GRU(3, 4)).kernel.shape
    torch.Size([3, 12])
    """
    if not isinstance(module, nn.RNNBase) or module.mode != "GRU":
        raise TypeError(f"`module` must be a torch.nn.GRU, got {type(module).__name__}")
    if getattr(module, "heads", 1) > 1:
        raise ValueError(f"`module` has heads={module.heads}, which `from_torch` does not convert")
    if getattr(module, "layer_norm", None):
        raise ValueError(f"`module` has layer_norm={module.layer_norm!r}, which `from_torch` does not convert")
    if module.dropout and module.num_layers > 1:
        warnings.warn(f"`dropout={module.dropout}` between the layers of `module` is left out: no single layer has it")
    if getattr(module, "recurrent_dropout", 0):
        warnings.warn(
            f"`recurrent_dropout={module.recurrent_dropout}` of `module` is left out: it is drawn in another way"
        )
    layers: list[GRU | Bidirectional] = []
    for number in range(module.num_layers):
        halves = []
        for suffix in ("", "_reverse") if module.bidirectional else ("",):
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if module.bias else 2]
            weights = torch_to_keras(*(getattr(module, f"{name}_l{number}{suffix}").detach() for name in names))
            halves.append([weight for weight in weights if weight is not None])
        kernel = halves[0][0]
        arguments = {"return_sequences": True, "time_major": not module.batch_first, "use_bias": module.bias}
        kept = {name: getattr(module, name) for name in ("zoneout", "gradient_clip") if hasattr(module, name)}
        arguments |= kept | options
        layer = GRU(
            module.hidden_size, input_size=kernel.shape[0], device=kernel.device, dtype=kernel.dtype, **arguments
        )
        result = Bidirectional(layer, merge_mode="concat") if module.bidirectional else layer
        result.set_weights([weight for half in halves for weight in half])
        layers.append(result.to(kernel.device))
    return layers if len(layers) > 1 else layers[0]


def to_torch(layers: GRU | Bidirectional | Sequence[GRU | Bidirectional]) -> nn.GRU:
    """Return one layer, or a stack of layers of equal size, as a `torch.nn.GRU` with copies of the weights.

    What changes the training alone is left out with a warning: dropout, recurrent dropout, a bound of the gradient.

    Args:
        layers: built layers, first to last; `time_major=False` is `batch_first=True`.

    Raises:
        ValueError: a layer that `torch.nn.GRU` cannot compute (another activation, `reset_after=False`,
            `go_backwards=True`, zoneout, a norm, heads, sizes that do not stack), or one that is not built.
        TypeError: something that is not such a layer.
    """
    module = _to_torch(layers)
    for layer in layers if isinstance(layers, Sequence) else [layers]:
        for half in _directions(layer):
            for name, off in (("dropout", 0), ("recurrent_dropout", 0), ("gradient_clip", None)):
                if (value := getattr(half, name)) != off:
                    warnings.warn(f"`{name}={value}` of {half.name} is left out: torch.nn.GRU has none", stacklevel=2)
    return module


def _to_torch(layers: GRU | Bidirectional | Sequence[GRU | Bidirectional]) -> nn.GRU:
    stack = list(layers) if isinstance(layers, Sequence) else [layers]
    if not stack:
        raise ValueError("`layers` is empty")
    pairs = [_directions(layer) for layer in stack]
    for pair in pairs:
        for half in pair:
            _check_torch_can(half)
    first = pairs[0][0]
    width = first.units * len(pairs[0])
    for number, pair in enumerate(pairs):
        expected = first.input_size if number == 0 else width
        if len(pair) != len(pairs[0]):
            raise ValueError(f"`layers[{number}]` and `layers[0]` differ in being bidirectional")
        for half in pair:
            if (half.units, half.input_size, half.use_bias) != (first.units, expected, first.use_bias):
                raise ValueError(
                    f"`layers[{number}]` has units={half.units}, input_size={half.input_size}, "
                    f"use_bias={half.use_bias}; torch.nn.GRU needs units={first.units}, "
                    f"input_size={expected}, use_bias={first.use_bias}"
                )
    module = nn.GRU(
        first.input_size, first.units, len(pairs), first.use_bias, not first.time_major, 0.0, len(pairs[0]) == 2,
        device=first.kernel.device, dtype=first.kernel.dtype,
    )  # fmt: skip
    with torch.no_grad():
        for number, pair in enumerate(pairs):
            for suffix, half in zip(("", "_reverse"), pair, strict=False):
                weights = keras_to_torch(half.kernel, half.recurrent_kernel, half.bias)
                for name, weight in zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), weights, strict=True):
                    if weight is not None:
                        getattr(module, f"{name}_l{number}{suffix}").copy_(weight)
    return module


def _directions(layer: Any) -> list[GRU]:
    if isinstance(layer, Bidirectional):
        if layer.merge_mode != "concat":
            raise ValueError(f"`merge_mode={layer.merge_mode!r}` of {layer.name}: torch.nn.GRU only concatenates")
        return [layer.forward_layer, layer.backward_layer]
    if not isinstance(layer, GRU):
        raise TypeError(f"`layers` must hold tritongru.GRU or Bidirectional, got {type(layer).__name__}")
    if layer.go_backwards:
        raise ValueError(f"`go_backwards=True` of {layer.name}: torch.nn.GRU runs backwards only beside a forward half")
    return [layer]


def _check_torch_can(layer: GRU) -> None:
    if not layer.built:
        raise ValueError(f"the layer {layer.name} is not built: it has no weights yet")
    if layer.heads > 1:
        raise ValueError(f"heads={layer.heads} of {layer.name}: torch.nn.GRU has one")
    if layer.layer_norm:
        raise ValueError(f"layer_norm={layer.layer_norm!r} of {layer.name}: torch.nn.GRU has none")
    if layer.zoneout:
        raise ValueError(f"zoneout={layer.zoneout} of {layer.name}: torch.nn.GRU has none: set it to 0 first")
    config = layer.get_config()
    for name, needed in (("activation", "tanh"), ("recurrent_activation", "sigmoid"), ("reset_after", True)):
        if config[name] != needed:
            raise ValueError(f"`{name}={config[name]!r}` of {layer.name}: torch.nn.GRU has {needed!r} alone")


def load_keras(path: str | Path, layer: str | GRU | Bidirectional | None = None) -> GRU | Bidirectional:
    """Return a GRU or Bidirectional layer of a Keras `.h5`, `.weights.h5` or `.keras` file.

    Args:
        path: the file. Without a config in it, the layer has Keras's defaults, and the sizes and bias of the arrays.
        layer: the layer's name in the file (also of one half of a Bidirectional) or its path, as "encoder/gru"; None
            where the file has one layer; or a `GRU` or `Bidirectional` whose weights are to be replaced, whose
            configuration in the file need not be known here.

    Returns:
        The layer, `layer` itself where it is one.

    Raises:
        FileNotFoundError: no such file. TypeError: `layer` is something else.
        ValueError: a malformed or hostile file, no such layer, several without a name or of one name, a configuration
            that is not known here, or weights that do not fit.
    """
    if not isinstance(layer, (str, GRU, Bidirectional, type(None))):
        raise TypeError(f"`layer` must be a name, a tritongru.GRU or a Bidirectional, got {type(layer).__name__}")
    entries = read_entries(path)
    with naming(Path(path)):
        if layer is None or isinstance(layer, str):
            return build_layer(select_entry(entries, layer))
        halves = [half for entry in entries for half in entry.halves or ()]
        named = any(layer.name in (entry.path, entry.name, *entry.aliases) for entry in [*entries, *halves])
        fill_layer(select_entry(entries, layer.name if named else None, fills=True), layer)
        return layer


def save_keras(layer: GRU | Bidirectional | Sequence[GRU | Bidirectional], path: str | Path) -> None:
    """Save a built layer, or a stack of them, as a Keras Sequential model: `.h5`, `.weights.h5` or `.keras`.

    A `gradient_clip` is left out, with a warning where the file holds configurations.

    Raises:
        ValueError: another suffix, a layer that is not built, or a configuration that the format cannot hold.
    """
    has_configs = not Path(path).name.endswith(".weights.h5")
    keras_write.write_entries(path, [in_keras_terms(entry, has_configs) for entry in describe_layers(layer)])


def load_layers(path: str | Path, layer: str | None = None) -> list[GRU | Bidirectional]:
    """Return all layers of a file of any known format, or the one that `layer` names.

    Of a checkpoint that holds its `state_dict` under a key, `layer` may also be that key, for all layers there, or
    begin with it: "ema", "ema.gru_l0". Without one the first of "state_dict", "model_state_dict", "model" and "net" is
    taken, or the only one there is.

    Returns:
        The layers in the order of the model. A `.weights.h5` does not tell it among layers of several classes: they are
        in the order of its groups, with a warning.

    Raises:
        FileNotFoundError, ValueError: as `load_keras`; the message lists what the file has.
    """
    layers, unknown_order = _load_layers(path, layer)
    if unknown_order:
        warnings.warn(unknown_order, stacklevel=2)
    return layers


def _load_layers(path: str | Path, layer: str | None) -> tuple[list[GRU | Bidirectional], str]:
    """Return the layers, and why their order in the model is not known, "" where it is."""
    if Path(path).suffix in READ_SUFFIXES:
        entries, layer = read_states(path, layer)
    else:
        entries = read_entries(path)
    with naming(Path(path)):
        if layer is not None:
            return [build_layer(select_entry(entries, layer))], ""
        layers = [build_layer(entry) for entry in select_layers(entries)]
    if knows_order(entries):
        return layers, ""
    names = list_names([entry for entry in entries if entry.kind == "GRU"])
    return layers, f"{path}: a file of weights alone does not tell the order of its layers {names} in the model"


def save_layers(
    layers: GRU | Bidirectional | Sequence[GRU | Bidirectional], path: str | Path, layout: str | None = None
) -> None:
    """Save built layers in the format that the suffix of `path` names.

    Args:
        layout: of `.pt`, `.pth`, `.safetensors`: "torch" (`torch.nn.GRU`'s names, the default of the first two) or
            "keras" (`tritongru.GRU`'s names, with the configuration in safetensors' metadata, the default there).
    """
    suffix = Path(path).suffix
    written = (*SUFFIXES, *keras_write.SUFFIXES)
    if suffix not in written:
        raise ValueError(f"{path}: the suffix {suffix!r} names no format that is written: {', '.join(written)}")
    if layout not in (None, "torch", "keras"):
        raise ValueError(f"`layout` must be 'torch' or 'keras', got {layout!r}")
    if suffix not in SUFFIXES:
        if layout is not None:
            raise ValueError(f"`layout={layout!r}` does not apply to {suffix!r}: only to {', '.join(SUFFIXES)}")
        save_keras(layers, path)
    elif (layout or ("keras" if suffix == ".safetensors" else "torch")) == "torch":
        write_states(path, _to_torch(layers).state_dict())
    else:
        stack = list(layers) if isinstance(layers, Sequence) else [layers]
        entries = describe_layers(stack)
        if suffix != ".safetensors":  # which holds configurations
            entries = [in_keras_terms(entry, warns=False) for entry in entries]
        names = [entry.name if i == 0 else f"{entry.name}_{i}" for i, entry in enumerate(entries)]
        names = names if len(stack) > 1 else [""]
        configs = {name: entry.config for name, entry in zip(names, entries, strict=True)}
        write_states(path, keras_tensors(names, stack), configs)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `python -m tritongru convert`."""
    parser.add_argument("source", help="a file to read: .h5, .weights.h5, .keras, .pt, .pth, .ckpt, .bin, .safetensors")
    parser.add_argument("target", help="the file to write, in the format its suffix names")
    parser.add_argument(
        "--layer",
        metavar="NAME",
        help="take this GRU layer of the source, or this key of a checkpoint; default: all layers",
    )
    parser.add_argument("--layout", choices=("torch", "keras"), help="names of the tensors in .pt, .pth, .safetensors")


def main(args: argparse.Namespace) -> int:
    """Convert `args.source` to `args.target`; return 0, or 1 after a message on what went wrong."""
    try:
        layers, unknown_order = _load_layers(args.source, args.layer)
        if unknown_order:
            raise ValueError(f"{unknown_order}: name one with --layer, or take a .keras or .h5 file of the model")
        save_layers(layers, args.target, args.layout)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"convert: {error}", file=sys.stderr)
        return 1
    for layer in layers:
        half = layer.forward_layer if isinstance(layer, Bidirectional) else layer
        kind = f", merge_mode={layer.merge_mode!r}" if isinstance(layer, Bidirectional) else ""
        print(f"{layer.name}: input_size={half.input_size}, units={half.units}, reset_after={half.reset_after}{kind}")
    print(f"wrote {args.target}")
    return 0
