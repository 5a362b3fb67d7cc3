"""The GRU of Keras 3, computed by this package: for models that stay in Keras, on its torch backend.

    model = keras.models.load_model("model.keras")
    tritongru.keras3.accelerate(model)                   # in place; model.fit and model.predict as before
    layer = tritongru.keras3.GRU(64, return_sequences=True)   # or from the beginning: a keras.layers.GRU

Needs Keras 3.5 or later: `pip install tritongru[keras]`, and KERAS_BACKEND=torch.
"""

from __future__ import annotations

from . import environment as _environment

_environment.check_keras()

from .layer import GRU  # noqa: E402
from .switch import Outcome, accelerate, restore  # noqa: E402

__all__ = ["GRU", "Outcome", "accelerate", "restore"]
