"""`accelerate` and `restore`: the layers of a model between Keras's computation and ours, in place."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import keras

from .layer import GRU, reason_against_cell

# A layer changes its class in one step, but two threads shall not report the same layer as switched.
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Outcome:
    """What became of one layer.

    Attributes:
        layer: the layer itself. path: its name in the model, after those of the layers that hold it.
        switched: whether this call switched it. reason: why not, else empty.
    """

    layer: keras.layers.Layer
    path: str
    switched: bool
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.path}: " + ("switched" if self.switched else f"left: {self.reason}")


def accelerate(model: keras.layers.Layer) -> list[Outcome]:
    """Let `tritongru.gru` compute every `keras.layers.GRU` of a built model, in place.

    Weights, optimizer, compilation, names and files of the model stay as they are. A second call finds nothing to do.

    Args:
        model: a model or layer; nested models and wrappers such as `Bidirectional` are gone through.

    Returns:
        One `Outcome` for each recurrent layer that is, or holds, a GRU: switched, or left with the reason.

    Raises:
        TypeError: `model` is not a Keras layer. ValueError: there is no GRU in it.
    """
    found = _find(model)
    if not found:
        raise ValueError(
            f"`model`={model.name!r} has no keras.layers.GRU"
            + ("" if model.built else "; it is not built: its layers may not exist before its first call")
        )
    with _LOCK:
        return [_switch(layer, path) for path, layer in found]


def restore(model: keras.layers.Layer) -> list[Outcome]:
    """Undo `accelerate`: every `tritongru.keras3.GRU` of the model becomes a `keras.layers.GRU`, in place.

    Returns:
        One `Outcome` for each layer that was switched back.

    Raises:
        TypeError: `model` is not a Keras layer.
    """
    with _LOCK:
        found = [(path, layer) for path, layer in _find(model) if type(layer) is GRU]
        for _, layer in found:
            if "backend" in vars(layer):
                del layer.backend
            layer.__class__ = keras.layers.GRU
        return [Outcome(layer, path, True) for path, layer in found]


def _switch(layer: keras.layers.Layer, path: str) -> Outcome:
    reason = _reason_against(layer)
    if not reason:
        layer.__class__ = GRU
    return Outcome(layer, path, not reason, reason)


def _reason_against(layer: keras.layers.Layer) -> str:
    if type(layer) is GRU:
        return "it is a tritongru.keras3.GRU already"
    if not isinstance(layer, keras.layers.GRU):
        return "it is a keras.layers.RNN around a GRU cell, not a keras.layers.GRU"
    if type(layer) is not keras.layers.GRU:
        return f"its class {type(layer).__name__} is a subclass of keras.layers.GRU and may compute something else"
    if reason_against_cell(layer.cell):
        return reason_against_cell(layer.cell)
    if not layer.built:
        return "it is not built: build or call the model first"
    if layer.use_cudnn is True:
        return "use_cudnn=True asks for Keras's own computation"
    return ""


def _find(model: keras.layers.Layer) -> list[tuple[str, keras.layers.Layer]]:
    """Return the GRU layers of `model` and the RNN layers with a GRU cell, each once, with their paths."""
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(f"`model` must be a Keras model or layer, got {type(model).__name__}")
    found: dict[int, tuple[str, keras.layers.Layer]] = {}
    seen: set[int] = set()

    def visit(layer: keras.layers.Layer, path: str) -> None:
        if id(layer) in seen:
            return
        seen.add(id(layer))
        if isinstance(layer, keras.layers.RNN) and _holds_gru(layer):
            found[id(layer)] = (path, layer)
            return
        for child in layer._flatten_layers(include_self=False, recursive=False):
            visit(child, f"{path}/{child.name}")

    visit(model, model.name)
    return list(found.values())


def _holds_gru(layer: keras.layers.RNN) -> bool:
    cells = getattr(layer.cell, "cells", [layer.cell])
    return isinstance(layer, keras.layers.GRU) or any(isinstance(cell, keras.layers.GRUCell) for cell in cells)
