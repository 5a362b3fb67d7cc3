"""What the configuration of a Keras model tells of its layers: which of them are GRUs, and where their weights lie.

Keras 3 names the place of a layer's weights by the attributes that lead to it; in a list a layer is its class and its
number among those of its class there: `layers/sequential/layers/gru_1`.

Source: `_save_state` and `_save_container_state` in `keras/src/saving/saving_lib.py` (v3).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from .entries import half_configs
from .keras_old import CUDNN, cudnn_config

# The kind of a layer of several cells, one over the other.
STACKED = "RNN around StackedRNNCells"
# Of layers in layers, in a file that anyone may have made.
MAX_DEPTH = 32
# How many of the last names of weights tell which layer's they are.
_MAX_SCOPE = 8
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


class DescribedModel:
    """The layers of a model's configuration at any depth, in the order in which Keras saves them.

    Args:
        config: the model's JSON; whatever is no configuration of a model has no layers.

    Raises:
        ValueError: layers nested more than `MAX_DEPTH` deep.
    """

    def __init__(self, config: Any) -> None:
        self.layers = list(_walk(config))
        self._at_place: dict[str, DescribedLayer] = {}
        self._known_as: dict[tuple[str, str], list[DescribedLayer]] = defaultdict(list)
        self._ending: dict[tuple[str, tuple[str, ...]], list[DescribedLayer]] = defaultdict(list)
        self._within: dict[tuple[str, str], list[DescribedLayer]] = defaultdict(list)
        for layer in self.layers:
            self._at_place.setdefault(layer.place, layer)
            self._known_as[layer.known_as].append(layer)
            if layer.may_hold_cell:
                outermost, size = layer.names[0], len(layer.names)
                self._within[outermost, layer.side].append(layer)
                for start in range(max(0, size - _MAX_SCOPE), size):
                    self._ending[outermost, layer.names[start:]].append(layer)

    def find_at_place(self, place: str, known_as: tuple[str, str]) -> DescribedLayer | None:
        """Return the layer whose weights Keras 3 keeps at `place`, None where the configuration has none there.

        Args:
            known_as: what the file calls it, as `DescribedLayer.known_as`; files of Keras before 3.6 name nothing. A
                layer of another name is not taken; then the name decides, where it is the only one.
        """
        found = self._at_place.get(place)
        if not known_as[0] or (found is not None and found.known_as == known_as):
            return found
        return _only(self._known_as.get(known_as))

    def find_by_scope(self, outermost: str, scope: Sequence[str], side: str) -> DescribedLayer | None:
        """Return the layer that a file of Keras 2 means, None where the configuration has none or several.

        Args:
            outermost: the name of the layer of the model that it is or is within.
            scope: the names before its weights', of which the last may be its cell's.
            side: of a half of a Bidirectional.
        """
        for names in (tuple(scope), tuple(scope[:-1])):
            # The layer with which it shares the most of the last names.
            for start in range(max(0, len(names) - _MAX_SCOPE), len(names)):
                if found := self._ending.get((outermost, names[start:])):
                    return _only(found)
        # A layer may have had another name when its weights were made.
        return _only(self._within.get((outermost, side)))


def _only(layers: Sequence[DescribedLayer] | None) -> DescribedLayer | None:
    return layers[0] if layers and len(layers) == 1 else None


def _walk(model: Any) -> Iterator[DescribedLayer]:
    stack: list[tuple[Mapping[str, Any], str, tuple[str, ...]]] = (
        [(model, "", ())] if isinstance(model, Mapping) else []
    )
    while stack:
        node, place, names = stack.pop()
        if len(names) > MAX_DEPTH:
            raise ValueError(f"the layer {names[-1]!r} of the configuration is nested more than {MAX_DEPTH} deep")
        kind = _kind_of(node)
        if kind == "Bidirectional" and _is_keras(node):
            yield from _describe_halves(node["config"], place, names or (_name_of(node),))
            continue
        config, reason = gru_config(node)
        may_hold_cell = bool(names) and (not _is_keras(node) or _RECURRENT.search(kind) is not None)
        yield DescribedLayer(kind, names, place, config, reason, may_hold_cell=may_hold_cell)
        if not config and not kind.startswith("RNN around"):
            children = list(_list_children(node.get("config")))
            for child, where in reversed(children):
                stack.append((child, f"{place}/{where}".strip("/"), (*names, _name_of(child))))


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
            yield from [(value, str(key))] if _is_layer(value) else _list_container(value, str(key), 1)


def _list_container(container: Any, place: str, depth: int) -> Iterator[tuple[Mapping[str, Any], str]]:
    if not isinstance(container, (list, Mapping)):
        return
    if depth > MAX_DEPTH:
        raise ValueError(f"a list of the configuration is nested more than {MAX_DEPTH} deep")
    counts: dict[str, int] = {}
    for value in container.values() if isinstance(container, Mapping) else container:
        is_layer = _is_layer(value)
        if is_layer or isinstance(value, (list, Mapping)):
            base = to_snake_case(value["class_name"]) if is_layer else "container"
            number = counts[base] = counts.get(base, -1) + 1
            inner = f"{place}/{base}_{number}" if number else f"{place}/{base}"
            yield from [(value, inner)] if is_layer else _list_container(value, inner, depth + 1)


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
