"""How Keras names an initializer, a regularizer or a constraint: by string, dict, class or callable."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_KERAS_3_KEYS = ("input_axes", "output_axes")


class Configurable:
    """An object that is rebuilt from the dict its `get_config` returns."""

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain Python values."""
        return {}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]):
        """Return the object that `config` describes; a key its constructor does not know raises TypeError."""
        return cls(**config)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


class Registry:
    """The functions that each of Keras's modules of named objects has: `get`, `serialize` and `deserialize`.

    Args:
        kind: "initializer", "regularizer" or "constraint", for the messages.
        table: name -> factory.
    """

    def __init__(self, kind: str, table: Mapping[str, Callable]) -> None:
        self.kind, self.table = kind, table

    def get(self, identifier: Any, argument: str | None = None) -> Any:
        """Return what a name, a dict `{"class_name", "config"}` or a class stands for; None and a callable stay so.

        Args:
            argument: its name, with which an error then begins.

        Raises:
            ValueError: an unknown name, a config the factory refuses, or something that is none of these.
        """
        try:
            return self.deserialize(identifier)
        except ValueError as error:
            if argument is None:
                raise
            raise ValueError(f"`{argument}`: {error}") from error

    def serialize(self, obj: Any) -> Any:
        """Return `{"class_name", "config"}` of an object, a plain function's name, or None of None.

        Raises:
            ValueError: an object with neither a `get_config` nor a name.
        """
        if obj is None:
            return None
        if hasattr(obj, "get_config"):
            return {"class_name": type(obj).__name__, "config": obj.get_config()}
        name = getattr(obj, "__name__", None)
        if name is None:
            raise ValueError(f"Cannot serialize the {self.kind} {obj!r}: it has neither `get_config` nor a name")
        return name

    def describe(self, obj: Any) -> Any:
        """Return `obj` serialised where `get` then knows it, else itself: what a layer's configuration holds."""
        known = obj is None or type(obj) in self.table.values()
        return self.serialize(obj) if known else obj

    def deserialize(self, config: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
        """Return what `serialize` described; `custom_objects`, name -> class or callable, is asked first."""
        if config is None:
            return None
        if isinstance(config, str):
            return self._from_name(config, {}, custom_objects)
        if isinstance(config, Mapping):
            name, inner = config.get("class_name"), config.get("config")
            # Keras 3 writes a plain function as {"class_name": "function", "config": its name}.
            if isinstance(inner, str):
                name, inner = inner, {}
            if not isinstance(name, str) or not isinstance(inner, Mapping | None):
                raise ValueError(f"Could not interpret {self.kind} identifier: {dict(config)!r}")
            return self._from_name(name, inner or {}, custom_objects)
        if isinstance(config, type):
            return config()
        if callable(config):
            return config
        raise ValueError(f"Could not interpret {self.kind} identifier: {config!r}")

    def _from_name(self, name: str, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None) -> Any:
        custom = (custom_objects or {}).get(name)
        factory = custom if custom is not None else self.table.get(name)
        if factory is None:
            raise ValueError(f"Unknown {self.kind}: {name!r}; known: {', '.join(self.table)}")
        if custom is not None and not isinstance(custom, type):
            return custom
        # Keras 3 writes these two for every variance rule; None is the only value that Keras 2's rules can honour.
        config = {key: value for key, value in config.items() if value is not None or key not in _KERAS_3_KEYS}
        try:
            return factory(**config)
        except TypeError as error:
            raise ValueError(
                f"Could not build the {self.kind} {name!r} from config={dict(config)!r}: {error}"
            ) from error


def name_classes(classes: Iterable[type], **aliases: Callable) -> dict[str, Callable]:
    """Return the table of `classes` by their names in both spellings, `MaxNorm` and `max_norm`, and of `aliases`."""
    spelled = {re.sub(r"(?<=[a-z])(?=[A-Z])", "_", one.__name__).lower(): one for one in classes}
    return {**spelled, **aliases, **{one.__name__: one for one in classes}}
