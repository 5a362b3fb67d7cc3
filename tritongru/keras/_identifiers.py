"""How Keras names an initializer, a regularizer or a constraint: by string, dict, class or callable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


def build(
    identifier: Any, kind: str, table: Mapping[str, Callable], custom_objects: Mapping[str, Any] | None = None
) -> Any:
    """Return the object that `identifier` stands for.

    Args:
        identifier: None, a name, a dict `{"class_name", "config"}`, a class, or a callable that is used as it is.
        kind: "initializer", "regularizer" or "constraint", for the messages.
        table: name -> factory.
        custom_objects: name -> class or callable, asked before `table`.

    Raises:
        ValueError: an unknown name, a config the factory refuses, or something that is none of these.
    """
    if identifier is None:
        return None
    if isinstance(identifier, str):
        return _from_name(identifier, {}, kind, table, custom_objects)
    if isinstance(identifier, Mapping):
        name, config = identifier.get("class_name"), identifier.get("config")
        # Keras 3 writes a plain function as {"class_name": "function", "config": its name}.
        if isinstance(config, str):
            name, config = config, {}
        if not isinstance(name, str) or not isinstance(config, Mapping | None):
            raise ValueError(f"Could not interpret {kind} identifier: {dict(identifier)!r}")
        return _from_name(name, config or {}, kind, table, custom_objects)
    if isinstance(identifier, type):
        return identifier()
    if callable(identifier):
        return identifier
    raise ValueError(f"Could not interpret {kind} identifier: {identifier!r}")


def _from_name(
    name: str,
    config: Mapping[str, Any],
    kind: str,
    table: Mapping[str, Callable],
    custom_objects: Mapping[str, Any] | None,
) -> Any:
    custom = (custom_objects or {}).get(name)
    factory = custom if custom is not None else table.get(name)
    if factory is None:
        raise ValueError(f"Unknown {kind}: {name!r}; known: {', '.join(table)}")
    if custom is not None and not isinstance(custom, type):
        return custom
    # Keras 3 writes these two for every variance rule; None is the only value that Keras 2's rules can honour.
    config = {key: value for key, value in config.items() if value is not None or key not in _KERAS_3_KEYS}
    try:
        return factory(**config)
    except TypeError as error:
        raise ValueError(f"Could not build the {kind} {name!r} from config={dict(config)!r}: {error}") from error


def describe(obj: Any, kind: str) -> Any:
    """Return the serialised form of `obj`: None, `{"class_name", "config"}`, or a plain function's name.

    Raises:
        ValueError: an object with neither a `get_config` nor a name.
    """
    if obj is None:
        return None
    if hasattr(obj, "get_config"):
        return {"class_name": type(obj).__name__, "config": obj.get_config()}
    name = getattr(obj, "__name__", None)
    if name is None:
        raise ValueError(f"Cannot serialize the {kind} {obj!r}: it has neither `get_config` nor a name")
    return name
