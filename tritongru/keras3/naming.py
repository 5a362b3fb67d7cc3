"""What our class is called: Keras's GRU in a file, itself in memory.

A file that Keras writes names, for every layer, a module, a class and a registered name. With "keras.layers", "GRU" and
"GRU" any Keras reads it, also one that never heard of this package. But Keras also copies layers through the same
words, `Bidirectional` for one, and there they must lead back to our class. So the registered name is a string that a
file holds as "GRU", and that a dictionary takes for the key under which our class is known to Keras.
"""

from __future__ import annotations

import keras
from keras.src.saving import object_registration

KEY = "tritongru>GRU"


class FileName(str):
    """A string that is written as what it holds, and that equals `KEY`."""

    def __eq__(self, other: object) -> bool:
        return type(other) is FileName or (isinstance(other, str) and str.__eq__(other, KEY))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(KEY)


def register(cls: type) -> type:
    """Make Keras write a subclass of `keras.layers.GRU` as "keras.layers.GRU", and copy it as itself."""
    cls.__module__ = "keras.layers"
    keras.saving.get_custom_objects()[KEY] = cls
    # `register_keras_serializable` would write KEY itself into files.
    object_registration.GLOBAL_CUSTOM_NAMES[cls] = FileName("GRU")
    return cls
