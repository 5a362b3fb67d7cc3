"""Write GRU layers as Keras files without Keras: a Sequential model of them, in the three layouts of `keras_read`.

Every file is written beside its target and moved into place when it is whole.

Source: `keras/saving/hdf5_format.py` (v2.9), `keras/src/saving/saving_lib.py` (v3).
"""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F

from ..files import replace_file
from .entries import StoredLayer, half_configs

# What a reader takes the configs to mean: `hard_sigmoid` changed its formula in Keras 3.
H5_VERSION = "2.9.0"
ZIP_VERSION = "3.0.0"
SUFFIXES = (".keras", ".weights.h5", ".h5", ".hdf5")


def write_entries(path: str | Path, entries: Sequence[StoredLayer]) -> None:
    """Write layers, first to last, as `.weights.h5`, `.keras`, or whole-model `.h5` by the suffix of `path`.

    Raises:
        ValueError: no layer, another suffix, or a config that the format cannot hold.
        ImportError: h5py is not installed.
    """
    path = Path(path)
    entries = _with_unique_names(entries)
    if path.name.endswith(".weights.h5"):
        replace_file(path, _v3_bytes(entries))
    elif path.suffix == ".keras":
        replace_file(path, lambda temporary: _write_zip(temporary, entries))
    elif path.suffix in (".h5", ".hdf5"):
        replace_file(path, _legacy_bytes(entries))
    else:
        raise ValueError(f"{path}: the suffix {path.suffix!r} names no Keras format: {', '.join(SUFFIXES)}")


def _with_unique_names(entries: Sequence[StoredLayer]) -> list[StoredLayer]:
    if not entries:
        raise ValueError("`layers` is empty: there is no layer to save")
    unique: dict[str, StoredLayer] = {}
    for entry in map(_without_slashes, entries):
        base = entry.name or "gru"
        name, count = base, 0
        while name in unique:
            count += 1
            name = f"{base}_{count}"
        unique[name] = dataclasses.replace(entry, name=name)
    return list(unique.values())


def _without_slashes(entry: StoredLayer) -> StoredLayer:
    """Return an entry with names that Keras 3 accepts, those of its halves too."""
    config = dict(entry.config)
    for key in ("layer", "backward_layer"):
        if key in config:
            inner = config[key]["config"]
            config[key] = {**config[key], "config": {**inner, "name": str(inner["name"]).replace("/", "_")}}
    halves = entry.halves and (_without_slashes(entry.halves[0]), _without_slashes(entry.halves[1]))
    return dataclasses.replace(entry, name=entry.name.replace("/", "_"), config=config, halves=halves)


def _halves(entry: StoredLayer) -> tuple[StoredLayer, ...]:
    return entry.halves or (entry,)


def _width(entry: StoredLayer) -> int:
    return _halves(entry)[0].arrays[0].shape[0]


def _h5_bytes(fill: Callable[[Any], None]) -> bytes:
    try:
        import h5py
    except ImportError as error:
        raise ImportError("writing Keras files needs h5py: pip install 'tritongru[convert]'") from error
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as root:
        fill(root)
    return buffer.getvalue()


def _v3_bytes(entries: Sequence[StoredLayer]) -> bytes:
    def fill(root: Any) -> None:
        root.create_group("vars").attrs["name"] = "sequential"
        counts: dict[str, int] = {}
        for entry in entries:
            # Keras 3 finds a layer by its class and its number among its kind, not by its name.
            kind = "gru" if entry.halves is None else "bidirectional"
            number = counts[kind] = counts.get(kind, -1) + 1
            path = f"layers/{kind}_{number}" if number else f"layers/{kind}"
            paths = [path] if entry.halves is None else [f"{path}/forward_layer", f"{path}/backward_layer"]
            root.create_group(f"{path}/vars").attrs["name"] = entry.name
            for half, place in zip(_halves(entry), paths, strict=True):
                root.require_group(f"{place}/vars").attrs["name"] = half.name
                variables = root.create_group(f"{place}/cell/vars")
                variables.attrs["name"] = "gru_cell"
                for index, array in enumerate(half.arrays):
                    variables.create_dataset(str(index), data=array)

    return _h5_bytes(fill)


def _legacy_bytes(entries: Sequence[StoredLayer]) -> bytes:
    layers = [_h5_layer(entry) for entry in entries]
    width = _width(entries[0])
    first = {"batch_input_shape": [None, None, width], "dtype": "float32", "sparse": False, "ragged": False}
    model = {
        "class_name": "Sequential",
        "config": {
            "name": "sequential",
            "layers": [{"class_name": "InputLayer", "config": {**first, "name": "input_1"}}, *layers],
        },
    }
    described = _to_json(model)

    def fill(root: Any) -> None:
        weights = root.create_group("model_weights")
        for group in (root, weights):
            group.attrs["keras_version"] = H5_VERSION
            group.attrs["backend"] = "tensorflow"
        root.attrs["model_config"] = described
        weights.attrs["layer_names"] = np.array([entry.name.encode() for entry in entries])
        for entry in entries:
            group = weights.create_group(entry.name)
            weights_of = {}
            for half in _halves(entry):
                place = entry.name if entry.halves is None else f"{entry.name}/{half.name}"
                for kind, array in zip(("kernel", "recurrent_kernel", "bias"), half.arrays, strict=False):
                    weights_of[f"{place}/gru_cell/{kind}:0"] = array
            group.attrs["weight_names"] = np.array([name.encode() for name in weights_of])
            for name, array in weights_of.items():
                group.create_dataset(name, data=array)
        weights.create_group("top_level_model_weights").attrs["weight_names"] = np.array([], dtype="S1")

    return _h5_bytes(fill)


def _write_zip(path: Path, entries: Sequence[StoredLayer]) -> None:
    shape = [None, None, _width(entries[0])]
    layers = [_v3_layer("InputLayer", {"batch_shape": shape, "dtype": "float32", "name": "input_layer"}, None)]
    for entry in entries:
        layers.append(_v3_entry(entry))
    model = {
        "module": "keras",
        "class_name": "Sequential",
        "config": {"name": "sequential", "trainable": True, "layers": layers, "build_input_shape": shape},
        "registered_name": None,
        "build_config": {"input_shape": shape},
    }
    metadata = {"keras_version": ZIP_VERSION, "date_saved": datetime.now(timezone.utc).strftime("%Y-%m-%d@%H:%M:%S")}
    described, weights = _to_json(model), _v3_bytes(entries)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps(metadata))
        archive.writestr("config.json", described)
        archive.writestr("model.weights.h5", weights)


def _v3_layer(class_name: str, config: dict[str, Any], built: list[int | None] | None) -> dict[str, Any]:
    layer = {"module": "keras.layers", "class_name": class_name, "config": config, "registered_name": None}
    return layer if built is None else layer | {"build_config": {"input_shape": built}}


def _v3_entry(entry: StoredLayer) -> dict[str, Any]:
    built: list[int | None] = [None, None, _width(entry)]
    if entry.halves is None:
        return _v3_layer("GRU", _v3_config(entry.config) | {"name": entry.name}, built)
    config = dict(entry.config) | {"name": entry.name}
    # Keras 3 would run a backward layer that is not described backwards, whatever the forward layer does.
    for key, half in zip(("layer", "backward_layer"), half_configs(entry.config), strict=True):
        config[key] = _v3_layer("GRU", _v3_config(half), None)
    return _v3_layer("Bidirectional", config, built)


def _h5_layer(entry: StoredLayer) -> dict[str, Any]:
    if entry.halves is None:
        return {"class_name": "GRU", "config": _h5_config(entry.config) | {"name": entry.name}}
    config = dict(entry.config) | {"name": entry.name}
    for key, half in (("layer", config["layer"]["config"]), ("backward_layer", half_configs(config)[1])):
        # Keras 3 finds a layer within a layer by its module, for which Keras 2 does not look.
        config[key] = _v3_layer("GRU", _h5_config(half), None)
    return {"class_name": "Bidirectional", "config": config}


def _h5_config(config: dict[str, Any]) -> dict[str, Any]:
    # Keras 3 also reads this format, but refuses the argument; False is its default.
    return {key: value for key, value in config.items() if key != "time_major" or value}


def _v3_config(config: dict[str, Any]) -> dict[str, Any]:
    config = dict(config)
    if config.pop("time_major", False):
        raise ValueError("`time_major=True` cannot be saved as .keras: Keras 3 has no such argument; save as .h5")
    for name in ("activation", "recurrent_activation"):
        if config.get(name) == "hard_sigmoid":
            raise ValueError(
                f"`{name}='hard_sigmoid'` cannot be saved as .keras: Keras 3 gives that name to relu6(x + 3) / 6; "
                "save as .h5"
            )
        if config.get(name) is F.hardsigmoid:
            config[name] = "hard_sigmoid"
    for name, value in config.items():
        kind = name.rpartition("_")[2]
        if isinstance(value, dict) and kind in ("initializer", "regularizer", "constraint"):
            config[name] = {"module": f"keras.{kind}s", **value, "registered_name": None}
    return config


def _to_json(model: dict[str, Any]) -> str:
    try:
        return json.dumps(model, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the layer's configuration cannot be written as JSON: {error}") from error
