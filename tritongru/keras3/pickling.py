"""Copies of a layer by `pickle` and `copy.deepcopy`."""

from __future__ import annotations

from typing import Any

import keras


def load_as_ours(method: str, *arguments: Any) -> keras.layers.Layer:
    """Return the layer that `method` of `keras.layers.GRU` reads from `arguments`, as our class."""
    from .layer import GRU

    with keras.saving.custom_object_scope({"GRU": GRU}):
        return getattr(keras.layers.GRU, method)(*arguments)
