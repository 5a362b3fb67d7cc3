"""What a layer does while torch traces, scripts or exports a model that holds it, and knows nothing of this package.

A trace by `torch.jit.trace` is to hold for other lengths and batches, and its file is to load where this package is not
installed. So torch's own GRU is recorded there wherever it computes the same.
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn

# Bound once: `compat.patch` puts another class in the place of `torch.nn.GRU`.
TorchGRU = nn.GRU


def find_proxy(*values: Any) -> fx.Proxy | None:
    """Return the first of `values` that stands for a value in a trace of `torch.fx`, None where there is none."""
    for value in values:
        if isinstance(value, fx.Proxy):
            return value
    return None


def record_call(layer: nn.Module, proxy: fx.Proxy, *args: Any, **kwargs: Any) -> fx.Proxy:
    """Record a call of `layer` as one node of the trace that `proxy` belongs to, as torch.fx does for torch's layers.

    Raises:
        TypeError: `layer` is what is traced, and not a part of it.
    """
    tracer: Any = proxy.tracer
    if layer is tracer.root:
        name = type(layer).__name__
        raise TypeError(f"torch.fx records a {name} as one call and cannot trace into it: trace a module that holds it")
    named = {name: value for name, value in kwargs.items() if value is not None}
    return tracer.create_proxy("call_module", tracer.path_of_module(layer), args, named)
