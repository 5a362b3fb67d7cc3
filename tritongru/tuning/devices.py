"""What a launch configuration depends on, of the device at hand."""

from __future__ import annotations

import functools

import torch

from .. import environment
from .configs import Device


def device_limits(device: torch.device) -> Device:
    """Return the limits a configuration depends on."""
    if device.type != "cuda":
        # The interpreter runs programs one after another, so they cannot wait for each other.
        return Device(processors=1, shared_memory=227 * 1024, cooperative=False)
    index = device.index or 0
    return _read_properties(index, environment.can_cooperate(index))


@functools.cache
def _read_properties(index: int, cooperative: bool) -> Device:
    properties = torch.cuda.get_device_properties(index)
    shared = getattr(properties, "shared_memory_per_block_optin", None) or properties.shared_memory_per_block
    is_hip = torch.version.hip is not None
    target = properties.gcnArchName.partition(":")[0] if is_hip else f"sm_{properties.major}{properties.minor}"
    count = properties.multi_processor_count
    return Device(count, shared, cooperative, properties.warp_size, properties.name, target)
