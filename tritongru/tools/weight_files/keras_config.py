"""What the configuration of a Keras model tells of its layers: which of them are GRUs, and where their weights lie.

Keras 3 names the place of a layer's weights by the attributes that lead to it; in a list a layer is its class and its
number among those of its class there: `layers/sequential/layers/gru_1`.

Source: `_save_state` and `_save_container_state` in `keras/src/saving/saving_lib.py` (v3).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, TypeGuard

from .entries import half_configs
from .keras_old import CUDNN, cudnn_config

# The kind of a layer of several cells, one over the other.
STACKED = "RNN around StackedRNNCells"
_RECURRENT = re.compile("GRU|LSTM|RNN")
_KERAS_MODULES = ("keras", "tensorflow", "tf_keras")


@dataclass(frozen=True, eq=False)
class DescribedLayer:
    """One layer, or one half of a Bidirectional, in the configuration of a model.

    Attributes:
        kind: its class, and of an RNN the class of its cell.
        names: the names of the models and layers around it, without the outermost, and then its own.
        place: where Keras 3 keeps its weights.
        config: the config of the GRU that it is; empty where it is none.
        reason: why no GRU can be made from its config.
        side: "forward" or "backward" for a half.
        wrapper: of a half, the config of the Bidirectional around two GRUs.
        may_hold_cell: whether it may be a recurrent layer: one of Keras's, or of a class that is not known here.
    """

    kind: str
    names: tuple[str, ...] = ()
    place: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    side: str = ""
    wrapper: dict[str, Any] = field(default_factory=dict)
    may_hold_cell: bool = True

    @property
    def path(self) -> str:
        """The names that lead to it, as 'encoder/gru'."""
        return "/".join(self.names)

    @property
    def known_as(self) -> tuple[str, str]:
        """The name that is its own in a model: of a half, the Bidirectional's and its side."""
        return (self.names[-2], self.side) if self.side else (self.names[-1] if self.names else "", "")


def describe_model(model: Any) -> list[DescribedLayer]:
    """Return the layers of a model's configuration at any depth, in the order in which Keras saves them."""
    if not isinstance(model, Mapping):
        return []
    found: list[DescribedLayer] = []
    stack: list[tuple[Mapping[str, Any], str, tuple[str, ...]]] = [(model, "", ())]
    while stack:
        node, place, names = stack.pop()
        kind = _kind_of(node)
        if kind == "Bidirectional" and _is_keras(node):
            found.extend(_describe_halves(node["config"], place, names or (_name_of(node),)))
            continue
        config, reason = gru_config(node)
        may_hold_cell = bool(names) and (not _is_keras(node) or _RECURRENT.search(kind) is not None)
        found.append(DescribedLayer(kind, names, place, config, reason, may_hold_cell=may_hold_cell))
        if config or kind.startswith("RNN around"):
            continue
        children = [
            (child, f"{place}/{where}".strip("/"), (*names, _name_of(child)))
            for child, where in _list_children(node.get("config"))
        ]
        stack.extend(reversed(children))
    return found


def find_at_place(described: Sequence[DescribedLayer], place: str, known_as: tuple[str, str]) -> DescribedLayer | None:
    """Return the layer whose weights Keras 3 keeps at `place`, None where the configuration has none there.

    Args:
        known_as: what the file calls it, as `DescribedLayer.known_as`; files of Keras before 3.6 name nothing. A layer
            of another name is not taken; then the name decides, where it is the only one.
    """
    named = [layer for layer in described if layer.known_as == known_as]
    found = next((layer for layer in described if layer.place == place), None)
    if not known_as[0] or (found is not None and found.known_as == known_as):
        return found
    return named[0] if len(named) == 1 else None


def find_by_scope(
    described: Sequence[DescribedLayer], outermost: str, scope: Sequence[str], side: str
) -> DescribedLayer | None:
    """Return the layer that a file of Keras 2 means, None where the configuration has none or several.

    Args:
        outermost: the name of the layer of the model that it is or is within. scope: the names before its weights',
            of which the last may be its cell's. side: of a half of a Bidirectional.
    """
    layers = [layer for layer in described if layer.names[:1] == (outermost,) and layer.may_hold_cell]
    for names in (scope, scope[:-1]):
        shared = {layer: _count_shared(layer.names, names) for layer in layers}
        best = [layer for layer in layers if shared[layer] and shared[layer] == max(shared.values())]
        if best:
            return best[0] if len(best) == 1 else None
    # A layer may have had another name when its weights were made.
    layers = [layer for layer in layers if layer.side == side]
    return layers[0] if len(layers) == 1 else None


def _count_shared(one: Sequence[str], other: Sequence[str]) -> int:
    """Return how many of the last names are the same."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def gru_config(node: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the config of the GRU that computes what a described layer does, and the reason where there is none.

    A GRU, a CuDNNGRU and an RNN around a GRUCell have one; a class that is not Keras's own has none, whatever its name.
    """
    kind, config = _kind_of(node), node.get("config")
    if not isinstance(config, Mapping) or not _is_keras(node):
        return {}, f"its class is {kind}, which is not a layer of Keras"
    if kind == "GRU":
        return dict(config), ""
    if kind == CUDNN:
        return cudnn_config(config), ""
    cell = config.get("cell")
    if kind != "RNN around GRUCell" or not _is_layer(cell) or not _is_keras(cell):
        return {}, f"its class is {kind}"
    inner, outer = cell["config"], {key: value for key, value in config.items() if key != "cell"}
    dtypes = [_dtype_of(part) for part in (outer, inner) if "dtype" in part]
    if len(dtypes) == 2 and dtypes[0] != dtypes[1]:
        return {}, f"its class is {kind}, with dtype={dtypes[1]!r} in an RNN with dtype={dtypes[0]!r}"
    trainable = {"trainable": False} if inner.get("trainable") is False else {}
    return {**inner, **outer, **trainable}, ""


def _dtype_of(config: Mapping[str, Any]) -> Any:
    """Return the dtype of a layer's config, or the name of its policy."""
    dtype = config["dtype"]
    policy = dtype.get("config") if isinstance(dtype, Mapping) else None
    return policy.get("name") if isinstance(policy, Mapping) else dtype


def _describe_halves(config: Mapping[str, Any], place: str, names: tuple[str, ...]) -> Iterator[DescribedLayer]:
    layers = {key: config[key] for key in ("layer", "backward_layer") if _is_layer(config.get(key))}
    grus = {key: gru_config(layer) for key, layer in layers.items()}
    reason = next((reason for _, reason in grus.values() if reason), "" if "layer" in grus else "it has no layer")
    wrapper: dict[str, Any] = {}
    if not reason:
        wrapper = {**config, "backward_layer": None}
        wrapper |= {key: {"class_name": "GRU", "config": gru} for key, (gru, _) in grus.items()}
    halves = half_configs(wrapper) if wrapper else ({}, {})
    kind = _kind_of(layers["layer"]) if "layer" in layers else "Bidirectional"
    for side, half in zip(("forward", "backward"), halves, strict=True):
        own = (*names, str(half.get("name", f"{side}_layer")))
        yield DescribedLayer(kind, own, f"{place}/{side}_layer".strip("/"), half, reason, side, wrapper)


def _list_children(config: Any) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield (layer, where its weights lie below) of every object within the config of a layer or model."""
    # A Sequential of Keras 2.0 is the list of its layers.
    attributes = {"layers": config} if isinstance(config, list) else config
    if isinstance(attributes, Mapping):
        for key, value in attributes.items():
            yield from [(value, str(key))] if _is_layer(value) else _list_container(value, str(key))


def _list_container(container: Any, place: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    if not isinstance(container, (list, Mapping)):
        return
    counts: dict[str, int] = {}
    for value in container.values() if isinstance(container, Mapping) else container:
        is_layer = _is_layer(value)
        if is_layer or isinstance(value, (list, Mapping)):
            base = to_snake_case(value["class_name"]) if is_layer else "container"
            number = counts[base] = counts.get(base, -1) + 1
            inner = f"{place}/{base}_{number}" if number else f"{place}/{base}"
            yield from [(value, inner)] if is_layer else _list_container(value, inner)


def _kind_of(node: Mapping[str, Any]) -> str:
    kind, config = str(node.get("class_name")), node.get("config")
    if kind != "RNN" or not _is_keras(node) or not isinstance(config, Mapping):
        return kind
    cell = config.get("cell")
    return f"RNN around {cell['class_name']}" if _is_layer(cell) else STACKED if isinstance(cell, list) else kind


def _is_layer(value: Any) -> TypeGuard[Mapping[str, Any]]:
    """Return whether a value of a config is an object with a class and a config of its own."""
    return (
        isinstance(value, Mapping) and isinstance(value.get("class_name"), str)
        and isinstance(value.get("config"), (Mapping, list))
    )  # fmt: skip


def _is_keras(node: Mapping[str, Any]) -> bool:
    """Return whether the class of a described object is Keras's own, and not a user's of whatever name."""
    module = node.get("module")
    if ">" in str(node.get("class_name")) or not isinstance(node.get("config"), Mapping):
        return False
    if module is None:
        return node.get("registered_name") is None
    return str(module).partition(".")[0] in _KERAS_MODULES


def _name_of(node: Mapping[str, Any]) -> str:
    config = node["config"]
    told = config.get("name") if isinstance(config, Mapping) else None
    return str(told or node.get("name") or to_snake_case(node["class_name"]))


def to_snake_case(name: str) -> str:
    """Return the name of a class as Keras writes it in the place of weights: 'GRU' is 'gru', 'MyGRU' 'my_gru'."""
    name = re.sub(r"\W+", "", name.rpartition(">")[2])
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
