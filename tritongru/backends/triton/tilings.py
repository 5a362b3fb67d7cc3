"""Tilings of the resident kernels: which are right for a problem, and what stands against them.

Plain arithmetic, so it can be asked for any device without one, and without Triton.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...environment import triton_release
from ...tuning.configs import MOST_WAVES, Device, next_power_of_two

EXCHANGES = NO_EXCHANGE, MARKED = "none", "marked"
# What the kernels' language needs: triton.experimental.gluon with these products.
FIRST_RELEASE = (3, 6)
# Registers of a thread, of the 255 that it can have, by what compiled without spills in the time loop, see
# tests/kernels/test_resident_budgets.py; the first for one array of rows, the second for three. Where one program has
# all units, what weights and sums may take, and what the rows that are multiplied:
KEPT_REGISTERS, ROW_REGISTERS = (168, 150), (64, 192)
# Where programs wait for each other, what weights, sums and rows may take together, masks, resets and dropout among
# what compiled; of these, what addresses take more where the last part is shorter, and where there are 64 rows.
MARKED_REGISTERS, TAIL_REGISTERS, TALL_REGISTERS = (188, 168), 8, 24
GROUP_REGISTERS = 24  # of rows that are waited for at once, by replayed cycles
# Cycles of a step over those of 16 rows whose programs wait for each other, by the replay from 128 units on: of so many
# rows; of one program for all units, up to 64 and above.
ROW_COSTS, ALONE_COSTS = {16: 1.0, 32: 1.55, 64: 3.3}, (0.6, 1.6)
# Offsets within one step are 32 bits.
MOST_ELEMENTS = 2**31


@dataclass(frozen=True)
class Tiling:
    """How the work of one scan is spread.

    Attributes:
        block_b, block_h: rows and units of a program. warps_k, warps_n: warps along the sum, and across the units.
        exchange: how the programs of a batch tile hand each other their part: "marked", see resident_exchange.py, or
            "none" where one program has all units. shared_gates: of how many gates the weights lie in shared memory,
            and not in registers.
    """

    block_b: int
    block_h: int
    warps_k: int
    warps_n: int
    exchange: str
    shared_gates: int = 0

    def __str__(self) -> str:
        shared = f", weights of {self.shared_gates} gates in shared memory" if self.shared_gates else ""
        return f"{self.exchange} {self.block_b}x{self.block_h}, {self.warps_k}x{self.warps_n} warps{shared}"

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
        return -(-units // (self.warps_k * least)), least

    def groups(self, units: int, itemsize: int, arrays: int) -> int:
        """Return in how many equal groups the parts of so many arrays are waited for, one while the one before is
        multiplied: enough that their registers are few, few enough that products do not wait for each other.
        """
        parts, _ = self.parts(units, itemsize)
        least = max(2, -(-self.row_registers(units, itemsize, arrays) // GROUP_REGISTERS))
        return next(count for count in range(min(least, parts), parts + 1) if parts % count == 0)

    def depth(self, units: int, itemsize: int) -> int:
        """Return the units that are summed over, those of the padding among them."""
        count, part = self.parts(units, itemsize)
        return count * part * self.warps_k

    def weight_registers(self, units: int, itemsize: int) -> int:
        """Return the registers of a thread that the weights take."""
        kept = (3 - self.shared_gates) * self.block_h * self.depth(units, itemsize) * itemsize
        return -(-kept // (4 * 32 * self.num_warps))

    def sum_registers(self) -> int:
        """Return the registers of a thread that three products' sums take."""
        return 3 * self.block_b * self.block_h // (32 * self.warps_n)

    def row_registers(self, units: int, itemsize: int, arrays: int) -> int:
        """Return the registers of a thread that the rows take which it multiplies, of so many arrays."""
        return arrays * self.block_b * (self.depth(units, itemsize) // self.warps_k) * itemsize // 128

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


def padded_width(units: int, itemsize: int) -> int:
    """Return the units of whole pieces of 16 bytes, which is what a lane asks for at once."""
    piece = 16 // itemsize
    return -(-units // piece) * piece


def has_resident_kernels() -> bool:
    """Return whether the Triton at hand can compile these kernels."""
    release = triton_release()
    return release is not None and release >= FIRST_RELEASE


def choose(
    kernel: str, units: int, itemsize: int, batch: int, device: Device, drops: int = 0, members: int = 1
) -> Tiling | None:
    """Return the tiling for a problem, or None where none of them serves it.

    That of the least estimated time for all turns of the batch, of those with few launches where there are any.
    """
    able = [
        tiling
        for tiling in candidates(kernel, units, itemsize)
        if not reasons_against_tiling(tiling, kernel, units, itemsize, device, drops, members)
    ]

    def cost(tiling: Tiling) -> tuple[bool, float]:
        waves = count_waves(tiling, units, batch, device, members)
        alone = tiling.exchange == NO_EXCHANGE
        return waves > MOST_WAVES, waves * (ALONE_COSTS[units > 64] if alone else ROW_COSTS[tiling.block_b])

    return min(able, key=cost, default=None)


def candidates(kernel: str, units: int, itemsize: int) -> list[Tiling]:
    """Return the tilings worth a try; of two that differ in nothing but what lies in shared memory the faster first."""
    found = []
    if units <= 64:
        whole = next_power_of_two(units)
        # So many warps that no instruction budget is broken.
        warps = whole // 8 if kernel == "backward" else min(4, whole // 8)
        found.append(Tiling(16, whole, 1, warps, NO_EXCHANGE))
    elif units <= 128 and itemsize == 2:
        found.append(Tiling(16, 128, 1, 8, NO_EXCHANGE))
    # In rows above 1 KiB, 64 of them are spilled with masks.
    for block_b in (16, 32, 64) if units * itemsize <= 1024 else (16, 32):
        # Four warps as long as their registers hold what they multiply: forward, and backward.
        most = {16: (512, 384), 32: (256, 128), 64: (128, 128)}[block_b]
        is_wide = units * itemsize > 2 * most[kernel == "backward"]
        warps = 8 if is_wide else 4 if units > 64 else 2
        found += [Tiling(block_b, 16, warps, 1, MARKED, shared_gates) for shared_gates in (0, 1, 2, 3)]
    return found


def count_waves(tiling: Tiling, units: int, batch: int, device: Device, members: int = 1) -> int:
    """Return how many launches a batch takes, or turns on the multiprocessors where programs do not wait."""
    tiles = -(-max(batch, 1) // tiling.block_b)
    return -(-tiles // max(1, device.processors // (tiling.programs(units) * members)))


def reasons_against(
    kernel: str, units: int, dtype: str, precision: str, batch: int, device: Device, drops: int = 0,
    members: int = 1,
) -> list[str]:  # fmt: skip
    """Return why no resident kernel serves a call; empty: `choose` has a tiling for it.

    Args:
        dtype: "float32", "float16" or "bfloat16". precision: of float32 products. drops: recurrent dropout masks.
        members: scans in one launch.
    """
    reasons = []
    if not has_resident_kernels():
        release = triton_release()
        found = "none" if release is None else ".".join(map(str, release))
        reasons.append(f"the kernels with weights in registers need triton 3.6 or newer, found {found}")
    if not device.target.startswith("sm_"):
        reasons.append(
            f"the kernels with weights in registers are for NVIDIA devices, not for {device.target or 'this'}"
        )
    elif int(device.target.removeprefix("sm_")) < 80:
        reasons.append(f"the kernels with weights in registers need compute capability 8.0, not {device.target}")
    if dtype == "float32" and precision != "tf32":
        reasons.append(f"their products of float32 are in TF32, and precision is {precision!r}")
    size = 4 if dtype == "float32" else 2
    if max(3 * units, padded_width(units, size)) * batch >= MOST_ELEMENTS:
        reasons.append(f"{batch} rows of {units} units have more elements in a step than 32 bits count")
    if not reasons and choose(kernel, units, size, batch, device, drops, members) is None:
        if members > 1 and choose(kernel, units, size, batch, device, drops) is not None:
            reasons.append(f"{members} scans of units={units} cannot run at once")
        else:
            reasons.append(f"the recurrent weights of units={units} fit neither registers nor shared memory")
    return reasons


def reasons_against_tiling(
    tiling: Tiling, kernel: str, units: int, itemsize: int, device: Device, drops: int = 0, members: int = 1
) -> list[str]:
    """Return why a tiling cannot run a problem on `device`; the limits are those known without compiling."""
    reasons = []
    if tiling.exchange == NO_EXCHANGE and (tiling.block_h < units or tiling.warps_k > 1):
        reasons.append(f"block_h={tiling.block_h}, warps_k={tiling.warps_k}: no one program for units={units}")
    several = kernel == "backward" or drops == 3
    kept = tiling.weight_registers(units, itemsize) + tiling.sum_registers()
    rows = tiling.row_registers(units, itemsize, 3 if several else 1)
    there = tiling.max_registers() / 255
    if tiling.exchange == MARKED:
        # Rows come in groups, one while the one before is multiplied.
        groups = tiling.groups(units, itemsize, 3 if several else 1)
        kept += rows * min(2, groups) // groups
        kept += TAIL_REGISTERS * (tiling.depth(units, itemsize) > units) + TALL_REGISTERS * (tiling.block_b > 32)
        is_spilled = kept > there * MARKED_REGISTERS[several]
    else:
        is_spilled = kept > there * KEPT_REGISTERS[several] or rows > there * ROW_REGISTERS[several]
        kept += rows
    if is_spilled:
        reasons.append(f"{kept} registers of a thread for weights, sums and rows: some would be spilled")
    sums = 3 if kernel == "forward" or tiling.exchange == NO_EXCHANGE or drops == 3 else 1
    if (needed := tiling.shared_bytes(units, itemsize, sums)) > device.shared_memory:
        reasons.append(f"{needed} bytes of shared memory per program, {device.shared_memory} are there")
    if tiling.exchange != NO_EXCHANGE:
        if not device.cooperative:
            reasons.append("the device cannot run programs that wait for each other")
        if (programs := members * tiling.programs(units)) > device.processors:
            reasons.append(f"{programs} programs must run at once on {device.processors} multiprocessors")
    return reasons
