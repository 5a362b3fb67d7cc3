"""Steps of the asynchronous matrix products of four warps (wgmma): D (64,n) = A (64,k) B (k,n) + D.

Each warp computes the 16 rows of D that it holds. A is in registers or, as B is, in shared memory, which a descriptor
describes. The result is there when a group of products has been waited for: until then its registers hold NaN here, and
what the product reads must not be written. It reads past the ordinary way to shared memory, so that a
`fence.proxy.async` must come between a store and it. Source: NVIDIA, PTX ISA, "Asynchronous Warpgroup Level Matrix
Multiply-Accumulate Instructions"; the layouts' strides are those of CUTLASS, "mma_sm90_desc".
"""

from __future__ import annotations

import re

import numpy as np

from .conversions import FROM
from .exchanges import A8, A16, read_halves, read_tf32
from .memory import AccessError
from .ptx import Instruction, UnsupportedInstruction, number
from .races import TOGETHER
from .registers import LANES, Registers

_PRODUCT = re.compile(
    r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k(\d+)\.f32\.(?:bf16\.(bf16)|f16\.(f16)|tf32\.(tf32))"
)
# Bytes of a row of a swizzled block, by the descriptor's highest two bits.
_ROW_BYTES = {1: 128, 2: 64, 3: 32}


def make(instruction: Instruction, step_number: int, registers: Registers):
    """Return the step of `instruction`, or None where this module does not know it."""
    if not instruction.opcode.startswith(("wgmma.", "fence.proxy.async")):
        return None
    if instruction.guard is not None:
        raise UnsupportedInstruction(str(instruction))
    if instruction.opcode == "wgmma.fence.sync.aligned":
        return lambda warp: None  # orders registers, which a step here reads at once
    if instruction.opcode == "wgmma.commit_group.sync.aligned":
        return lambda warp: warp.products.commit()
    if instruction.opcode == "wgmma.wait_group.sync.aligned":
        left = number(instruction.operands[0])  # type: ignore[arg-type]
        return lambda warp: warp.products.wait(warp, left)
    if instruction.opcode.startswith("fence.proxy.async"):
        return lambda warp: warp.program.shared.open_to_products(warp.in_program)
    if match := _PRODUCT.fullmatch(instruction.opcode):
        n, k, *kinds = match.groups()
        return _multiply(instruction, step_number, registers, int(n), int(k), next(filter(None, kinds)))
    return None


class Products:
    """A warp's products under way.

    Attributes:
        results: by register, the group and the value that it will have. read: by group, what its products read.
    """

    def __init__(self):
        self.group = 0
        self.results: dict[int, tuple[int, np.ndarray]] = {}
        self.read: list[tuple[int, np.ndarray, int]] = []

    def commit(self) -> None:
        """End a group of products and begin the next."""
        self.group += 1

    def wait(self, warp, left: int) -> None:
        """Give the registers of all but the last `left` groups their values; what was read must still be the same."""
        done = self.group - left
        shadow = warp.program.shared.shadow
        for group, granules, step_number in self.read:
            if group < done:
                lanes = np.full(len(granules), TOGETHER, np.int32)
                shadow.read(granules, lanes, warp.in_program, step_number, False)
        self.read = [entry for entry in self.read if entry[0] >= done]
        for index, (group, value) in list(self.results.items()):
            if group < done:
                warp.rows["f32"][index][:] = value
                del self.results[index]


def _multiply(instruction, step_number, registers, n: int, k: int, kind: str):
    target, left, right, scale, *flags = instruction.operands
    d = [registers.index(o, "u32") for o in target]
    in_registers = isinstance(left, tuple)
    signs, transposed = [number(flag) for flag in flags[:2]], [bool(number(flag)) for flag in flags[2:]]
    if signs != [1, 1] or len(d) != n // 2:
        raise UnsupportedInstruction(str(instruction))
    # Whether B lies with its columns in a row of memory is the last flag, whether A does the one before.
    turned_b = transposed[-1] if transposed else False
    turned_a = transposed[0] if len(transposed) > 1 else False
    a = [registers.index(o, "u32") for o in left] if in_registers else registers.index(left, "u64")
    b, adds = registers.index(right, "u64"), registers.index(scale, "pred")
    places = A16 if kind != "tf32" else A8
    read = read_halves(FROM[kind]) if kind != "tf32" else read_tf32
    lane = np.arange(LANES)
    rows_of = lane // 4 + np.array([0, 0, 8, 8] * (n // 8))[:, None]
    columns_of = lane % 4 * 2 + (np.arange(n // 8)[:, None] * 8 + [0, 1, 0, 1]).reshape(-1, 1)

    def step(warp):
        rows, results = warp.rows, warp.products.results
        if len(warp.program.warps) % 4:
            raise UnsupportedInstruction(f"{instruction} by {len(warp.program.warps)} warps")
        if in_registers:
            own = np.empty((16, k))
            for where, value in zip(places, read(rows["u32"], a), strict=True):
                own[where] = value
        else:
            first = 16 * (warp.number % 4)
            own = _load(warp, step_number, int(rows["u64"][a][0]), slice(first, first + 16), k, kind, turned_a)
        other = _load(warp, step_number, int(rows["u64"][b][0]), slice(0, n), k, kind, turned_b)
        total = own @ other.T
        if rows["pred"][adds][0]:
            before = [results[i][1] if i in results else rows["f32"][i] for i in d]
            total[rows_of, columns_of] += np.array(before)
        # NaN until it has been waited for.
        for index, value in zip(d, total[rows_of, columns_of].astype(np.float32), strict=True):
            results[index] = warp.products.group, value
            rows["f32"][index][:] = np.nan

    return step


def _load(warp, step_number: int, descriptor: int, chosen: slice, k: int, kind: str, turned: bool) -> np.ndarray:
    """Return the rows `chosen` (rows, k) of A, or columns of B, that a descriptor describes."""
    size = 4 if kind == "tf32" else 2
    addresses = element_addresses(descriptor, np.arange(chosen.start, chosen.stop), np.arange(k), size, turned)
    memory = warp.program.shared
    units, inverse = np.unique(addresses // 16 * 16, return_inverse=True)
    lanes = np.full(len(units), TOGETHER, np.int32)
    count = 16 // memory.granule
    values = memory.load(units.astype(np.uint32), lanes, memory.granule, count, warp.in_program, step_number)
    _, granules = memory.place(units, memory.granule, count, step_number)
    if memory.closed is not None and memory.closed[granules].any():
        raise AccessError(f"{memory.shadow.steps[step_number]} reads shared memory stored without `fence.proxy.async`")
    warp.products.read.append((warp.products.group, granules, step_number))
    elements = np.ascontiguousarray(values).view(f"u{size}").reshape(len(units), -1)
    found = elements[inverse.reshape(addresses.shape), addresses % 16 // size]
    if kind == "tf32":
        return (found & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    return FROM[kind](found).astype(np.float64)


def element_addresses(descriptor: int, rows: np.ndarray, ks: np.ndarray, size: int, turned: bool) -> np.ndarray:
    """Return where in shared memory the elements (row, k) of an operand lie, (rows, ks).

    Rows are those of A, or the columns of B. `turned`: neighbouring rows, and not neighbouring k, lie side by side.
    """
    start, leading, stride = ((descriptor >> shift & 0x3FFF) * 16 for shift in (0, 16, 32))
    mode = descriptor >> 62 & 3
    if mode == 0 or descriptor >> 49 & 7:
        raise UnsupportedInstruction(f"descriptor {descriptor:#x}: no swizzle, or with a base offset")
    width = _ROW_BYTES[mode]
    row, k = rows[:, None], ks[None, :]
    if turned:
        per_block = width // size
        place = row // per_block * leading + row % per_block * size + k // 8 * stride + k % 8 * width
    else:
        place = row // 8 * stride + row % 8 * width + k * size
    address = start + place
    # Units of 16 bytes within a row change places by the number of the row in its block of 1024 or fewer bytes.
    return address ^ (address >> 7 & (width // 16 - 1)) << 4
