"""A layer of this package from what a file holds, and what a file is to hold of a layer."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ...keras import GRU, Bidirectional
from .entries import FILL_HINT, StoredLayer
from .keras_old import default_reset_after

_PARAMETERS = inspect.signature(GRU.__init__).parameters
_NOT_CONFIG = {"self", "units", "input_size", "backend", "device", "dtype", "options"}
_FROM_CONFIG = {*_PARAMETERS, "name", "trainable"} - _NOT_CONFIG
# `backend` is a choice of the machine that runs a layer, not of the layer.
_LEFT_OUT = ("batch_input_shape", "backend")
# What Keras has not. The norms and heads have weights of other shapes too, which no file holds here.
_OURS = ("zoneout", "gradient_clip")


def build_layer(entry: StoredLayer) -> GRU | Bidirectional:
    """Return the layer of an entry; ValueError where its config and its arrays contradict each other."""
    return _build_gru(entry) if entry.halves is None else _build_bidirectional(entry, *entry.halves)


def _build_bidirectional(entry: StoredLayer, forward: StoredLayer, backward: StoredLayer) -> Bidirectional:
    # A file of weights alone says nothing of the directions.
    for half, backwards in ((forward, False), (backward, True)):
        half.config = {"go_backwards": backwards, **half.config}
    layer, other = _build_gru(forward), _build_gru(backward)
    layer.name = layer.name.removeprefix("forward_")
    configs = [{**each.get_config(), "name": "", "go_backwards": False} for each in (layer, other)]
    result = Bidirectional(
        layer,
        entry.config.get("merge_mode", "concat"),
        other if configs[0] != configs[1] else None,
        name=str(entry.config.get("name", entry.name)),
        trainable=entry.config.get("trainable") is not False,
    )
    result.set_weights([*forward.arrays, *backward.arrays])
    return result


def _build_gru(entry: StoredLayer) -> GRU:
    arrays, config = entry.arrays, {**entry.assumed, **entry.config}
    units = arrays[1].shape[0]
    implied: dict[str, Any] = {"units": units, "use_bias": len(arrays) == 3}
    told = _told_reset_after(entry)
    implied["reset_after"] = entry.assumed.get("reset_after") if told is None else told
    if implied["reset_after"] is None:
        raise ValueError(
            f"the layer {entry.name!r} has no bias, and neither its config nor a `keras_version` says whether its "
            "`reset_after` is True or False: load the weights into a layer that does"
        )
    for key, value in implied.items():
        if key in entry.config and config[key] != value:
            raise ValueError(f"the layer {entry.name!r}: its config says {key}={config[key]!r}, its arrays {value!r}")
    arguments: dict[str, Any] = {"name": entry.name}
    for key in _FROM_CONFIG & config.keys():
        default = _PARAMETERS[key].default if key in _PARAMETERS else None
        if isinstance(default, bool) and not isinstance(config[key], bool):
            raise ValueError(f"the layer {entry.name!r}: its config says {key}={config[key]!r}, expected true or false")
        arguments[key] = config[key]
    for key in ("activation", "recurrent_activation"):
        if key in arguments:
            arguments[key] = _activation(arguments[key], str(config.get("keras_version", "2")))
    dtype = config.get("dtype")
    if dtype is None:
        dtype = arrays[0].dtype if isinstance(arrays[0], Tensor) else str(arrays[0].dtype)
    for key in arguments:
        if key.endswith("_initializer"):
            arguments[key] = _initializer(arguments[key])
    try:
        layer = GRU(**(arguments | implied), input_size=arrays[0].shape[0], dtype=dtype)
    except ValueError as error:
        raise ValueError(f"the layer {entry.name!r}: {error}; {FILL_HINT}") from error
    layer.set_weights(arrays)
    return layer


def _initializer(value: Any) -> Any:
    """Return the config of an initializer of Keras 3 as one of Keras 2: with a number for a generator of seeds."""
    inner = value.get("config") if isinstance(value, dict) else None
    if isinstance(inner, dict) and isinstance(inner.get("seed"), dict):
        seed = inner["seed"]
        if seed.get("class_name") == "SeedGenerator" and isinstance(seed.get("config"), dict):
            return {**value, "config": {**inner, "seed": seed["config"].get("seed")}}
    return value


def _activation(value: Any, version: str) -> Any:
    if isinstance(value, dict):
        value = value["config"] if isinstance(value.get("config"), str) else value.get("class_name")
    # Keras 3 changed the formula under the same name.
    return F.hardsigmoid if value == "hard_sigmoid" and version.startswith("3") else value


def fill_layer(entry: StoredLayer, layer: GRU | Bidirectional) -> None:
    """Replace the weights of `layer` by those of an entry; ValueError where they do not fit."""
    halves = list(entry.halves) if entry.halves is not None else [entry]
    targets = [layer] if isinstance(layer, GRU) else [layer.forward_layer, layer.backward_layer]
    if len(halves) != len(targets):
        kinds = ["GRU" if len(group) == 1 else "Bidirectional" for group in (halves, targets)]
        raise ValueError(f"the layer {entry.name!r} is a {kinds[0]}, `layer` a {kinds[1]}")
    for half, target in zip(halves, targets, strict=True):
        if half.arrays[1].shape[0] != target.units:
            raise ValueError(f"the layer {half.name!r} has units={half.arrays[1].shape[0]}, `layer` {target.units}")
        if (told := _told_reset_after(half)) not in (None, target.reset_after):
            raise ValueError(f"the layer {half.name!r} has reset_after={told}, `layer` {target.reset_after}")
    layer.build(halves[0].arrays[0].shape[0])
    layer.set_weights([array for half in halves for array in half.arrays])


def _told_reset_after(entry: StoredLayer) -> bool | None:
    """Return the `reset_after` of a layer, None where neither its bias nor its config tells it."""
    if len(entry.arrays) == 3:
        return len(entry.arrays[2].shape) == 2
    version = str(entry.config.get("keras_version", ""))
    return entry.config["reset_after"] if "reset_after" in entry.config else default_reset_after(version)


def describe_layer(layer: Any) -> StoredLayer:
    """Return what a file is to hold of a built layer.

    Raises:
        TypeError: no layer of this package. ValueError: it is not built.
    """
    if not isinstance(layer, (GRU, Bidirectional)):
        raise TypeError(f"`layer` must be a tritongru.GRU or Bidirectional, got {type(layer).__name__}")
    if not layer.built:
        raise ValueError(f"the layer {layer.name} is not built: it has no weights yet")
    if isinstance(layer, GRU) and layer.heads > 1:
        raise ValueError(
            f"the layer {layer.name} has heads={layer.heads}, which no file can hold here: save its state_dict"
        )
    if isinstance(layer, GRU) and layer.layer_norm:
        raise ValueError(
            f"the layer {layer.name} has layer_norm={layer.layer_norm!r}, which no file can hold here: "
            "save its state_dict"
        )
    if isinstance(layer, GRU):
        return StoredLayer(layer.name, layer.get_weights(), _clean(layer.get_config()))
    halves = describe_layer(layer.forward_layer), describe_layer(layer.backward_layer)
    config = layer.get_config()
    for key in ("layer", "backward_layer"):
        if key in config:
            config[key] = {**config[key], "config": _clean(config[key]["config"])}
    return StoredLayer(layer.name, [], config, halves=halves)


def describe_layers(layers: GRU | Bidirectional | Sequence[GRU | Bidirectional]) -> list[StoredLayer]:
    """Return the entries of one layer or of a stack of them, first to last."""
    return [describe_layer(layer) for layer in (layers if isinstance(layers, Sequence) else [layers])]


def in_keras_terms(entry: StoredLayer, warns: bool) -> StoredLayer:
    """Return an entry with a configuration that Keras reads.

    Args:
        warns: whether to warn of what is left out because it changes the training alone.

    Raises:
        ValueError: it has what Keras cannot compute.
    """
    for half in entry.halves or (entry,):
        if half.config.get("zoneout"):
            raise ValueError(
                f"the layer {half.name} has zoneout={half.config['zoneout']}, which no file of Keras can hold, "
                "nor one of weights alone: set it to 0 first, or save as .safetensors"
            )
        if warns and "gradient_clip" in half.config:
            warnings.warn(
                f"`gradient_clip={half.config['gradient_clip']}` of the layer {half.name} is left out: no file of "
                "Keras can hold it, and it changes the training alone",
                stacklevel=3,
            )
    return _without(entry, _OURS)


def _without(entry: StoredLayer, names: Sequence[str]) -> StoredLayer:
    config = {key: value for key, value in entry.config.items() if key not in names}
    for key in ("layer", "backward_layer"):
        if key in config:
            inner = {name: value for name, value in config[key]["config"].items() if name not in names}
            config[key] = {**config[key], "config": inner}
    halves = entry.halves and tuple(_without(half, names) for half in entry.halves)
    return dataclasses.replace(entry, config=config, halves=halves)


def _clean(config: dict[str, Any]) -> dict[str, Any]:
    config = {key: value for key, value in config.items() if key not in _LEFT_OUT}
    if isinstance(config["dtype"], dict):
        config["dtype"] = config["dtype"]["config"]["name"]
    return _without_arrays(config)


def _without_arrays(value: Any) -> Any:
    """Return a value of a config with lists for the arrays in it, which JSON has not."""
    if isinstance(value, dict):
        return {key: _without_arrays(inner) for key, inner in value.items()}
    return value.tolist() if isinstance(value, (np.ndarray, np.generic, Tensor)) else value
