"""Steps of the instructions that load, store and synchronise.

What a release and an acquire do to the order of things is in `races`. Source: NVIDIA, PTX ISA, "Data Movement and
Conversion Instructions" and "Parallel Synchronization and Communication Instructions".
"""

from __future__ import annotations

import re

import numpy as np

from .memory import Memory
from .ptx import WIDTHS, Instruction, UnsupportedInstruction, address, number, register
from .races import TOGETHER
from .registers import LANES, Registers

BARRIER, EXIT = -1, -2
_ALL = np.arange(LANES, dtype=np.int32)
_SPACES = {"global", "shared", "param"}
_ORDERS = {"acquire", "release", "acq_rel", "relaxed", "volatile"}
# How a transfer is cached, and scopes that all programs of a launch are in: not told apart. A narrower scope, and loads
# past the coherent caches (`nc`), are refused.
_IGNORED = {"ca", "cg", "cs", "lu", "cv", "wb", "wt", "gpu", "sys", "sync", "aligned", "m8n8"}
_ATOMIC = {
    "add": lambda old, value: old + value, "exch": lambda old, value: value, "min": min, "max": max,
    "and": lambda old, value: old & value, "or": lambda old, value: old | value, "xor": lambda old, value: old ^ value,
}  # fmt: skip


class Transfer:
    """What an opcode says: the space, the bytes of an element, their number, the order, and whatever else it names."""

    def __init__(self, instruction: Instruction):
        parts = instruction.opcode.split(".")
        kinds = [part for part in parts if re.fullmatch(r"[bus](8|16|32|64)", part)]
        vectors = [int(part[1:]) for part in parts if re.fullmatch(r"v[248]", part)]
        self.kind = kinds[-1] if kinds else "b8"
        self.width, self.count = int(self.kind[1:]) // 8, vectors[0] if vectors else 1
        self.space = next((part for part in parts if part in _SPACES), "generic")
        self.order = next((part for part in parts if part in _ORDERS), None)
        known = _SPACES | _ORDERS | _IGNORED | set(kinds) | {f"v{self.count}"}
        self.rest = [part for part in parts[1:] if part not in known]


def make(instruction: Instruction, number_of_step: int, registers: Registers):
    """Return the step of `instruction`, or None where this module does not know it."""
    name = instruction.opcode.split(".")[0]
    maker = _MAKERS.get(name)
    return maker(instruction, number_of_step, registers) if maker else None


def shared_granule(instructions: tuple[Instruction, ...]) -> int:
    """Return the bytes of the narrowest access to shared memory: what the shadow need not tell apart."""
    widths = [
        Transfer(i).width
        for i in instructions
        if re.match(r"(ld|st)\b.*\.shared\b", i.opcode) and i.opcode[:3] != "stm"
    ]
    return min([4, *widths])


def _lanes(instruction, registers):
    """Return a function of a warp: the numbers of the lanes that take part."""
    if instruction.guard is None:
        return lambda warp: _ALL
    guard, negated = registers.index(instruction.guard, "pred"), instruction.negated

    def lanes(warp):
        return _ALL[warp.rows["pred"][guard] != negated]

    return lanes


def _address(operand, space, registers):
    """Return a function of a warp: its 32 addresses."""
    base, offset = address(operand)
    kind = "u64" if space == "global" else "u32"
    index, moved = registers.index(base, kind), np.dtype(f"u{8 if kind == 'u64' else 4}").type(offset % 2**32)
    if not offset:
        return lambda warp: warp.rows[kind][index]
    if offset < 0:
        raise UnsupportedInstruction(f"address {operand!r}")
    return lambda warp: warp.rows[kind][index] + moved


def _memory(space, step_number):
    """Return a function of a warp and addresses: the memory they lie in, and the warp as its shadow knows it."""
    if space == "shared":
        return lambda warp, addresses: (warp.program.shared, warp.in_program)
    if space == "global":
        return lambda warp, addresses: (warp.program.grid.memory.at(addresses, step_number), warp.in_grid)
    raise UnsupportedInstruction(f"memory of kind {space!r}")


def _several(operand):
    return operand if isinstance(operand, tuple) else (operand,)


def _load(instruction, step_number, registers):
    transfer = Transfer(instruction)
    _require(instruction, not transfer.rest and transfer.order in (None, "acquire", "relaxed", "volatile"))
    targets = _several(instruction.operands[0])
    held = f"{'s' if transfer.kind[0] == 's' else 'u'}{WIDTHS[register(targets[0])[0]]}"
    indices = [registers.index(target, held) for target in targets]
    if transfer.space == "param":
        return _load_parameter(instruction, transfer, indices[0], held)
    lanes, where = _lanes(instruction, registers), _address(instruction.operands[1], transfer.space, registers)
    find, width, count = _memory(transfer.space, step_number), transfer.width, transfer.count
    signed = np.dtype(f"i{width}") if held[0] == "s" else np.dtype(f"u{width}")
    _require(instruction, count == len(indices))
    strong, acquires = transfer.order is not None, transfer.order == "acquire"

    def step(warp):
        chosen, addresses, rows = lanes(warp), where(warp), warp.rows[held]
        some = len(chosen) < LANES
        if some:
            if not len(chosen):
                return
            addresses = addresses[chosen]
        memory, actor = find(warp, addresses)
        values = memory.load(addresses, chosen, width, count, actor, step_number, strong).view(signed)
        for i, index in enumerate(indices):
            if some:
                rows[index][chosen] = values[:, i]
            else:
                rows[index][:] = values[:, i]
        if acquires:
            for one in addresses:
                warp.acquire(int(one))

    return step


def _load_parameter(instruction, transfer, index, held):
    name, offset = address(instruction.operands[1])
    _require(instruction, offset == 0 and instruction.guard is None)
    bits, signed = 8 * transfer.width, transfer.kind[0] == "s"

    def step(warp):
        value = warp.program.grid.parameters[name] % (1 << bits)
        if signed and value >> (bits - 1):
            value -= 1 << bits
        warp.rows[held][index][:] = value

    return step


def _store(instruction, step_number, registers):
    transfer = Transfer(instruction)
    _require(instruction, not transfer.rest and transfer.order in (None, "release", "relaxed", "volatile"))
    sources = _several(instruction.operands[1])
    # A register may be wider than what is stored of it.
    found = register(sources[0])
    width = max(8 * transfer.width, WIDTHS[found[0]] if found else 16)
    indices = [registers.index(source, f"u{width}") for source in sources]
    _require(instruction, len(indices) == transfer.count)
    lanes, where = _lanes(instruction, registers), _address(instruction.operands[0], transfer.space, registers)
    find, element = _memory(transfer.space, step_number), np.dtype(f"u{transfer.width}")
    strong, releases = transfer.order is not None, transfer.order == "release"

    def step(warp):
        chosen, addresses, rows = lanes(warp), where(warp), warp.rows[f"u{width}"]
        if not len(chosen):
            return
        values = np.stack([rows[index][chosen] for index in indices], 1).astype(element, copy=False)
        addresses = addresses[chosen]
        memory, actor = find(warp, addresses)
        memory.store(addresses, chosen, values, transfer.width, actor, step_number, strong)
        if transfer.space == "global":
            for one in addresses:
                warp.overwrite(int(one), releases)

    return step


def _atomic(instruction, step_number, registers):
    """atom and red: lane after lane, as a device may."""
    transfer = Transfer(instruction)
    _require(instruction, len(transfer.rest) == 1 and transfer.rest[0] in _ATOMIC and transfer.count == 1)
    change, kind = _ATOMIC[transfer.rest[0]], transfer.kind.replace("b", "u")
    *target, place, value = instruction.operands
    source, result = registers.index(value, kind), [registers.index(t, kind) for t in target]
    lanes, where = _lanes(instruction, registers), _address(place, transfer.space, registers)
    find, width = _memory(transfer.space, step_number), transfer.width
    acquires, releases = transfer.order in ("acquire", "acq_rel"), transfer.order in ("release", "acq_rel")

    def step(warp):
        chosen, addresses, rows = lanes(warp), where(warp), warp.rows[kind]
        for lane in chosen:
            here, one = chosen[chosen == lane], addresses[lane : lane + 1]
            memory, actor = find(warp, one)
            old = memory.load(one, here, width, 1, actor, step_number, True).view(rows[source].dtype)
            new = np.array([[change(int(old[0, 0]), int(rows[source][lane])) % (1 << 8 * width)]], f"u{width}")
            memory.store(one, here, new, width, actor, step_number, True)
            for index in result:
                rows[index][lane] = old[0, 0]
            if acquires:
                warp.acquire(int(one[0]))
            if releases:
                warp.release(int(one[0]))

    return step


def _load_bytes(memory: Memory, addresses, lanes, size: int, actor, step_number: int) -> np.ndarray:
    return memory.load(addresses, lanes, memory.granule, size // memory.granule, actor, step_number).view(np.uint8)


def _prefetch(instruction, step_number, registers):
    """prefetch: nothing that anybody sees, but the address must lie in a buffer."""
    _require(instruction, instruction.opcode == "prefetch.global.L2")
    lanes, where = _lanes(instruction, registers), _address(instruction.operands[0], "global", registers)
    find = _memory("global", step_number)

    def step(warp):
        chosen = lanes(warp)
        if len(chosen):
            addresses = where(warp)[chosen]
            memory, _ = find(warp, addresses)
            memory.place(addresses, memory.granule, 1, step_number)

    return step


def _copy(instruction, step_number, registers):
    """cp.async: what it copies is there when a group of copies has been waited for, and not before."""
    opcode = instruction.opcode
    if opcode == "cp.async.commit_group":
        return _commit
    if opcode == "cp.async.wait_group":
        left = number(instruction.operands[0])
        return lambda warp: _wait(warp, left)
    _require(instruction, opcode in ("cp.async.ca.shared.global", "cp.async.cg.shared.global"))
    to, start, size_text, *given = instruction.operands
    size = number(size_text)
    target, source = _address(to, "shared", registers), _address(start, "global", registers)
    taken = registers.index(given[0], "u32") if given else None
    lanes = _lanes(instruction, registers)

    def step(warp):
        chosen = lanes(warp)
        shared, values = warp.program.shared, np.zeros((LANES, size), np.uint8)
        copied = chosen
        if taken is not None:
            sizes = warp.rows["u32"][taken]
            _require(instruction, bool(np.isin(sizes[chosen], (0, size)).all()))
            copied = chosen[sizes[chosen] == size]
        if len(copied):
            addresses = source(warp)[copied]
            memory = warp.program.grid.memory.at(addresses, step_number)
            values[copied] = _load_bytes(memory, addresses, copied, size, warp.in_grid, step_number)
        if len(chosen):
            width = shared.granule
            places = shared.begin_copy(target(warp)[chosen], chosen, width, size // width, warp.in_program, step_number)
            warp.copies.append((places, values[chosen].view(f"u{width}"), step_number))

    return step


def _commit(warp):
    warp.groups.append(warp.copies)
    warp.copies = []


def _wait(warp, left: int):
    done = len(warp.groups) - left
    for group in warp.groups[: max(done, 0)]:
        for places, values, step_number in group:
            warp.program.shared.end_copy(places, values, warp.program.shared.granule, warp.in_program, step_number)
    del warp.groups[: max(done, 0)]


def _matrix(instruction, step_number, registers):
    """ldmatrix and stmatrix: one to four matrices of eight rows of eight 16-bit elements, a row per address."""
    transfer = Transfer(instruction)
    loads, transposed = instruction.opcode.startswith("ld"), "trans" in transfer.rest
    (count,) = (int(part[1:]) for part in transfer.rest if part in ("x1", "x2", "x4"))
    _require(instruction, transfer.space == "shared" and instruction.guard is None and transfer.width == 2)
    place, vector = instruction.operands[::-1] if loads else instruction.operands
    indices = [registers.index(o, "u32") for o in _several(vector)]
    where = _address(place, "shared", registers)
    # Lane 4 i + j has the elements 2 j and 2 j + 1 of row i; of column i if transposed.
    together, lane = np.full(8 * count, TOGETHER, np.int32), np.arange(LANES)[:, None]
    row, column = lane // 4 + np.zeros((1, 2), int), lane % 4 * 2 + np.arange(2)
    if transposed:
        row, column = column, row

    def step(warp):
        shared, rows, addresses = warp.program.shared, warp.rows["u32"], where(warp)[: 8 * count]
        if loads:
            values = _load_bytes(shared, addresses, together, 16, warp.in_program, step_number)
            matrices = values.view(np.uint16).reshape(count, 8, 8)
            for matrix, index in zip(matrices, indices, strict=True):
                rows[index][:] = matrix[row, column].view(np.uint32)[:, 0]
        else:
            matrices = np.empty((count, 8, 8), np.uint16)
            for matrix, index in zip(matrices, indices, strict=True):
                matrix[row, column] = rows[index].view(np.uint16).reshape(LANES, 2)
            width = shared.granule
            values = matrices.reshape(8 * count, 8).view(np.uint8).view(f"u{width}")
            shared.store(addresses, together, values, width, warp.in_program, step_number)

    return step


def _barrier(instruction, step_number, registers):
    _require(instruction, instruction.guard is None)
    if instruction.opcode == "bar.warp.sync":
        _require(instruction, instruction.operands == ("-1",))
        return lambda warp: warp.program.grid.clocks.pass_warp_barrier(warp.in_grid.number)
    _require(instruction, instruction.opcode == "bar.sync" and instruction.operands == ("0",))
    return lambda warp: BARRIER


def _exit(instruction, step_number, registers):
    _require(instruction, instruction.guard is None)
    return lambda warp: EXIT


def _require(instruction: Instruction, holds: bool) -> None:
    if not holds:
        raise UnsupportedInstruction(str(instruction))


_MAKERS = {
    "ld": _load, "st": _store, "atom": _atomic, "red": _atomic, "prefetch": _prefetch, "cp": _copy, "ldmatrix": _matrix,
    "stmatrix": _matrix, "bar": _barrier, "ret": _exit, "exit": _exit,
}  # fmt: skip
