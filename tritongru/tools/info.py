"""What is installed, what runs here, and why a call would take the backend it takes."""

from __future__ import annotations

import argparse
import platform

import torch

from ..dispatch import Decision
from ..environment import has_triton, is_interpreted, reasons_against_environment, version_of
from ..tuning import choices
from ..tuning.configs import Device


class Info(dict):
    """A dict of facts that prints as a list of them."""

    def __str__(self) -> str:
        width = max(map(len, self))
        return "\n".join(f"{name:<{width}}  {value}" for name, value in self.items())


def info() -> Info:
    """Return versions, the device, how the Triton kernels run here and which tuning table is in use.

    Returns:
        A dict with the keys tritongru, python, torch, triton, device, kernels and tuning; `print` it to read it.

    >>> info()["python"].count(".")
    2
    """
    return Info(
        tritongru=version_of("tritongru"),
        python=platform.python_version(),
        torch=torch.__version__,
        triton=version_of("triton"),
        device=_device(),
        kernels=_kernels(),
        tuning=_tuning(),
    )


def explain(layer, x, mask=None, **call) -> Decision:
    """Return the backend that `layer(x, mask, **call)` would take and the reasons against the others; runs nothing.

    Args:
        layer: a layer of this package. x, mask, call: as in calling it.

    Returns:
        A `Decision`: `.backend`, `.rejected`, and `str(decision)` to read.

    Raises:
        TypeError: `layer` is none of this package. Others as calling it.
    """
    if not hasattr(layer, "explain"):
        raise TypeError(f"`layer` must be a GRU of tritongru, got {type(layer).__name__}")
    return layer.explain(x, mask=mask, **call)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m tritongru info`: none."""


def main(args: argparse.Namespace) -> int:
    """Print `info()`."""
    print(info())
    return 0


def _device() -> str:
    if not torch.cuda.is_available():
        return f"cpu ({torch.get_num_threads()} threads)"
    major, minor = torch.cuda.get_device_capability()
    runtime = f"HIP {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    return f"{torch.cuda.get_device_name()} (capability {major}.{minor}, {runtime})"


def _kernels() -> str:
    if not has_triton():
        return "not available: triton is not installed"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if reasons := reasons_against_environment(device, torch.cuda.current_device() if device == "cuda" else 0):
        return f"not available: {'; '.join(reasons)}"
    if is_interpreted():
        return "interpreted (TRITON_INTERPRET=1): for testing, not for speed"
    if torch.cuda.is_available():
        return "compiled"
    return "not used: no GPU, and TRITON_INTERPRET is not set"


def _tuning() -> str:
    if not torch.cuda.is_available():
        return "none: tables are for GPUs"
    if not has_triton():
        return "none: triton is not installed"
    from ..tuning.devices import device_limits

    device = device_limits(torch.device("cuda", torch.cuda.current_device()))
    return describe_tables(device)


def describe_tables(device: Device) -> str:
    """Return which tuning tables serve a device, in the order in which they are asked."""
    words = []
    for source, path in (("user's", choices.user_path(device.name)), ("shipped", choices.shipped_path(device))):
        table = None if path is None else choices.load(path)
        if table is None:
            continue
        kinds = sorted({f"{record['kind']} {record.get('date', '')}" for record in table.provenances.values()})
        words.append(f"{source} {path}: {len(table.entries)} entries, {', '.join(kinds)}")
    return "; then ".join([*words, "a formula of the device (tritongru.tuning.configs)"])
