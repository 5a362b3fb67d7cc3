"""Read the GRU layers of a Keras file without Keras: arrays and JSON only, nothing in the file is ever executed.

Three layouts: the whole-model or weights-only `.h5` of Keras 2 (attributes `layer_names` and `weight_names`), the
`.weights.h5` of Keras 3 (`layers/<layer>/cell/vars/0..2`), and the `.keras` zip that holds the latter and a config.
A file is untrusted: links out of it, arrays larger than it could hold, and zip paths that climb are refused.

Source: `keras/saving/hdf5_format.py` (v2.9), `keras/src/saving/saving_lib.py` (v3).
"""

from __future__ import annotations

import io
import mmap
import re
import zipfile
from collections.abc import Callable, Sequence
from operator import methodcaller
from pathlib import Path
from typing import IO, Any

import numpy as np

from ...layouts import check_keras_shapes
from .entries import SIDES, StoredLayer, join_halves
from .hdf5 import Source, to_text
from .keras_config import MAX_DEPTH, STACKED, DescribedLayer, DescribedModel
from .keras_old import CUDNN, convert_cudnn, cudnn_config, default_config, is_cudnn
from .untrusted import (
    FAULTS,
    MAX_JSON_BYTES,
    check_file,
    check_heaps,
    list_members,
    naming,
    parse_json,
    read_member,
)

# Columns of a recurrent kernel, in units.
OTHERS = {1: "SimpleRNN", 4: "LSTM"}
# A layer whose weights were never made.
UNBUILT = "not built"
# Where Keras 2.12 to 2.15 keeps what lies under "layers" later.
OLD_LAYERS = "_layer_checkpoint_dependencies"
_CELL = re.compile(r"(gru|lstm|simple_rnn)_cell(_\d+)?")
# A layer of the file, and how it is found in the configuration of the model.
Found = tuple[StoredLayer, Callable[[DescribedModel], DescribedLayer | None]]


def read_entries(path: str | Path) -> list[StoredLayer]:
    """Return the GRU layers of a Keras file, in the file's order; a malformed one carries its `problem`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is truncated, malformed or hostile; the message names it and what is wrong.
        ImportError: h5py is not installed.
    """
    path = check_file(path)
    with naming(path):
        if path.suffix == ".keras" or zipfile.is_zipfile(path):
            return _read_zip(path)
        if path.stat().st_size == 0:
            raise ValueError("the file is empty")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read_h5(file, data, None)


def _read_zip(path: Path) -> list[StoredLayer]:
    with zipfile.ZipFile(path) as archive:
        members = list_members(archive)
        for name in ("config.json", "model.weights.h5"):
            if name not in members:
                raise ValueError(f"the zip member {name!r} is missing")
        config = parse_json(read_member(archive, members["config.json"], MAX_JSON_BYTES), "config.json")
        version = "3"
        if "metadata.json" in members:
            metadata = parse_json(read_member(archive, members["metadata.json"], MAX_JSON_BYTES), "metadata.json")
            version = str(metadata.get("keras_version", version)) if isinstance(metadata, dict) else version
        weights = read_member(archive, members["model.weights.h5"], None)
    return _read_h5(io.BytesIO(weights), weights, (config, version))


def _read_h5(file: IO[bytes], data: bytes | mmap.mmap, described: tuple[Any, str] | None) -> list[StoredLayer]:
    try:
        import h5py
    except ImportError as error:
        raise ImportError("reading Keras files needs h5py: pip install 'tritongru[convert]'") from error
    check_heaps(data)
    with h5py.File(file, "r") as root:
        source = Source(root, data)
        top = source.child(root, "model_weights") if "model_weights" in root else root
        own = next((g for g in (root, top) if "keras_version" in g.attrs), None)
        version = "" if own is None else to_text(source.attribute(own, "keras_version"))
        if described is None and "model_config" in root.attrs:
            text = to_text(source.attribute(root, "model_config"))
            model = parse_json(text, "the attribute 'model_config'")
            described = model, version or _version_of(model)
        if described is not None:
            version = described[1]
        if "layer_names" in top.attrs or "layer_names0" in top.attrs:
            found = _read_legacy(source, top)
        elif "layers" in root or OLD_LAYERS in root or "vars" in root or "cell" in root:
            version = version or "3.0"
            found = _read_v3(source)
        else:
            raise ValueError("it has neither the attribute 'layer_names' nor the group 'layers' of Keras weights")
    if described is not None:
        return join_halves(_describe(found, DescribedModel(described[0]), version))
    for entry, _ in found:
        _assume(entry, version)
    return join_halves([entry for entry, _ in found])


def _version_of(model: Any) -> str:
    """Return the Keras version that a model's JSON tells, "" for none; a module is told from Keras 2.12 on."""
    if not isinstance(model, dict):
        return ""
    told = model.get("keras_version")
    return told if isinstance(told, str) else "2.12" if str(model.get("module", "")).startswith("keras") else ""


def _assume(entry: StoredLayer, version: str) -> None:
    """Give an entry what to assume where the file has no config."""
    # The backward half of a Bidirectional is known by its name.
    if any(name.rpartition("/")[2].startswith("backward_") for name in (entry.name, *entry.aliases)):
        entry.config["go_backwards"] = True
    entry.assumed = default_config(version, entry.arrays[2].ndim == 2 if len(entry.arrays) == 3 else None)


def _describe(found: Sequence[Found], model: DescribedModel, version: str) -> list[StoredLayer]:
    """Return the entries in the order of the model, with what its configuration tells of them."""
    ranks = {layer: rank for rank, layer in enumerate(model.layers)}
    ranked = []
    for entry, find in found:
        layer = find(model)
        # An `.h5` of Keras 2 lists its layers in that order, and names no place.
        rank = ranks[layer] if layer is not None else len(ranks)
        ranked.append((rank if entry.place else 0, entry))
        entry.place = ""
        _describe_one(entry, layer, version)
    return [entry for _, entry in sorted(ranked, key=lambda pair: pair[0])]


def _describe_one(entry: StoredLayer, layer: DescribedLayer | None, version: str) -> None:
    was_cudnn = entry.config.get("class_name") == CUDNN
    if layer is None:
        entry.unknown = "the model's configuration in the file does not tell which of its layers it is"
        return
    name = layer.names[-1] if layer.names else entry.name
    entry.aliases = tuple(dict.fromkeys((*entry.aliases, entry.name)))
    entry.name, entry.path = name, layer.path or name
    entry.side, entry.wrapper = layer.side, layer.wrapper and {**layer.wrapper, "keras_version": version}
    entry.owner = (layer.names[-2], "/".join(layer.names[:-1])) if layer.side else ()
    if layer.reason:
        if entry.problem or layer.kind == STACKED:
            entry.kind = layer.kind
        entry.unknown = layer.reason
        return
    entry.config = {**layer.config, "keras_version": version}
    if layer.config.get("class_name") == CUDNN and not was_cudnn:
        entry.problem = entry.problem or f"its class is {CUDNN}, whose bias has shape (6 * units,)"


def _read_legacy(source: Source, top: Any) -> list[Found]:
    found: list[Found] = []
    for layer in _read_names(source, top, "layer_names"):
        group = source.child(top, layer)
        cells: dict[str, list[str]] = {}
        for name in _read_names(source, group, "weight_names"):
            cells.setdefault(name.rpartition("/")[0], []).append(name)
        recurrent = {cell: names for cell, names in cells.items() if any("recurrent_kernel" in n for n in names)}
        for cell, names in recurrent.items():
            # `layer/forward_gru/gru_cell/kernel:0`: the part before the cell, which Keras writes since 2.3, tells the
            # two directions apart.
            parts = cell.split("/")
            scope = parts[:-1] if _CELL.fullmatch(parts[-1]) else parts
            *outer, inner = ["", "", *scope][-2:]
            name = f"{layer}/{inner}" if len(recurrent) > 1 and inner else layer
            entry = _read_entry(source, name, [lambda n=n, g=group: source.child(g, n) for n in names])
            entry.aliases = (inner, f"{layer}/{inner}") if inner else ()
            # Of a layer within a model within the model, the group has the name of the outer one.
            entry.owner = tuple(dict.fromkeys((outer[0] or layer, layer))) if len(recurrent) > 1 else ()
            entry.side = next((side for side in SIDES.values() if inner.startswith(f"{side}_")), "")
            if inner.startswith("stacked_rnn_cells"):
                entry.kind = STACKED
            found.append((entry, methodcaller("find_by_scope", layer, scope, entry.side)))
    return found


def _read_v3(source: Source) -> list[Found]:
    found: list[Found] = []
    stack: list[tuple[str, str, Any, tuple[str, ...], int]] = [("", "", source.root, (), 0)]
    while stack:
        path, place, group, names, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"the group {path!r} is nested more than {MAX_DEPTH} deep")
        variables = source.child(group, "vars") if "vars" in group else None
        named = variables is not None and "name" in variables.attrs
        name = to_text(source.attribute(variables, "name")) if named else ""
        if path.rpartition("/")[2] == "cell" and variables is not None:
            found.append(_read_cell(source, variables, path, place, names))
            found[-1][0].kind = STACKED if "cells" in group else found[-1][0].kind
        # Keras numbers the layers of one class: gru, gru_1, ... gru_10, which the file sorts as text.
        keys = sorted((key for key in group if key != "vars" and not source.is_array(group, key)), key=_natural)
        places = _number_again(keys) if path.rpartition("/")[2] == OLD_LAYERS else keys
        for key, last in zip(reversed(keys), reversed(places), strict=True):
            inner = f"{place}/{'layers' if last == OLD_LAYERS else last}".strip("/")
            stack.append((f"{path}/{key}".strip("/"), inner, source.child(group, key), (*names, name), depth + 1))
    return found


def _read_cell(source: Source, variables: Any, path: str, place: str, names: tuple[str, ...]) -> Found:
    # A directory listing sorts 10 before 2; a GRU has three.
    keys = sorted(variables, key=lambda k: (len(k), k))
    short = path.rpartition("/")[0].removeprefix("layers/") or "gru"
    entry = _read_entry(source, names[-1] or short, [lambda k=k: source.child(variables, k) for k in keys])
    if not keys:
        entry.kind = UNBUILT
    entry.aliases, entry.place = (short,), place.rpartition("/")[0]
    around = [name for name in names[1:] if name]
    entry.path = "/".join(around) if names[-1] else short
    owner, _, last = short.rpartition("/")
    entry.side = SIDES.get(last, "")
    if entry.side:
        entry.owner = tuple(name for name in (names[-2], owner or "bidirectional") if name)
    known_as = (names[-2], entry.side) if entry.side else (names[-1], "")
    return entry, methodcaller("find_at_place", entry.place, known_as)


def _number_again(keys: Sequence[str]) -> list[str]:
    """Return sorted places of layers as Keras 3 numbers them.

    Keras 2.12 to 2.15 counts a layer with weights twice, so that gru, gru_2 and gru_4 are what gru, gru_1, gru_2 are.
    """
    counts: dict[str, int] = {}
    numbered = []
    for key in keys:
        base = re.sub(r"_\d+$", "", key)
        counts[base] = counts.get(base, -1) + 1
        numbered.append(f"{base}_{counts[base]}" if counts[base] else base)
    return numbered


def _read_entry(source: Source, name: str, openers: list[Any]) -> StoredLayer:
    # A GRU that is damaged is kept, so that its error can be told.
    entry = StoredLayer(name, [])
    try:
        datasets = [opener() for opener in openers]
        shapes = [tuple(getattr(dataset, "shape", None) or ()) for dataset in datasets]
        if len(shapes) >= 2 and len(shapes[1]) == 2 and shapes[1][0] and not shapes[1][1] % shapes[1][0]:
            entry.kind = OTHERS.get(shapes[1][1] // shapes[1][0], "GRU")
            if entry.kind != "GRU":
                return entry
        if len(shapes) not in (2, 3):
            raise ValueError(f"{len(shapes)} arrays, expected kernel, recurrent_kernel and an optional bias")
        from_cudnn = is_cudnn(shapes)
        check_keras_shapes(shapes[0], shapes[1], shapes[2] if len(shapes) == 3 and not from_cudnn else None)
        entry.arrays = [source.array(dataset) for dataset in datasets]
        if from_cudnn:
            entry.arrays, entry.config = convert_cudnn(*entry.arrays), cudnn_config({})
    except (ValueError, *FAULTS) as error:
        entry.problem = str(error) or type(error).__name__
    return entry


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _read_names(source: Source, group: Any, attribute: str) -> list[str]:
    # HDF5 limits an attribute to 64 KiB, so Keras splits a long list into attribute0, attribute1, ...
    if attribute in group.attrs:
        return _to_names(source.attribute(group, attribute))
    names: list[str] = []
    chunk = 0
    while f"{attribute}{chunk}" in group.attrs:
        names += _to_names(source.attribute(group, f"{attribute}{chunk}"))
        chunk += 1
    if chunk == 0:
        raise ValueError(f"the group {group.name!r} has no attribute {attribute!r}")
    return names


def _to_names(values: Any) -> list[str]:
    return [to_text(name) for name in np.ravel(values)]
