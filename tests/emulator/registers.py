"""Registers: one row of 32 lanes each, and the literals of a kernel as rows beside them."""

from __future__ import annotations

import numpy as np

from .ptx import WIDTHS, Instruction, Kernel, Operand, UnsupportedInstruction, number, register

LANES = 32
# The names under which a width's rows are read, by PTX type.
VIEWS = {
    "pred": (1, np.bool_), "b16": (16, np.uint16), "u16": (16, np.uint16), "s16": (16, np.int16),
    "b32": (32, np.uint32), "u32": (32, np.uint32), "s32": (32, np.int32), "f32": (32, np.float32),
    "b64": (64, np.uint64), "u64": (64, np.uint64), "s64": (64, np.int64), "f64": (64, np.float64),
}  # fmt: skip
_STORED = {1: np.bool_, 16: np.uint16, 32: np.uint32, 64: np.uint64}


class Registers:
    """Gives every register and literal of a kernel the index of a row."""

    def __init__(self, kernel: Kernel):
        self._count = {WIDTHS[prefix]: count for prefix, count in kernel.registers.items()}
        self._literals: dict[int, list[int]] = {width: [] for width in _STORED}

    def index(self, operand: Operand, kind: str) -> int:
        """Return the row of a register or literal that is read or written as `kind`."""
        width = VIEWS[kind][0]
        found = register(operand)
        if found is not None:
            if WIDTHS[found[0]] != width:
                raise UnsupportedInstruction(f"register {operand} used as {kind}")
            return found[1]
        if not isinstance(operand, str):
            raise UnsupportedInstruction(f"vector {operand} used as {kind}")
        literals = self._literals[width]
        literals.append(number(operand) % (1 << width) if width > 1 else bool(number(operand)))
        return self._count.get(width, 0) + len(literals) - 1

    def make(self) -> dict[str, list[np.ndarray]]:
        """Return the rows of one warp, by kind; registers begin as zeros."""
        rows = {}
        for width, stored in _STORED.items():
            literals = np.array(self._literals[width], stored)
            whole = np.zeros((self._count.get(width, 0) + len(literals), LANES), stored)
            whole[len(whole) - len(literals) :] = literals[:, None]
            for kind, (bits, element) in VIEWS.items():
                if bits == width:
                    rows[kind] = list(whole.view(element))
        return rows


def kind_of(instruction: Instruction, position: int = -1) -> str:
    """Return the type among an opcode's qualifiers, the last by default."""
    kinds = [part for part in instruction.opcode.split(".") if part in VIEWS]
    if not kinds:
        raise UnsupportedInstruction(f"{instruction} names no type")
    return kinds[position]
