"""Launch configurations: which schedule and which tile sizes for a problem on a device.

The choice is a formula of the device's shared memory and multiprocessors, never of T, and of B only through the number
of batch tiles. Everything here is plain arithmetic, so it can be asked for any device without one.
"""

from __future__ import annotations

from dataclasses import dataclass

SINGLE, PERSISTENT, STEPS = "single", "persistent", "steps"
# How the programs of a batch tile meet, kernels/exchange.py; a search space takes its choices from here.
EXCHANGES = ("counter",)


@dataclass(frozen=True)
class LaunchConfig:
    """How a scan kernel is launched.

    Attributes:
        schedule: "single" (one program per batch tile), "persistent" (several, with an exchange per step) or "steps"
            (one launch per step).
        block_b, block_h, block_k: rows, units and chunk of the product, powers of two from 16 up.
        num_warps: warps of a program.
        exchange: one of EXCHANGES; matters to the schedule "persistent" alone.
    """

    schedule: str
    block_b: int
    block_h: int
    block_k: int
    num_warps: int = 4
    exchange: str = "counter"

    def __post_init__(self):
        if self.schedule not in (SINGLE, PERSISTENT, STEPS):
            raise ValueError(f"`schedule` must be 'single', 'persistent' or 'steps', got {self.schedule!r}")
        if self.exchange not in EXCHANGES:
            raise ValueError(f"`exchange` must be one of {', '.join(map(repr, EXCHANGES))}, got {self.exchange!r}")
        for name in ("block_b", "block_h", "block_k"):
            value = getattr(self, name)
            if value < 16 or value & (value - 1):
                raise ValueError(f"`{name}` must be a power of two, at least 16, got {value}")

    def weight_bytes(self, units: int, itemsize: int) -> int:
        """Return the bytes of recurrent weights one program keeps: three gates, all chunks of the product."""
        chunks = -(-units // self.block_k)
        return 3 * self.block_h * chunks * self.block_k * itemsize


@dataclass(frozen=True)
class Device:
    """What a configuration depends on: multiprocessors, shared memory per block in bytes, threads per warp."""

    processors: int
    shared_memory: int
    cooperative: bool = True
    warp_size: int = 32


def next_power_of_two(value: int) -> int:
    """Return the smallest power of two >= `value`, at least 16 (the matrix units' smallest tile)."""
    return max(16, 1 << (value - 1).bit_length())


def choose(units: int, batch: int, itemsize: int, device: Device, has_dropout: bool = False) -> LaunchConfig:
    """Return the configuration for a problem.

    Args:
        units: U. batch: B. itemsize: bytes of an element. device: its limits.
        has_dropout: whether there are recurrent dropout masks, which want registers of their own.

    Source: docs/design.md, "Three schedules".
    """
    # A quarter of the shared memory is left for operands and the compiler's scratch.
    budget = device.shared_memory * 3 // 4
    tiles = -(-max(batch, 1) // 16)
    whole = next_power_of_two(units)
    # Rows that are not 16-byte aligned are loaded element by element, and big blocks of their addresses spill.
    aligned = units % 16 == 0
    single = LaunchConfig(SINGLE, 16, whole, whole, 4 if whole <= 64 else 8)
    if single.weight_bytes(units, itemsize) <= budget and (aligned or whole <= 64):
        return single
    for block_h, warps in _persistent_blocks(itemsize, aligned, device.warp_size, has_dropout):
        config = LaunchConfig(PERSISTENT, 16, block_h, 64, warps)
        programs = -(-units // block_h) * tiles
        if config.weight_bytes(units, itemsize) <= budget and programs <= device.processors and device.cooperative:
            return config
    return LaunchConfig(STEPS, 16, 32, 32, 4)


def _persistent_blocks(itemsize: int, aligned: bool, warp_size: int, has_dropout: bool) -> tuple[tuple[int, int], ...]:
    """Return (block_h, num_warps) in the order tried: those that compile without spills, tests/test_ahead.py.

    Narrow blocks spread the feed of the weights over more multiprocessors; wide ones fit more batch tiles.
    """
    if not aligned:
        warps = 4 if warp_size > 32 else 8
        return (32, warps), (16, warps)
    return ((16, 4), (32, 2)) if itemsize < 4 and not has_dropout else ((32, 4), (16, 4))
