"""Launch configurations: which schedule and which tile sizes for a problem on a device.

The choice is a formula of the device's shared memory and multiprocessors, never of T, and of B only through the number
of batch tiles. Everything here is plain arithmetic, so it can be asked for any device without one; one rule also asks
which Triton is installed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..environment import triton_release

SINGLE, PERSISTENT, STREAMED, STEPS = SCHEDULES = "single", "persistent", "streamed", "steps"
# 32-bit words from the counter of one batch tile to the next: a cache line.
COUNTER_STRIDE = 32
# float32 sums a thread may hold: three of them per output, beside operands and addresses, in at most 255 registers.
MAX_SUMS_PER_THREAD = 48
# Launches one after another of programs that wait for each other; with more rows, one launch per step does not wait.
MOST_WAVES = 4
# Triton before this lets a product of 64 rows read what an asynchronous copy has brought without `fence.proxy.async`
# between the two, on the devices whose products read shared memory by themselves.
FENCED_COPIES = (3, 7)
READ_SHARED_MEMORY = ("sm_90", "sm_100")


@dataclass(frozen=True)
class LaunchConfig:
    """How a scan kernel is launched.

    Attributes:
        schedule: "single" (one program per batch tile), "persistent" (several, with an exchange per step), "streamed"
            (the same, but the weights do not stay) or "steps" (one launch per step).
        block_b, block_h, block_k: rows, units and chunk of the product, powers of two from 16 up.
        num_warps: warps of a program.
    """

    schedule: str
    block_b: int
    block_h: int
    block_k: int
    num_warps: int = 4

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ValueError(f"`schedule` must be one of {', '.join(map(repr, SCHEDULES))}, got {self.schedule!r}")
        for name in ("block_b", "block_h", "block_k"):
            value = getattr(self, name)
            if value < 16 or value & (value - 1):
                raise ValueError(f"`{name}` must be a power of two, at least 16, got {value}")

    def __str__(self) -> str:
        return f"{self.schedule} {self.block_b}x{self.block_h}x{self.block_k}, {self.num_warps} warps"

    @property
    def waits(self) -> bool:
        """Whether the programs of a batch tile wait for each other inside one launch."""
        return self.schedule in (PERSISTENT, STREAMED)

    @property
    def streams(self) -> bool:
        """Whether the recurrent weights are read from memory at every step."""
        return self.schedule in (STREAMED, STEPS)

    def weight_bytes(self, units: int, itemsize: int) -> int:
        """Return the bytes of recurrent weights one program keeps: three gates, all chunks of the product."""
        chunks = -(-units // self.block_k)
        return 3 * self.block_h * chunks * self.block_k * itemsize


@dataclass(frozen=True)
class Device:
    """What a configuration depends on: multiprocessors, shared memory per block in bytes, threads per warp.

    `name` and `target` ("sm_90", "gfx942") say which tuning table describes the device; empty: none does.
    """

    processors: int
    shared_memory: int
    cooperative: bool = True
    warp_size: int = 32
    name: str = ""
    target: str = ""


def chunks_in_flight(config: LaunchConfig, chunks: int, itemsize: int, planes: int) -> int:
    """Return how many of a product's chunks are loaded before the first is multiplied.

    Args:
        chunks: of the product. itemsize: bytes of an element. planes: arrays multiplied at once, 1 forward, 3 backward.

    As many as 64 registers of a thread hold.
    """
    registers = config.block_b * config.block_k * itemsize * planes / (4 * 32 * config.num_warps)
    return max(1, min(chunks, int(64 / registers)))


def next_power_of_two(value: int) -> int:
    """Return the smallest power of two >= `value`, at least 16 (the matrix units' smallest tile)."""
    return max(16, 1 << (value - 1).bit_length())


def operand_bytes(config: LaunchConfig, units: int, itemsize: int, planes: int) -> int:
    """Return the bytes of shared memory for the rows of a product, beside the weights: the chunks in flight.

    Args: as `chunks_in_flight`. Exact for NVIDIA devices and half precision, tests/kernels/test_ahead.py.
    """
    chunks = chunks_in_flight(config, -(-units // config.block_k), itemsize, planes)
    return chunks * config.block_b * config.block_k * itemsize * planes


def choose(units: int, batch: int, itemsize: int, device: Device, has_dropout: bool = False) -> LaunchConfig:
    """Return the configuration for a problem.

    Args:
        units: U. batch: B. itemsize: bytes of an element. device: its limits.
        has_dropout: whether there are recurrent dropout masks, which want registers of their own.

    Source: docs/kernels.md, "Four schedules".
    """
    if (single := choose_single(units, itemsize, device)) is not None:
        return single
    aligned = units % 16 == 0
    # In float32, and on Ampere and older, chunks twice as wide need a few registers more than there are.
    block_k = 32 if itemsize == 4 or device.shared_memory < 200 * 1024 else 64
    blocks = _persistent_blocks(itemsize, aligned, device, has_dropout)
    resident = [LaunchConfig(PERSISTENT, block_b, block_h, block_k, warps) for block_b, block_h, warps in blocks]
    waiting = [
        [config for config in resident if _fits(config, units, itemsize, device)],
        [LaunchConfig(STREAMED, block_b, 32, 32, 4) for block_b in ((16, 32) if aligned else (16,))],
    ]
    for configs in waiting:
        able = [(waves, config) for config in configs if (waves := count_waves(config, units, batch, device))]
        waves, config = min(able, key=lambda pair: pair[0], default=(0, None))
        if config is not None and waves <= MOST_WAVES:
            return config
    return LaunchConfig(STEPS, 16, 32, 32, 4)


def choose_single(units: int, itemsize: int, device: Device) -> LaunchConfig | None:
    """Return the configuration where one program holds all units of a row; None where it cannot, or spills."""
    single = _program_of_all(units)
    # Rows that are not 16-byte aligned are loaded element by element, and big blocks of their addresses spill.
    aligned = units % 16 == 0
    fits = single.weight_bytes(units, itemsize) <= weight_budget(device) and (aligned or single.block_h <= 64)
    return single if fits else None


def choose_with_norm(units: int, itemsize: int, device: Device) -> LaunchConfig | None:
    """Return the configuration for sums that are normalised, as `choose_single`."""
    single = choose_single(norm_width(units), itemsize, device)
    # The normalised sums and their scale are in registers too. Warps of 64 threads have room for them.
    wants_warps = single is not None and single.block_h >= 64 and device.warp_size == 32
    return replace(single, num_warps=8) if single is not None and wants_warps else single


def bytes_of_one_program(units: int, itemsize: int) -> int:
    """Return the bytes of recurrent weights that a program with all units of a row keeps."""
    return _program_of_all(units).weight_bytes(units, itemsize)


def _program_of_all(units: int) -> LaunchConfig:
    whole = next_power_of_two(units)
    return LaunchConfig(SINGLE, 16, whole, whole, 4 if whole <= 64 else 8)


def norm_width(units: int) -> int:
    """Return how many units the rows have that kernels with a norm are given: zeros align wide ones.

    Up to 64 there are registers enough to load rows by element, with an address for each.
    """
    return units if units <= 64 else -(-units // 16) * 16


def weight_budget(device: Device) -> int:
    """Return the bytes of shared memory for weights where it is not known what else will be there."""
    return device.shared_memory * 3 // 4


def _fits(config: LaunchConfig, units: int, itemsize: int, device: Device) -> bool:
    weights = config.weight_bytes(units, itemsize)
    if itemsize == 4 or device.warp_size != 32:
        return weights <= weight_budget(device)
    # Both directions; 1 KiB for sums over warps.
    operands = max(operand_bytes(config, units, itemsize, planes) for planes in (1, 3))
    return weights + operands + 1024 <= device.shared_memory


def _persistent_blocks(
    itemsize: int, aligned: bool, device: Device, has_dropout: bool
) -> tuple[tuple[int, int, int], ...]:
    """Return (block_b, block_h, num_warps) in the order tried: those that compile without spills.

    tests/kernels/test_ahead.py compiles them. Narrow blocks spread the feed of the weights over more multiprocessors;
    wide and tall ones fit more rows.
    """
    if not aligned:
        warps = 4 if device.warp_size > 32 else 8
        return (16, 32, warps), (16, 16, warps)
    if itemsize == 4 or has_dropout:
        return (16, 32, 4), (16, 16, 4)
    blocks = (16, 16, 4), (16, 32, 2)
    return blocks if device.warp_size > 32 else (*blocks, (32, 16, 4), (32, 32, 8))


def count_waves(config: LaunchConfig, units: int, batch: int, device: Device) -> int:
    """Return how many launches a batch takes whose programs wait for each other; 0 if a tile's do not fit at once."""
    together = tiles_at_once(config, units, device)
    return -(-count_programs(config, units, batch) // (together * -(-units // config.block_h))) if together else 0


def tiles_at_once(config: LaunchConfig, units: int, device: Device) -> int:
    """Return the batch tiles of which all programs are resident at once, for programs that wait for each other."""
    return device.processors // -(-units // config.block_h) if device.cooperative else 0


def reasons_against(config: LaunchConfig, units: int, batch: int, itemsize: int, device: Device) -> list[str]:
    """Return why `config` cannot run this problem on `device`; the limits are the ones known without compiling."""
    reasons = []
    if config.num_warps not in (1, 2, 4, 8, 16):
        reasons.append(f"num_warps={config.num_warps} is not 1, 2, 4, 8 or 16")
    elif 3 * config.block_b * config.block_h > MAX_SUMS_PER_THREAD * config.num_warps * device.warp_size:
        reasons.append(
            f"block_b={config.block_b} by block_h={config.block_h} need more than {MAX_SUMS_PER_THREAD} sums "
            f"per thread of {config.num_warps} warps"
        )
    if config.schedule == SINGLE and (config.block_h < units or config.block_k != config.block_h):
        reasons.append(f"block_h={config.block_h}, block_k={config.block_k}: one program does not hold units={units}")
    if not config.streams and (needed := config.weight_bytes(units, itemsize)) > device.shared_memory:
        reasons.append(f"{needed} bytes of weights per program, {device.shared_memory} of shared memory")
    if config.streams and config.block_b >= 64 and config.num_warps >= 4 and device.target in READ_SHARED_MEMORY:
        if (release := triton_release()) is not None and release < FENCED_COPIES:
            found = ".".join(map(str, release))
            reasons.append(
                f"triton {found} puts no fence between the copies and the products of block_b={config.block_b}"
            )
    if config.waits:
        if not device.cooperative:
            reasons.append("the device cannot run programs that wait for each other")
        if (programs := -(-units // config.block_h)) > device.processors:
            reasons.append(f"{programs} programs of a tile must run at once on {device.processors} multiprocessors")
    return reasons


def count_programs(config: LaunchConfig, units: int, batch: int) -> int:
    """Return the programs of a scan: those that share a batch tile, times the tiles."""
    tiles = -(-max(batch, 1) // config.block_b)
    return tiles * (1 if config.schedule == SINGLE else -(-units // config.block_h))


def describe(config: LaunchConfig, units: int, batch: int, itemsize: int, device: Device) -> str:
    """Return in one sentence why `config` suits the problem: what is kept where, and how many programs run."""
    programs, kept = count_programs(config, units, batch), config.weight_bytes(units, itemsize)
    if config.schedule == SINGLE:
        return f"all recurrent weights ({kept} bytes) fit one program, so none waits for another; {programs} programs"
    if config.waits:
        waves = count_waves(config, units, batch, device)
        where = f"run at once on {device.processors} multiprocessors"
        turns = f"all {programs} programs {where}" if waves == 1 else f"{programs} programs {where} in {waves} waves"
        if config.schedule == STREAMED:
            return f"the recurrent weights do not stay on the chip; {turns}, so that one launch does for all steps"
        return f"a program keeps {kept} bytes of recurrent weights for {config.block_h} units, and {turns}"
    return (
        f"the recurrent weights do not stay on {device.processors} multiprocessors for this many units and rows: "
        f"one launch per step of {programs} programs"
    )
