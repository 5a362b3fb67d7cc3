"""tritongru: the Gated Recurrent Unit, fast in PyTorch without being narrow."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import activations, compat, flops
from .call.arguments import LayerNorm
from .call.errors import ExchangeError, FallbackWarning, UnsupportedError
from .dispatch import Decision
from .functional import gru, scan
from .keras import GRU, Bidirectional, GRUCell, constraints, initializers, regularizers
from .stream import Stream
from .tools.info import explain, info

if TYPE_CHECKING:
    from .tools.oracle.compare import compare
    from .tools.tune.sweep import tune
    from .tools.weight_files import convert

__version__ = "0.1.0"
__all__ = [
    "Bidirectional",
    "Decision",
    "ExchangeError",
    "FallbackWarning",
    "GRU",
    "GRUCell",
    "LayerNorm",
    "Stream",
    "UnsupportedError",
    "__version__",
    "activations",
    "compare",
    "compat",
    "constraints",
    "convert",
    "explain",
    "gru",
    "info",
    "initializers",
    "regularizers",
    "scan",
    "tune",
]

# Tools are imported when first asked for: the layer needs none of them.
_TOOLS = {"compare": "oracle.compare", "convert": "weight_files.convert", "tune": "tune.sweep"}


def __getattr__(name: str) -> Any:
    if name not in _TOOLS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".tools.{_TOOLS[name]}", __name__)
    return module if name == "convert" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_TOOLS})
