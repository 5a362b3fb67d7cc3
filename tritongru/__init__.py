"""tritongru: the Gated Recurrent Unit, fast in PyTorch without being narrow."""

from .dispatch import Decision
from .functional import gru
from .spec import ExchangeError, UnsupportedError

__version__ = "0.1.0"
__all__ = ["Decision", "ExchangeError", "UnsupportedError", "__version__", "gru"]
