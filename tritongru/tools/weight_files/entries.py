"""What the readers find in a file and the writers put there: GRU layers as names, arrays and configs.

A reader also tells of the other recurrent layers, by name and kind alone: they are nothing to load, but to be told of.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# The halves of a Bidirectional, by the attributes that hold them.
SIDES = {"forward_layer": "forward", "backward_layer": "backward"}
FILL_HINT = "`load_keras(path, layer)` fills a layer of your own with the weights"


@dataclass
class StoredLayer:
    """One GRU, or one Bidirectional of two, in a file.

    Attributes:
        name: the layer's name in the model, or its path where the file names none.
        path: the names of the models and layers around it and its own, as 'encoder/gru', or where its weights lie.
        place: where Keras 3 keeps its weights, if nothing in the file tells the order of the layers.
        arrays: kernel (I,3U), recurrent_kernel (U,3U) and, if there is one, bias (2,3U) or (3U,); empty where there
            are halves.
        config: the layer's Keras config, empty where the file has none.
        assumed: what to take for a config that the file has not.
        aliases: other names the layer answers to.
        problem: what is wrong with it.
        unknown: why no layer can be made of it, though its weights fill one.
        owner: the names of the Bidirectional that this is a half of.
        side: "forward" or "backward" where its name in the file says so.
        wrapper: the config of that Bidirectional, empty where the file has none.
        halves: of a Bidirectional, the forward and the backward GRU.
        kind: "GRU", or what else it is.
    """

    name: str
    arrays: list[Any]
    config: dict[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    problem: str = ""
    owner: tuple[str, ...] = ()
    side: str = ""
    halves: tuple[StoredLayer, StoredLayer] | None = None
    kind: str = "GRU"
    assumed: dict[str, Any] = field(default_factory=dict)
    path: str = ""
    place: str = ""
    unknown: str = ""
    wrapper: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.path = self.path or self.name


def join_halves(entries: Sequence[StoredLayer]) -> list[StoredLayer]:
    """Return `entries` with the two halves of each Bidirectional as one entry, in the place of the first."""
    groups: dict[tuple[str, ...], list[StoredLayer]] = {}
    for entry in entries:
        if entry.owner and entry.kind == "GRU":
            groups.setdefault(entry.owner, []).append(entry)
    joined: list[StoredLayer] = []
    for entry in entries:
        group = groups.get(entry.owner, []) if entry.kind == "GRU" else []
        sides = {half.side for half in group}
        if len(group) != 2 or not (entry.wrapper or sides == {"forward", "backward"}):
            joined.append(entry)
        elif entry is group[0]:
            joined.append(_join(*(group if entry.side != "backward" else reversed(group))))
    return joined


def _join(forward: StoredLayer, backward: StoredLayer) -> StoredLayer:
    if forward.wrapper:
        forward.config, backward.config = half_configs(forward.wrapper)
    name, *aliases = forward.owner
    path = (forward.path.rpartition("/")[0] if forward.path != forward.name else "") or name
    return StoredLayer(
        name, [], forward.wrapper, tuple(aliases), forward.problem or backward.problem, halves=(forward, backward),
        path=path, place=forward.place.rpartition("/")[0], unknown=forward.unknown or backward.unknown,
    )  # fmt: skip


def half_configs(wrapper: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the configs of the two GRUs of a Bidirectional's config, whose "layer" is a GRU."""
    forward = dict(wrapper["layer"]["config"])
    bare = str(forward.get("name", "gru")).removeprefix("forward_")
    own = wrapper.get("backward_layer")
    backward = {**forward, "name": f"backward_{bare}", "go_backwards": not forward.get("go_backwards")}
    if isinstance(own, Mapping) and isinstance(own.get("config"), Mapping):
        backward = dict(own["config"])
    version = {"keras_version": wrapper["keras_version"]} if "keras_version" in wrapper else {}
    return {**forward, "name": f"forward_{bare}", **version}, {**backward, **version}


def select_entry(entries: Sequence[StoredLayer], name: str | None, fills: bool = False) -> StoredLayer:
    """Return the entry, or the half of one, called `name` or with the path `name`, or the only entry there is.

    Args:
        fills: whether its weights are to fill a layer, for which its config need not be known.

    Raises:
        ValueError: no such layer, with the names there are; several, with their paths; or a layer that has a problem.
    """
    layers = _gru_layers(entries)
    if name is None:
        if len(layers) != 1:
            raise ValueError(f"`layer` must name one of the GRU layers of the file: {list_names(entries)}")
        return check_sound(layers[0], fills)
    for level in (layers, [half for entry in layers for half in entry.halves or ()]):
        found = next(filter(None, ([e for e in level if name in names(e)] for names in _NAMES)), [])
        if len(found) > 1:
            paths = ", ".join(repr(entry.path) for entry in found)
            raise ValueError(f"`layer={name!r}` is ambiguous; name it by its path: {paths}")
        if found:
            return check_sound(found[0], fills)
    raise ValueError(f"`layer={name!r}` is no GRU layer of the file; it has: {list_names(entries)}")


# What a layer is called, the surest first.
_NAMES = (lambda entry: (entry.path,), lambda entry: (entry.name,), lambda entry: entry.aliases)


def select_layers(entries: Sequence[StoredLayer]) -> list[StoredLayer]:
    """Return all GRU layers, of which a file has at least one; ValueError where it has none, or one has a problem."""
    return [check_sound(entry) for entry in _gru_layers(entries)]


def knows_order(entries: Sequence[StoredLayer]) -> bool:
    """Return whether GRU layers of a file stand in the order of their model.

    Where nothing but the places of the weights tells it, they tell the order among layers of one class alone.
    """
    places = [entry.place.split("/") for entry in entries if entry.kind == "GRU" and entry.place]
    for one, other in zip(places, places[1:], strict=False):
        apart = next((pair for pair in zip(one, other, strict=False) if pair[0] != pair[1]), ("", ""))
        if re.sub(r"_\d+$", "", apart[0]) != re.sub(r"_\d+$", "", apart[1]):
            return False
    return True


def _gru_layers(entries: Sequence[StoredLayer]) -> list[StoredLayer]:
    layers = [entry for entry in entries if entry.kind == "GRU"]
    if not layers:
        raise ValueError(f"there is no GRU layer in the file; it has: {list_names(entries)}")
    return layers


def list_names(entries: Sequence[StoredLayer]) -> str:
    """Return the names of the GRU layers, paths where names are equal, then other recurrent layers with their kinds."""
    counts = Counter(entry.name for entry in entries if entry.kind == "GRU")
    names = [repr(e.name if counts[e.name] == 1 else e.path) for e in entries if e.kind == "GRU"]
    names += [f"{entry.name!r} ({entry.kind})" for entry in entries if entry.kind != "GRU"]
    return ", ".join(names) or "no recurrent layer"


def check_sound(entry: StoredLayer, fills: bool = False) -> StoredLayer:
    """Return `entry`; ValueError where it has a problem, or its config is not known and it `fills` no layer."""
    if entry.problem:
        raise ValueError(f"the layer {entry.name!r}: {entry.problem}")
    if entry.unknown and not fills:
        raise ValueError(f"the layer {entry.name!r}: {entry.unknown}, so no layer is made of it; {FILL_HINT}")
    return entry
