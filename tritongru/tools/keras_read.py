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
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..weights import check_keras_shapes
from .entries import Entry, half_configs, join_halves
from .untrusted import (
    FAULTS,
    MAX_FREE_BYTES,
    MAX_JSON_BYTES,
    MAX_RATIO,
    check_file,
    check_heaps,
    list_members,
    naming,
    parse_json,
    read_member,
)

MAX_DEPTH = 32
SIDES = ("forward", "backward")


def read_entries(path: str | Path) -> list[Entry]:
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
        with path.open("rb") as file:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                check_heaps(data)
            return _read_h5(file, path.stat().st_size, None)


def _read_zip(path: Path) -> list[Entry]:
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
    check_heaps(weights)
    return _read_h5(io.BytesIO(weights), len(weights), (config, version))


def _read_h5(file: IO[bytes], size: int, described: tuple[Any, str] | None) -> list[Entry]:
    try:
        import h5py
    except ImportError as error:
        raise ImportError("reading Keras files needs h5py: pip install 'tritongru[convert]'") from error
    with h5py.File(file, "r") as root:
        if described is None and "model_config" in root.attrs:
            text = _text(root.attrs["model_config"])
            described = parse_json(text, "the attribute 'model_config'"), _text(root.attrs.get("keras_version", "2"))
        top = _child(root, "model_weights") if "model_weights" in root else root
        if "layer_names" in top.attrs or "layer_names0" in top.attrs:
            entries = _read_legacy(top, size)
        elif "layers" in root or "_layer_checkpoint_dependencies" in root or "vars" in root or "cell" in root:
            entries = _read_v3(root, size)
        else:
            raise ValueError("it has neither the attribute 'layer_names' nor the group 'layers' of Keras weights")
    configs = {} if described is None else collect_configs(described[0])
    for entry in entries:
        # The backward half of a Bidirectional is known by its name where no config tells.
        if any(name.rpartition("/")[2].startswith("backward_") for name in (entry.name, *entry.aliases)):
            entry.config = {"go_backwards": True}
        if described is not None:
            known = next((configs[name] for name in (entry.name, *entry.aliases) if name in configs), None)
            if known is not None:
                entry.config = {**known, "keras_version": described[1]}
    model, version = described or ({}, "")
    return join_halves(entries, {name: {**w, "keras_version": version} for name, w in collect_wrappers(model).items()})


def _read_legacy(top: Any, size: int) -> list[Entry]:
    entries = []
    for layer in _read_names(top, "layer_names"):
        group = _child(top, layer)
        cells: dict[str, list[str]] = {}
        for name in _read_names(group, "weight_names"):
            cells.setdefault(name.rpartition("/")[0], []).append(name)
        recurrent = {cell: names for cell, names in cells.items() if any("recurrent_kernel" in n for n in names)}
        for cell, names in recurrent.items():
            # `layer/forward_gru/gru_cell/kernel:0`: the part before the cell tells the two directions apart.
            *outer, inner, _ = ["", "", *cell.split("/")][-3:]
            name = f"{layer}/{inner}" if len(recurrent) > 1 and inner else layer
            entry = _read_entry(name, [lambda n=n, g=group: _child(g, n) for n in names], size)
            if entry is not None:
                entry.aliases = (inner,) if inner else ()
                # Of a layer within a model within the model, the group has the name of the outer one.
                entry.owner = tuple(dict.fromkeys((outer[0] or layer, layer))) if len(recurrent) > 1 else ()
                entry.side = next((side for side in SIDES if inner.startswith(f"{side}_")), "")
                entries.append(entry)
    return entries


def _read_v3(root: Any, size: int) -> list[Entry]:
    entries = []
    stack: list[tuple[str, Any, tuple[str, ...], int]] = [("", root, (), 0)]
    while stack:
        path, group, names, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"the group {path!r} is nested more than {MAX_DEPTH} deep")
        own = _child(group, "vars").attrs.get("name") if "vars" in group else None
        name = _text(own) if own is not None else ""
        if path.rpartition("/")[2] == "cell" and "vars" in group:
            variables = _child(group, "vars")
            # A directory listing sorts 10 before 2; a GRU has three.
            keys = sorted(variables, key=lambda k: (len(k), k))
            short = path.rpartition("/")[0].removeprefix("layers/") or "gru"
            entry = _read_entry(names[-1] or short, [lambda k=k, v=variables: _child(v, k) for k in keys], size)
            if entry is not None:
                entry.aliases = (short,)
                owner, _, last = short.rpartition("/")
                entry.side = last.removesuffix("_layer")
                if entry.side in SIDES:
                    entry.owner = tuple(name for name in (names[-2], owner or "bidirectional") if name)
                entries.append(entry)
        # Keras numbers the layers of one class: gru, gru_1, ... gru_10, which the file sorts as text.
        for key in sorted(group, key=_natural, reverse=True):
            if key != "vars" and not _is_dataset(group, key):
                stack.append((f"{path}/{key}".strip("/"), _child(group, key), (*names, name), depth + 1))
    return entries


def _read_entry(name: str, openers: list[Any], size: int) -> Entry | None:
    # None: another kind of recurrent layer. A GRU that is damaged is kept, so that its error can be told.
    entry = Entry(name, [])
    try:
        datasets = [opener() for opener in openers]
        shapes = [tuple(getattr(dataset, "shape", None) or ()) for dataset in datasets]
        if len(shapes) >= 2 and len(shapes[1]) == 2 and shapes[1][1] in (shapes[1][0], 4 * shapes[1][0]):
            return None
        if len(shapes) not in (2, 3):
            raise ValueError(f"{len(shapes)} arrays, expected kernel, recurrent_kernel and an optional bias")
        check_keras_shapes(shapes[0], shapes[1], shapes[2] if len(shapes) == 3 else None)
        entry.arrays = [_read_array(dataset, size) for dataset in datasets]
    except (ValueError, *FAULTS) as error:
        entry.problem = str(error) or type(error).__name__
    return entry


def _read_array(dataset: Any, size: int) -> np.ndarray:
    if dataset.dtype.kind != "f" or dataset.dtype.itemsize > 8:
        raise ValueError(f"the array {dataset.name!r} has dtype {dataset.dtype}, expected a float of at most 64 bits")
    if dataset.is_virtual or dataset.external:
        raise ValueError(f"the array {dataset.name!r} keeps its values in another file")
    if dataset.nbytes > MAX_FREE_BYTES + MAX_RATIO * size:
        raise ValueError(f"the array {dataset.name!r} claims {dataset.nbytes} bytes in a file of {size}")
    return np.asarray(dataset[()], dtype=dataset.dtype.newbyteorder("="))


def _child(group: Any, path: str) -> Any:
    # Step by step, so that no link on the way leads out of the file or round in a circle.
    import h5py

    for part in path.strip("/").split("/"):
        if not isinstance(group, h5py.Group):
            raise ValueError(f"{group.name!r} is an array, expected a group on the way to {path!r}")
        link = group.get(part, getlink=True)
        if link is None:
            raise ValueError(f"{group.name.rstrip('/')}/{part} is missing")
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{group.name.rstrip('/')}/{part} is a link, which a Keras file has not")
        group = group[part]
    return group


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _is_dataset(group: Any, key: str) -> bool:
    import h5py

    return isinstance(_child(group, key), h5py.Dataset)


def _read_names(group: Any, attribute: str) -> list[str]:
    # HDF5 limits an attribute to 64 KiB, so Keras splits a long list into attribute0, attribute1, ...
    if attribute in group.attrs:
        return [_text(name) for name in np.ravel(group.attrs[attribute])]
    names: list[str] = []
    chunk = 0
    while f"{attribute}{chunk}" in group.attrs:
        names += [_text(name) for name in np.ravel(group.attrs[f"{attribute}{chunk}"])]
        chunk += 1
    if chunk == 0:
        raise ValueError(f"the group {group.name!r} has no attribute {attribute!r}")
    return names


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def collect_configs(model: Any) -> dict[str, dict[str, Any]]:
    """Return the config of every GRU in a model's config, by name; both halves of a Bidirectional by theirs."""
    found: dict[str, dict[str, Any]] = {}
    for kind, config in _walk(model):
        if kind == "GRU":
            found.setdefault(str(config.get("name", "gru")), config)
    halves: dict[str, dict[str, Any]] = {}
    for wrapper in collect_wrappers(model).values():
        for half in half_configs(wrapper):
            halves[str(half["name"])] = half
    return {**halves, **found}


def collect_wrappers(model: Any) -> dict[str, dict[str, Any]]:
    """Return the config of every Bidirectional of a GRU in a model's config, by name."""
    found: dict[str, dict[str, Any]] = {}
    for kind, config in _walk(model):
        inner = config.get("layer")
        if kind == "Bidirectional" and isinstance(inner, dict) and inner.get("class_name") == "GRU":
            if isinstance(inner.get("config"), dict):
                found.setdefault(str(config.get("name", "bidirectional")), config)
    return found


def _walk(model: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield (class name, config) of everything in a model's config that has both."""
    stack = [model]
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            stack.extend(node)
        elif isinstance(node, dict):
            if isinstance(node.get("config"), dict):
                yield node.get("class_name"), node["config"]
            stack.extend(node.values())
