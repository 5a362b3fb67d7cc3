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
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..weights import check_keras_shapes
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


@dataclass
class Entry:
    """One GRU found in a file.

    Attributes:
        name: the layer's name in the model, or its path where the file names none.
        arrays: kernel (I,3U), recurrent_kernel (U,3U) and, if there is one, bias (2,3U) or (3U,).
        config: the layer's Keras config, empty where the file has none.
        aliases: other names the layer answers to.
    """

    name: str
    arrays: list[Any]
    config: dict[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    problem: str = ""


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
    return entries


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
            inner = cell.split("/")[-2:-1]
            name = f"{layer}/{inner[0]}" if len(recurrent) > 1 and inner else layer
            entry = _read_entry(name, [lambda n=n, g=group: _child(g, n) for n in names], size)
            if entry is not None:
                entry.aliases = tuple(inner)
                entries.append(entry)
    return entries


def _read_v3(root: Any, size: int) -> list[Entry]:
    entries = []
    stack: list[tuple[str, Any, str, int]] = [("", root, "", 0)]
    while stack:
        path, group, owner, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"the group {path!r} is nested more than {MAX_DEPTH} deep")
        own = _child(group, "vars").attrs.get("name") if "vars" in group else None
        name = _text(own) if own is not None else ""
        if path.rpartition("/")[2] == "cell" and "vars" in group:
            variables = _child(group, "vars")
            # A directory listing sorts 10 before 2; a GRU has three.
            keys = sorted(variables, key=lambda k: (len(k), k))
            short = path.rpartition("/")[0].removeprefix("layers/") or "gru"
            entry = _read_entry(owner or short, [lambda k=k, v=variables: _child(v, k) for k in keys], size)
            if entry is not None:
                entry.aliases = (short,)
                entries.append(entry)
        # Keras numbers the layers of one class: gru, gru_1, ... gru_10, which the file sorts as text.
        for key in sorted(group, key=_natural, reverse=True):
            if key != "vars" and not _is_dataset(group, key):
                stack.append((f"{path}/{key}".strip("/"), _child(group, key), name or owner, depth + 1))
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
    halves: dict[str, dict[str, Any]] = {}
    stack = [model]
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            stack.extend(node)
            continue
        if not isinstance(node, dict):
            continue
        kind, config = node.get("class_name"), node.get("config")
        if kind == "GRU" and isinstance(config, dict):
            found.setdefault(str(config.get("name", "gru")), config)
        elif kind == "Bidirectional" and isinstance(config, dict) and isinstance(config.get("layer"), dict):
            inner = config["layer"].get("config")
            if isinstance(inner, dict) and config["layer"].get("class_name") == "GRU":
                bare = str(inner.get("name", "gru")).removeprefix("forward_")
                halves[f"forward_{bare}"] = inner
                halves[f"backward_{bare}"] = {**inner, "go_backwards": not inner.get("go_backwards")}
        stack.extend(node.values())
    return {**halves, **found}
