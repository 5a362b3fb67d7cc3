"""The least time that a step can take: what a measurement is held to. Nothing in it for the gates.

On a GPU, of the recurrence, from the device's numbers:

    feed    = 3 U^2 bytes / (SMs * 128 bytes per clock * clock)     the recurrent weights, once, from shared memory
    product = 6 U^2 B / (SMs * operations per clock * clock)        the recurrent product on the matrix units
    floor   = max(feed, product); a training step takes three of them: forward, reverse scan, gradient of the weights

Nothing in it for the exchange between programs and the input product either: no kernel can reach it.

On a CPU, of the input's product too, whose operations are as dear: 6 U (U + I) B operations, three times in training,
at the rate of one large product of torch on as many threads.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass

import torch

# Dense operations per clock and multiprocessor of the matrix units, by capability, in half precision. NVIDIA's
# architecture papers: A100 312 TFLOP/s, H100 989 TFLOP/s, at their boost clocks and SM counts.
_HALF_OPERATIONS = {(7, 0): 1024, (7, 5): 1024, (8, 0): 2048, (8, 6): 1024, (8, 9): 1024, (9, 0): 4096, (10, 0): 8192}
_SHARED_BYTES_PER_CLOCK = 128
# float32 without TF32 runs on the ordinary units: 128 multiply-adds per clock and multiprocessor.
_FLOAT32_OPERATIONS = 256


@dataclass(frozen=True)
class Speeds:
    """What the floor depends on: multiprocessors, their clock in Hz, operations per clock by dtype name."""

    processors: int
    clock: float
    operations: dict[str, int]


def device_speeds(device: torch.device) -> Speeds | None:
    """Return a GPU's numbers; None for another device, or where its clock or matrix units are not known."""
    if device.type != "cuda" or torch.version.hip:
        return None
    properties = torch.cuda.get_device_properties(device)
    half = _HALF_OPERATIONS.get((properties.major, properties.minor))
    clock = _clock(device)
    if half is None or clock is None:
        return None
    operations = {"float16": half, "bfloat16": half, "tf32": half // 2, "float32": _FLOAT32_OPERATIONS}
    return Speeds(properties.multi_processor_count, clock, operations)


def step_floor(units: int, batch: int, dtype: str, training: bool, speeds: Speeds) -> float | None:
    """Return the floor of one step in microseconds, None for a dtype without a number.

    >>> speeds = Speeds(132, 1.755e9, {"bfloat16": 4096})
    >>> round(step_floor(1024, 16, "bfloat16", False, speeds), 3)
    0.212
    """
    if dtype not in speeds.operations:
        return None
    bytes_each = 4 if dtype in ("tf32", "float32") else 2
    whole = speeds.processors * speeds.clock
    feed = 3 * units**2 * bytes_each / (whole * _SHARED_BYTES_PER_CLOCK)
    product = 6 * units**2 * batch / (whole * speeds.operations[dtype])
    return max(feed, product) * 1e6 * (3 if training else 1)


def cpu_step_floor(units: int, batch: int, input_size: int, dtype: torch.dtype, training: bool) -> float:
    """Return the floor of one step on a CPU in microseconds."""
    operations = 6 * units * (units + input_size) * batch * (3 if training else 1)
    return operations / product_rate(torch.get_num_threads(), dtype) * 1e6


@functools.cache
def product_rate(threads: int, dtype: torch.dtype) -> float:
    """Return the operations a second of a product of (1024,512) and (512,1536): the fastest of 30."""
    a, b, seconds = torch.ones(1024, 512, dtype=dtype), torch.ones(512, 1536, dtype=dtype), []
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(30):
            begin = time.perf_counter()
            torch.mm(a, b)
            seconds.append(time.perf_counter() - begin)
    finally:
        torch.set_num_threads(before)
    return 2 * 1024 * 512 * 1536 / min(seconds)


def _clock(device: torch.device) -> float | None:
    """Return the highest clock of the multiprocessors in Hz."""
    try:
        from triton.runtime import driver

        index = device.index if device.index is not None else torch.cuda.current_device()
        properties = driver.active.utils.get_device_properties(index)  # type: ignore[attr-defined]
        return properties["sm_clock_rate"] * 1e3
    except (ImportError, KeyError, RuntimeError, AttributeError):
        return None
