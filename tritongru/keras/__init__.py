"""The layers with the behaviour of Keras, and what their arguments name."""

from . import constraints, initializers, regularizers
from .bidirectional import Bidirectional
from .cell import GRUCell
from .layer import GRU

__all__ = ["GRU", "Bidirectional", "GRUCell", "constraints", "initializers", "regularizers"]
