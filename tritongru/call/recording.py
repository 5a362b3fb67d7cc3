"""Whether what runs is written down, and by whom: torch's tracers, compilers and exporters."""

from __future__ import annotations

import torch


def is_recorded() -> bool:
    """Return whether `torch.jit.trace`, or the ONNX exporter that goes through it, is at work."""
    # As the compiler knows it; it cannot trace the function below.
    return torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def is_traced() -> bool:
    """Return whether torch.compile, torch.export or `torch.jit.trace` is at work: sizes and values are then symbols."""
    return torch.compiler.is_compiling() or is_recorded()


def is_exporting() -> bool:
    """Return whether `torch.export` is at work."""
    # Not `is_exporting()`: inside torch.compile that is true as well with torch 2.11. torch 2.6 has neither.
    return getattr(torch.compiler, "_is_exporting_flag", False)


def is_exporting_to_onnx() -> bool:
    """Return whether `torch.onnx.export` is at work, by way of `torch.export`."""
    return is_exporting() and torch.onnx.is_in_onnx_export()
