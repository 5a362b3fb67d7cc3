"""Steps of the instructions in which the lanes of a warp hand each other values: shuffles, sums, votes, matrix
products.

Which lane holds which element of a matrix: NVIDIA, PTX ISA, "Matrix Fragments for mma.m16n8k8" and "mma.m16n8k16".
"""

from __future__ import annotations

import numpy as np

from .conversions import FROM
from .ptx import Instruction, UnsupportedInstruction, number
from .registers import LANES, Registers

_LANE = np.arange(LANES)
_GROUP, _IN_GROUP = _LANE // 4, _LANE % 4
WHOLE_WARP = 0xFFFFFFFF


def make(instruction: Instruction, registers: Registers):
    """Return the step of `instruction`, or None where this module does not know it."""
    opcode = instruction.opcode
    if opcode.startswith("shfl.sync."):
        return _shuffle(instruction, registers)
    if opcode.startswith("redux.sync."):
        return _reduce(instruction, registers)
    if opcode.startswith("vote.sync."):
        return _vote(instruction, registers)
    if opcode.startswith("mma.sync.aligned."):
        return _multiply(instruction, registers)
    return None


def _shuffle(instruction, registers):
    target, value, source, clamp, members = instruction.operands
    form = instruction.opcode.split(".")[2]
    if form not in ("idx", "bfly") or number(clamp) != 31 or number(members) % 2**32 != WHOLE_WARP or "|" in target:
        raise UnsupportedInstruction(str(instruction))
    d, a, b = (registers.index(o, "u32") for o in (target, value, source))

    def step(warp):
        rows = warp.rows["u32"]
        lanes = rows[b] & 31 if form == "idx" else _LANE ^ (rows[b] & 31)
        rows[d][:] = rows[a][lanes]

    return step


def _reduce(instruction, registers):
    _, _, form, kind = instruction.opcode.split(".")
    functions = {"min": np.min, "max": np.max, "add": np.sum, "or": np.bitwise_or.reduce, "and": np.bitwise_and.reduce}
    function = functions[form]
    d, a = (registers.index(o, kind) for o in instruction.operands[:2])
    members = registers.index(instruction.operands[2], "u32")

    def step(warp):
        if (warp.rows["u32"][members] != WHOLE_WARP).any():
            raise UnsupportedInstruction(f"{instruction} by a part of a warp")
        rows = warp.rows[kind]
        rows[d][:] = function(rows[a])

    return step


def _vote(instruction, registers):
    """vote.sync.any and .all, of the whole warp."""
    _, _, form, _ = instruction.opcode.split(".")
    target, value, members = instruction.operands
    if form not in ("any", "all") or number(members) % 2**32 != WHOLE_WARP:
        raise UnsupportedInstruction(str(instruction))
    d, a = (registers.index(o, "pred") for o in (target, value))
    holds = np.any if form == "any" else np.all

    def step(warp):
        rows = warp.rows["pred"]
        rows[d][:] = holds(rows[a])

    return step


# For each register of a fragment, the row and the column of its elements, (elements of a register, lanes).
def _pairs(rows, columns):
    return [(np.stack([r, r]), np.stack([c, c + 1])) for r, c in zip(rows, columns, strict=True)]


A16 = _pairs([_GROUP, _GROUP + 8] * 2, [2 * _IN_GROUP] * 2 + [2 * _IN_GROUP + 8] * 2)
B16 = [(c, r) for r, c in _pairs([_GROUP] * 2, [2 * _IN_GROUP, 2 * _IN_GROUP + 8])]
A8 = list(zip([_GROUP, _GROUP + 8] * 2, [_IN_GROUP] * 2 + [_IN_GROUP + 4] * 2, strict=True))
B8 = list(zip([_IN_GROUP, _IN_GROUP + 4], [_GROUP] * 2, strict=True))
_C = list(zip([_GROUP, _GROUP, _GROUP + 8, _GROUP + 8], [2 * _IN_GROUP, 2 * _IN_GROUP + 1] * 2, strict=True))


def read_halves(decode):
    def read(rows, indices):
        return [decode(np.ascontiguousarray(rows[i].view(np.uint16).reshape(LANES, 2).T)) for i in indices]

    return read


def read_tf32(rows, indices):
    # The hardware ignores the low 13 bits of an operand.
    return [(rows[i] & np.uint32(0xFFFFE000)).view(np.float32) for i in indices]


_SHAPES = {
    "m16n8k16.row.col.f32.bf16.bf16.f32": (16, A16, B16, read_halves(FROM["bf16"])),
    "m16n8k16.row.col.f32.f16.f16.f32": (16, A16, B16, read_halves(FROM["f16"])),
    "m16n8k8.row.col.f32.tf32.tf32.f32": (8, A8, B8, read_tf32),
}


def _multiply(instruction, registers):
    """D = A B + C: A (16,k), B (k,8), C and D (16,8) in float32. Summed in float64 and rounded once."""
    shape = instruction.opcode.removeprefix("mma.sync.aligned.")
    if shape not in _SHAPES:
        raise UnsupportedInstruction(str(instruction))
    k, places_a, places_b, read = _SHAPES[shape]
    d, a, b, c = ([registers.index(o, "u32") for o in operand] for operand in instruction.operands)

    def step(warp):
        rows, floats = warp.rows["u32"], warp.rows["f32"]
        left, right, total = np.empty((16, k)), np.empty((k, 8)), np.empty((16, 8))
        for matrix, places, values in (
            (left, places_a, read(rows, a)),
            (right, places_b, read(rows, b)),
            (total, _C, [floats[i] for i in c]),
        ):
            for where, value in zip(places, values, strict=True):
                matrix[where] = value
        total += left @ right
        for where, i in zip(_C, d, strict=True):
            floats[i][:] = total[where]

    return step
