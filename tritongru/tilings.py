"""Tilings of the resident kernels: which are right for a problem, and what stands against them.

Plain arithmetic, so it can be asked for any device without one, and without Triton.
"""

from __future__ import annotations

from dataclasses import dataclass

from .configs import Device, next_power_of_two
from .releases import triton_release

EXCHANGES = NO_EXCHANGE, COUNTER, TAGGED = "none", "counter", "tagged"
# What the kernels' language needs: triton.experimental.gluon with these products.
FIRST_RELEASE = (3, 6)
# Registers of a thread for weights, beside what the rest of a step needs: compiled, tests/test_resident_budgets.py.
WEIGHT_REGISTERS = {"forward": 144, "backward": 96}
# Offsets within one step are 32 bits.
MOST_ELEMENTS = 2**31


@dataclass(frozen=True)
class Tiling:
    """How the work of one scan is spread.

    Attributes:
        block_b, block_h: rows and units of a program. warps_k, warps_n: warps along the sum, and across the units.
        exchange: how the programs of a batch tile hand each other their part: "counter", "tagged", or "none" where one
            program has all units. shared_gates: of how many gates the weights lie in shared memory, and not in registers.
    """

    block_b: int
    block_h: int
    warps_k: int
    warps_n: int
    exchange: str
    shared_gates: int = 0

    @property
    def num_warps(self) -> int:
        """Warps of a program."""
        return self.warps_k * self.warps_n

    def parts(self, units: int, itemsize: int) -> tuple[int, int]:
        """Return NK and PART: how many parts of how many units each warp multiplies."""
        if self.exchange == NO_EXCHANGE:
            return 1, next_power_of_two(units)
        # With fewer units than this the fragments of a product would silently take each other's values.
        least = 4 * (16 // itemsize)
        if self.exchange == TAGGED:
            # One wait for all that a warp multiplies.
            return 1, max(least, _power_of_two(-(-units // self.warps_k)))
        return -(-units // (self.warps_k * least)), least

    def depth(self, units: int, itemsize: int) -> int:
        """Return the units that are summed over, those of the padding among them."""
        count, part = self.parts(units, itemsize)
        return count * part * self.warps_k

    def weight_registers(self, units: int, itemsize: int) -> int:
        """Return the registers of a thread that the weights take."""
        kept = (3 - self.shared_gates) * self.block_h * self.depth(units, itemsize) * itemsize
        return -(-kept // (4 * 32 * self.num_warps))

    def shared_bytes(self, units: int, itemsize: int, sums: int) -> int:
        """Return the bytes of shared memory; `sums`: how many products meet there at once."""
        weights = self.shared_gates * self.block_h * self.depth(units, itemsize) * itemsize
        if self.exchange == NO_EXCHANGE:
            return weights + sums * self.block_b * self.depth(units, itemsize) * itemsize
        meeting = sums * self.warps_k * self.block_b * self.block_h * 4 if self.warps_k > 1 else 0
        return weights + meeting

    def programs(self, units: int) -> int:
        """Return the programs of a batch tile."""
        return 1 if self.exchange == NO_EXCHANGE else -(-units // self.block_h)

    def max_registers(self) -> int:
        """Return the registers that a thread may have: all, for a program alone on its multiprocessor.

        Without saying so the assembler saves registers, and puts loads of the state between the products, where each
        costs a full latency.
        """
        return min(255, 65536 // (32 * self.num_warps))


def _power_of_two(value: int) -> int:
    return 1 << (value - 1).bit_length()


def choose(kernel: str, units: int, itemsize: int, batch: int, device: Device) -> Tiling | None:
    """Return the tiling for a problem, or None where none of them serves it.

    The first of `candidates` of which all batch tiles run at once, or with the fewest waves.
    """
    able = [
        tiling
        for tiling in candidates(kernel, units, itemsize)
        if not reasons_against_tiling(tiling, kernel, units, itemsize, device)
    ]
    return min(able, key=lambda tiling: count_waves(tiling, units, batch, device), default=None)


def candidates(kernel: str, units: int, itemsize: int) -> list[Tiling]:
    """Return the tilings worth a try, the fastest for few rows first (docs/tuning.md)."""
    found = []
    if units <= 64:
        whole = next_power_of_two(units)
        found.append(Tiling(16, whole, 1, whole // 16, NO_EXCHANGE))
    warps = 8 if units > 256 or (kernel == "backward" and units > 128) else 4 if units > 64 else 2
    exchange = TAGGED if itemsize == 2 and units <= 512 else COUNTER
    for block_b in (16, 32, 64):
        for shared_gates in (0, 1, 2, 3):
            found.append(Tiling(block_b, 16, warps, 1, exchange if block_b == 16 else COUNTER, shared_gates))
    return found


def count_waves(tiling: Tiling, units: int, batch: int, device: Device, members: int = 1) -> int:
    """Return how many launches a batch takes, or turns on the multiprocessors where programs do not wait."""
    tiles = -(-max(batch, 1) // tiling.block_b)
    return -(-tiles // max(1, device.processors // (tiling.programs(units) * members)))


def reasons_against(
    kernel: str, units: int, dtype: str, precision: str, batch: int, device: Device, members: int = 1
) -> list[str]:
    """Return why no resident kernel serves a call; empty: `choose` has a tiling for it.

    Args:
        dtype: "float32", "float16" or "bfloat16". precision: of float32 products.
    """
    reasons = []
    release = triton_release()
    if release is None or release < FIRST_RELEASE:
        found = "none" if release is None else ".".join(map(str, release))
        reasons.append(f"the kernels with weights in registers need triton 3.6 or newer, found {found}")
    if not device.target.startswith("sm_"):
        reasons.append(f"the kernels with weights in registers are for NVIDIA devices, not for {device.target or 'this'}")
    elif int(device.target.removeprefix("sm_")) < 80:
        reasons.append(f"the kernels with weights in registers need compute capability 8.0, not {device.target}")
    if dtype == "float32" and precision != "tf32":
        reasons.append(f"their products of float32 are in TF32, and precision is {precision!r}")
    if 3 * units * batch >= MOST_ELEMENTS:
        reasons.append(f"{batch} rows of {units} units have more elements in a step than 32 bits count")
    if not reasons:
        size = 4 if dtype == "float32" else 2
        tiling = choose(kernel, units, size, batch, device)
        if tiling is None:
            reasons.append(f"the recurrent weights of units={units} fit neither registers nor shared memory")
        elif members * tiling.programs(units) > device.processors:
            reasons.append(f"{members} scans of {tiling.programs(units)} programs each must run at once")
    return reasons


def reasons_against_tiling(tiling: Tiling, kernel: str, units: int, itemsize: int, device: Device) -> list[str]:
    """Return why a tiling cannot run a problem on `device`; the limits are those known without compiling."""
    reasons = []
    if tiling.exchange == TAGGED and itemsize != 2:
        reasons.append("tagged words hold values of 16 bits")
    if tiling.exchange == NO_EXCHANGE and tiling.block_h < units:
        reasons.append(f"block_h={tiling.block_h}: one program does not hold units={units}")
    # Rows beyond 16 need registers for their sums and fragments.
    room = WEIGHT_REGISTERS[kernel] - 48 * (tiling.block_b // 16 - 1) * (2 if kernel == "backward" else 1) // 2
    if (registers := tiling.weight_registers(units, itemsize)) > max(room, 0):
        reasons.append(f"{registers} registers of a thread for weights, {max(room, 0)} are free")
    sums = 3 if kernel == "forward" or tiling.exchange == NO_EXCHANGE else 1
    if (needed := tiling.shared_bytes(units, itemsize, sums)) > device.shared_memory:
        reasons.append(f"{needed} bytes of shared memory per program, {device.shared_memory} are there")
    if tiling.exchange != NO_EXCHANGE:
        if not device.cooperative:
            reasons.append("the device cannot run programs that wait for each other")
        if (programs := tiling.programs(units)) > device.processors:
            reasons.append(f"{programs} programs of a tile must run at once on {device.processors} multiprocessors")
    return reasons
