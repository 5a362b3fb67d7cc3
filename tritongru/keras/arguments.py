"""The forms in which Keras takes and writes arguments: dtypes, further keywords, lists of inputs, masks."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

HALF_POLICIES = {"mixed_float16": torch.float16, "mixed_bfloat16": torch.bfloat16}
_FLOATS = ("float16", "bfloat16", "float32", "float64")
# Keras arguments that have no meaning here, and are taken so that its code and configurations can be used.
_IGNORED = ("batch_size", "input_length", "enable_caching_device", "return_runtime")


def check_implementation(value: int, recurrent_dropout: float) -> int:
    """Return Keras's implementation mode; recurrent dropout forces 1."""
    if value not in (0, 1, 2):
        raise ValueError(f"`implementation` must be 0, 1 or 2, got {value!r}")
    if value == 0:
        warnings.warn("`implementation=0` is deprecated; use 1 or 2", UserWarning, stacklevel=5)
    return 1 if recurrent_dropout != 0 else value


def clamp_rate(name: str, value) -> float:
    """Return a dropout rate within [0, 1], as Keras does; TypeError unless it is a number, ValueError for NaN."""
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(f"`{name}` must be a number, got {value!r}")
    rate = float(value)
    if rate != rate:
        raise ValueError(f"`{name}` must be a number, got {value!r}")
    return min(1.0, max(0.0, rate))


def parse_dtype(dtype) -> tuple[torch.dtype, str | None]:
    """Return the dtype of the weights and the mixed policy's name, if `dtype` names one.

    Args:
        dtype: None (torch's default), a torch.dtype, a name, or Keras's {"class_name": "Policy", "config": ...}.
    """
    name = dtype
    if isinstance(name, dict):
        name = name.get("config", {}).get("name")
    if name is None:
        name = torch.get_default_dtype()
    if isinstance(name, torch.dtype):
        name = str(name).removeprefix("torch.")
    elif isinstance(name, np.dtype) or (isinstance(name, type) and issubclass(name, np.generic)):
        name = np.dtype(name).name
    if not isinstance(name, str):
        raise TypeError(f"`dtype` must be a torch.dtype or a name, got {dtype!r}")
    if name in HALF_POLICIES:
        return torch.float32, name
    if name not in _FLOATS:
        raise ValueError(f"`dtype` must be one of {', '.join((*_FLOATS, *HALF_POLICIES))}, got {dtype!r}")
    return getattr(torch, name), None


def take_options(options: dict, class_name: str, input_size: int | None):
    """Return (name, trainable, initial weights, input size) of Keras's further keyword arguments.

    Raises:
        TypeError: one that Keras does not know either.
    """
    options = dict(options)
    name = options.pop("name", None) or class_name.lower()
    trainable = bool(options.pop("trainable", True))
    weights = options.pop("weights", None)
    for key in ("batch_input_shape", "input_shape", "input_dim"):
        value = options.pop(key, None)
        value = value[-1] if isinstance(value, (tuple, list)) else value
        if value is not None and input_size is not None and value != input_size:
            raise ValueError(f"`{key}` says {value} input features, but another argument says {input_size}")
        input_size = value if value is not None else input_size
    for key in _IGNORED:
        options.pop(key, None)
    if options:
        key, value = next(iter(options.items()))
        raise TypeError(f"Keyword argument not understood: `{key}`={value!r}")
    return name, trainable, weights, input_size


def split_inputs(inputs: Any, initial_state):
    """Return the input and the initial state of a call, which may come as the list [inputs, initial_state]."""
    if isinstance(inputs, (tuple, list)):
        if len(inputs) == 0:
            raise ValueError("`inputs` must be a tensor or a list [inputs, initial_state], got an empty list")
        if len(inputs) > 1:
            if initial_state is not None:
                raise ValueError(f"`initial_state` was given twice: by itself and in `inputs`, a list of {len(inputs)}")
            initial_state = list(inputs[1:])
        inputs = inputs[0]
    return (inputs if isinstance(inputs, Tensor) else np.asarray(inputs)), initial_state


def to_tensor(name: str, value: Any, device: torch.device | None = None) -> Tensor:
    """Return a tensor as it is, and an array or a list of numbers as one; TypeError by its name for anything else."""
    if isinstance(value, Tensor):
        return value
    try:
        return torch.as_tensor(np.asarray(value), device=device)
    except (TypeError, ValueError):
        raise TypeError(f"`{name}` must be a tensor or an array of numbers, got {value!r}") from None


def as_loss(value: Any, of: str):
    """Return what a regularizer gave, a number or a tensor of one; TypeError, ValueError with what gave it else."""
    if not isinstance(value, Tensor) and not hasattr(value, "__float__"):
        raise TypeError(f"the {of} must return a number, got {type(value).__name__}")
    if shape := tuple(getattr(value, "shape", ())):
        raise ValueError(f"the {of} must return a number, got a tensor of shape {shape}")
    return value


def as_weight(value: Any, like: Tensor, name: str) -> Tensor:
    """Return what a constraint made of a weight, or of one head of it."""
    if not isinstance(value, Tensor) or value.shape != like.shape:
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"the constraint of `{name}` must return a tensor of shape {tuple(like.shape)}, got {found}")
    return value


def as_steps(name: str, value, like: Tensor) -> Tensor | None:
    """Return a mask or resets as a tensor: of a list of tensors or arrays the first, of an array its tensor."""
    if isinstance(value, (tuple, list)) and value and not isinstance(value[0], (tuple, list, bool, int)):
        value = value[0]
    return None if value is None else to_tensor(name, value, like.device)


def for_autograd(value: Tensor) -> Tensor:
    """Return a tensor kept from an earlier call; a copy where inference_mode made it: no graph takes it."""
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or not value.is_inference():
        return value
    return value.clone()
