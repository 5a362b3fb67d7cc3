"""What the readers find in a file and the writers put there: GRU layers as names, arrays and configs.

A reader also tells of the other recurrent layers, by name and kind alone: they are nothing to load, but to be told of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class StoredLayer:
    """One GRU, or one Bidirectional of two, in a file.

    Attributes:
        name: the layer's name in the model, or its path where the file names none.
        arrays: kernel (I,3U), recurrent_kernel (U,3U) and, if there is one, bias (2,3U) or (3U,); empty where there
            are halves.
        config: the layer's Keras config, empty where the file has none.
        assumed: what to take for a config that the file has not.
        aliases: other names the layer answers to.
        problem: what is wrong with it.
        owner: the names of the Bidirectional that this is a half of.
        side: "forward" or "backward" where its name in the file says so.
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


def join_halves(entries: Sequence[StoredLayer], wrappers: Mapping[str, dict[str, Any]]) -> list[StoredLayer]:
    """Return `entries` with the two halves of each Bidirectional as one entry, in the place of the first.

    Args:
        wrappers: the configs of the model's Bidirectional layers, by name.
    """
    groups: dict[tuple[str, ...], list[StoredLayer]] = {}
    for entry in entries:
        if entry.owner and entry.kind == "GRU":
            groups.setdefault(entry.owner, []).append(entry)
    joined: list[StoredLayer] = []
    for entry in entries:
        group = groups.get(entry.owner, []) if entry.kind == "GRU" else []
        config = next((wrappers[name] for name in entry.owner if name in wrappers), {})
        sides = {half.side for half in group}
        if len(group) != 2 or not (config or sides == {"forward", "backward"}):
            joined.append(entry)
        elif entry is group[0]:
            forward, backward = group if group[0].side != "backward" else reversed(group)
            if config:
                forward.config, backward.config = half_configs(config)
            joined.append(
                StoredLayer(entry.owner[0], [], config, entry.owner[1:], forward.problem or backward.problem,
                      halves=(forward, backward))
            )  # fmt: skip
    return joined


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


def select_entry(entries: Sequence[StoredLayer], name: str | None) -> StoredLayer:
    """Return the entry, or the half of one, called `name`, or the only entry there is.

    Raises:
        ValueError: no such layer, with the names there are; or a layer that has a problem.
    """
    layers = _gru_layers(entries)
    if name is None:
        if len(layers) != 1:
            raise ValueError(f"`layer` must name one of the GRU layers of the file: {list_names(entries)}")
        return check_sound(layers[0])
    for level in (layers, [half for entry in layers for half in entry.halves or ()]):
        found = [e for e in level if e.name == name] or [e for e in level if name in e.aliases]
        if len(found) == 1:
            return check_sound(found[0])
    raise ValueError(f"`layer={name!r}` is no GRU layer of the file; it has: {list_names(entries)}")


def select_layers(entries: Sequence[StoredLayer]) -> list[StoredLayer]:
    """Return all GRU layers, of which a file has at least one; ValueError where it has none, or one has a problem."""
    return [check_sound(entry) for entry in _gru_layers(entries)]


def _gru_layers(entries: Sequence[StoredLayer]) -> list[StoredLayer]:
    layers = [entry for entry in entries if entry.kind == "GRU"]
    if not layers:
        raise ValueError(f"there is no GRU layer in the file; it has: {list_names(entries)}")
    return layers


def list_names(entries: Sequence[StoredLayer]) -> str:
    """Return the names of the GRU layers, and then those of other recurrent layers with their kinds."""
    names = [repr(entry.name) for entry in entries if entry.kind == "GRU"]
    names += [f"{entry.name!r} ({entry.kind})" for entry in entries if entry.kind != "GRU"]
    return ", ".join(names) or "no recurrent layer"


def check_sound(entry: StoredLayer) -> StoredLayer:
    """Return `entry`; ValueError where it has a problem."""
    if entry.problem:
        raise ValueError(f"the layer {entry.name!r}: {entry.problem}")
    return entry
