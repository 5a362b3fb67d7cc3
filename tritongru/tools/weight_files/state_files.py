"""Read and write a torch `state_dict` (`.pt`, `.pth`) and safetensors: tensors only, no pickled object is ever built.

Two layouts of the tensors, each under an optional prefix: `kernel, recurrent_kernel, bias` as `tritongru.GRU` holds
them, and `weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0, ...` as `torch.nn.GRU` does, without `_l0` as
`torch.nn.GRUCell` does. A checkpoint may hold the `state_dict` under a key of its own, as Lightning's (`.ckpt`) do.

Source: `torch.nn.GRU`; the safetensors format keeps the layers' configs in its metadata under "tritongru".
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...layouts import check_keras_shapes, torch_to_keras
from ..files import replace_file
from .entries import SIDES, StoredLayer, join_halves
from .untrusted import MAX_FREE_BYTES, MAX_RATIO, check_file, naming

SUFFIXES = (".pt", ".pth", ".safetensors")
READ_SUFFIXES = (*SUFFIXES, ".ckpt", ".bin")
# Where a checkpoint keeps what was trained; of several, the first.
USUAL_KEYS = ("", "state_dict", "model_state_dict", "model", "net")
MAX_DEPTH = 4
CELL = -1  # in the place of a layer's number
_TORCH_KEY = re.compile(
    r"(?:(.*)\.)?(weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)(?:_l(\d{1,4})(_reverse)?)?", re.DOTALL
)
_KERAS_KEY = re.compile(r"(?:(.*)\.)?(kernel|recurrent_kernel|bias)", re.DOTALL)


def read_states(path: str | Path, layer: str | None = None) -> tuple[list[StoredLayer], str | None]:
    """Return the recurrent layers of a torch or safetensors file in order; a malformed one carries its `problem`.

    Args:
        layer: the name of a layer; with a key of the checkpoint before it, or such a key alone, for the `state_dict`
            there.

    Returns:
        the layers of one `state_dict`, and `layer` without the key, None where nothing is left of it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is truncated, malformed or hostile; the message names it and what is wrong.
        ImportError: safetensors is not installed.
    """
    path = check_file(path)
    with naming(path):
        tree, configs = _read_safetensors(path) if path.suffix == ".safetensors" else (_read_torch(path), {})
        tensors, layer = _select_states(tree, layer)
        limit = MAX_FREE_BYTES + MAX_RATIO * path.stat().st_size
        for name, tensor in tensors.items():
            # A stride of zero lets a small file claim any size.
            if tensor.numel() * tensor.element_size() > limit:
                raise ValueError(f"the tensor {name!r} claims shape {tuple(tensor.shape)} in a small file")
        return collect_entries(tensors, configs), layer


def _select_states(tree: Mapping[Any, Any], layer: str | None) -> tuple[dict[str, Tensor], str | None]:
    """Return the tensors of the one `state_dict` of a checkpoint that is meant, and what is left of `layer`."""
    found = dict(_find_states(tree))
    for key in sorted(filter(None, found), key=len, reverse=True):
        if layer is not None and (layer == key or layer.startswith(f"{key}.")):
            return found[key], layer[len(key) + 1 :] or None
    usual = [key for key in USUAL_KEYS if key in found] or list(found)
    if len(found) > 1 and usual[0] not in USUAL_KEYS:
        keys = ", ".join(repr(key) for key in found)
        raise ValueError(
            f"`layer` must name one of the state_dicts {keys} of the file, or a layer of one: "
            f"`layer={usual[0]!r}`, `layer={usual[0] + '.gru_l0'!r}`"
        )
    if found:
        return found[usual[0]], layer
    keys = ", ".join(repr(key) for key in list(tree)[:8]) + (", ..." if len(tree) > 8 else "")
    raise ValueError(f"there is no GRU layer in the file; its keys are: {keys or 'none'}")


def _find_states(tree: Mapping[Any, Any]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield (path, tensors) of each mapping in a checkpoint that holds weights of recurrent layers."""
    # Each once: a mapping may hold itself.
    seen, queue = {id(tree)}, deque([("", tree, 0)])
    while queue:
        path, tree, depth = queue.popleft()
        tensors = {name: value for name, value in tree.items() if isinstance(name, str) and isinstance(value, Tensor)}
        if any(_TORCH_KEY.fullmatch(name) or name.rpartition(".")[2] == "recurrent_kernel" for name in tensors):
            yield path, tensors
        for name, value in tree.items():
            if isinstance(name, str) and isinstance(value, Mapping) and depth < MAX_DEPTH and id(value) not in seen:
                seen.add(id(value))
                queue.append((f"{path}.{name}" if path else name, value, depth + 1))


def _read_torch(path: Path) -> Mapping[Any, Any]:
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            claimed = sum(info.file_size for info in archive.infolist())
        if claimed > MAX_FREE_BYTES + MAX_RATIO * size:
            raise ValueError(f"the file of {size} bytes claims to unpack to {claimed}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "Unsupported" in line), str(error).splitlines()[0])
        raise ValueError(
            f"it is not a state_dict of tensors alone, and nothing else in it is built: {reason.strip()} "
            "(where you trust the file, load it and save its state_dict by itself)"
        ) from error
    if not isinstance(state, Mapping):
        raise ValueError(f"it holds a {type(state).__name__}, expected a state_dict")
    return state


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError("safetensors files need safetensors: pip install 'tritongru[convert]'") from error
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            text = (file.metadata() or {}).get("tritongru", "{}")
    except SafetensorError as error:
        raise ValueError(f"it is not a safetensors file: {error}") from error
    configs = json.loads(text)
    if not isinstance(configs, dict) or not all(isinstance(config, dict) for config in configs.values()):
        raise ValueError("the metadata 'tritongru' is not a JSON object of configurations")
    return tensors, configs


def collect_entries(tensors: Mapping[str, Tensor], configs: Mapping[str, Any]) -> list[StoredLayer]:
    """Return the GRU layers among the tensors of a `state_dict`; `configs` maps a prefix to a layer's config."""
    torch_groups: dict[tuple[str, int, str], dict[str, Tensor]] = {}
    keras_groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if match := _TORCH_KEY.fullmatch(name):
            prefix, kind, number, reverse = match.groups()
            place = CELL if number is None else int(number)
            torch_groups.setdefault((prefix or "", place, reverse or ""), {})[kind] = tensor
        elif match := _KERAS_KEY.fullmatch(name):
            keras_groups.setdefault(match[1] or "", {})[match[2]] = tensor
    entries = []
    for (prefix, number, reverse), group in sorted(torch_groups.items()):
        if number != CELL or {"weight_ih", "weight_hh"} <= group.keys():
            entries.append(_torch_entry(prefix, number, reverse, group))
    wrappers = {name or "bidirectional": config for name, config in configs.items() if "layer" in config}
    # A safetensors file sorts its tensors by name; the configs are in the order of the layers.
    places = {name: place for place, name in enumerate(configs)}

    def place_of(prefix: str) -> int:
        return places.get(prefix, places.get(prefix.rpartition(".")[0], len(places)))

    for prefix, group in sorted(keras_groups.items(), key=lambda item: place_of(item[0])):
        # A Dense layer has a kernel and a bias too.
        if "recurrent_kernel" in group:
            entry = StoredLayer(prefix or "gru", [], dict(configs.get(prefix, {})))
            owner, _, last = prefix.rpartition(".")
            entry.side = SIDES.get(last, "")
            if entry.side:
                entry.owner = (owner or "bidirectional",)
                entry.wrapper = wrappers.get(entry.owner[0], {})
            entries.append(_fill(entry, lambda g=group: _from_keras_group(g)))
    return join_halves(entries)


def _torch_entry(prefix: str, number: int, reverse: str, group: Mapping[str, Tensor]) -> StoredLayer:
    kind = _kind_of(group)
    name = prefix or kind.lower()
    # torch.nn.GRU gives the output of every step.
    config = {"return_sequences": True, "go_backwards": bool(reverse), "reset_after": True}
    if number == CELL:
        entry = StoredLayer(name, [], config)
    else:
        name = f"{name}_l{number}"
        entry = StoredLayer(f"{name}{reverse}", [], config, owner=(name,), side="backward" if reverse else "forward")
    if kind != "GRU":
        shapes = ", ".join(f"`{key}` has shape {tuple(group[key].shape)}" for key in ("weight_ih", "weight_hh"))
        entry.kind = f"{kind}: {shapes}, a GRU has 3 * units rows"
        return entry
    return _fill(entry, lambda: _from_torch_group(group))


def _kind_of(group: Mapping[str, Tensor]) -> str:
    """Return which layer of torch these are the weights of, by the rows per unit; "GRU" also for what is malformed."""
    weight = group.get("weight_hh")
    if "weight_ih" not in group or weight is None or weight.ndim != 2:
        return "GRU"
    # An LSTM with a projection has fewer columns than units.
    if "weight_hr" in group or weight.shape[0] == 4 * weight.shape[1]:
        return "LSTM"
    return "RNN" if weight.shape[0] == weight.shape[1] else "GRU"


def _fill(entry: StoredLayer, read: Any) -> StoredLayer:
    try:
        entry.arrays = read()
        for tensor in entry.arrays:
            if not tensor.is_floating_point() or tensor.layout != torch.strided:
                raise ValueError(f"a tensor has dtype {tensor.dtype} and layout {tensor.layout}, expected dense floats")
        bias = entry.arrays[2].shape if len(entry.arrays) == 3 else None
        check_keras_shapes(entry.arrays[0].shape, entry.arrays[1].shape, bias)
    except (ValueError, RuntimeError) as error:
        entry.problem = str(error)
    return entry


def _from_torch_group(group: Mapping[str, Tensor]) -> list[Tensor]:
    for name in ("weight_ih", "weight_hh"):
        if name not in group:
            raise ValueError(f"`{name}` is missing")
        if group[name].ndim != 2 or group[name].shape[0] % 3:
            raise ValueError(f"`{name}` has shape {tuple(group[name].shape)}, expected (3 * units, ...)")
    weights = torch_to_keras(group["weight_ih"], group["weight_hh"], group.get("bias_ih"), group.get("bias_hh"))
    return [weight for weight in weights if weight is not None]


def _from_keras_group(group: Mapping[str, Tensor]) -> list[Tensor]:
    if "kernel" not in group:
        raise ValueError("`kernel` is missing")
    return [group[name].contiguous() for name in ("kernel", "recurrent_kernel", "bias") if name in group]


def write_states(path: str | Path, tensors: Mapping[str, Tensor], configs: Mapping[str, Any] | None = None) -> None:
    """Write tensors as `.safetensors`, with `configs` in its metadata, or as a torch `state_dict` by the suffix.

    Raises:
        ValueError: another suffix, or a config that is not JSON.
        ImportError: safetensors is not installed.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: the suffix {path.suffix!r} is none of {', '.join(SUFFIXES)}")
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    if path.suffix != ".safetensors":
        replace_file(path, lambda temporary: torch.save(plain, temporary))
        return
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise ImportError("safetensors files need safetensors: pip install 'tritongru[convert]'") from error
    try:
        metadata = {"format": "pt"} | ({"tritongru": json.dumps(configs)} if configs else {})
    except TypeError as error:
        raise ValueError(f"{path}: the layer's configuration cannot be written as JSON: {error}") from error
    replace_file(path, save(plain, metadata))


def keras_tensors(names: Sequence[str], layers: Sequence[Any]) -> dict[str, Tensor]:
    """Return the weights of layers under this package's names, each behind its layer's name if that is not empty."""
    tensors = {}
    for name, layer in zip(names, layers, strict=True):
        sides = ("",) if len(layer._parts) == 1 else tuple(SIDES)
        for side, part in zip(sides, layer._parts, strict=True):
            for kind, tensor in part._named_weights():
                tensors[".".join(word for word in (name, side, kind) if word)] = tensor
    return tensors
