"""Steps of floating point arithmetic in other formats than plain float32.

    f16, bf16           one number in a register of 16 bits
    f16x2, bf16x2       two in a register of 32 bits, the first in the low half
    f32x2               two in a register of 64 bits
    f32.f16, f32.bf16   all in float32, but for the narrow factors, or the narrow first one of two terms
    f32 with `ftz`      subnormal numbers count as zeros, on the way in and on the way out

All is computed in float64 and rounded to float32 and then to the format.
"""

from __future__ import annotations

import numpy as np

from .conversions import FROM, TO
from .ptx import Instruction, UnsupportedInstruction
from .registers import LANES, Registers

OPERATIONS = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "min": np.fmin, "max": np.fmax, "neg": np.negative,
    "abs": np.abs, "fma": lambda a, b, c: a * b + c, "ex2": np.exp2, "lg2": np.log2, "div": np.divide,
    "rsqrt": lambda a: 1 / np.sqrt(a),
}  # fmt: skip
COMPARISONS = {
    "eq": lambda a, b: a == b, "ne": lambda a, b: (a < b) | (a > b), "lt": np.less, "le": np.less_equal,
    "gt": np.greater, "ge": np.greater_equal, "equ": lambda a, b: ~((a < b) | (a > b)), "neu": np.not_equal,
    "ltu": lambda a, b: ~(a >= b), "leu": lambda a, b: ~(a > b), "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b), "nan": lambda a, b: np.isnan(a) | np.isnan(b),
    "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
}  # fmt: skip
_FLAGS = {"rn", "approx", "full", "ftz"}


def make(instruction: Instruction, registers: Registers):
    """Return the step of `instruction`, or None if it computes in no such format."""
    name, *parts = instruction.opcode.split(".")
    kind = parts[-1] if parts else ""
    base, pairs = kind.removesuffix("x2"), kind.endswith("x2")
    if parts[-2:-1] == ["f32"] and base in FROM:
        return _mix(instruction, name, parts, base, registers)
    if base in FROM:
        held = "u32" if pairs else "u16"

        def decode(row):
            return FROM[base](row.view(np.uint16).reshape(LANES, -1)).astype(np.float64)

        def encode(values):
            return np.ascontiguousarray(TO[base](values.astype(np.float32)))

    elif kind == "f32x2":
        held = "u64"

        def decode(row):
            return row.view(np.float32).reshape(LANES, 2).astype(np.float64)

        def encode(values):
            return values.astype(np.float32)

    elif kind == "f32" and "ftz" in parts:
        held = "f32"

        def decode(row):
            return _flush(row).astype(np.float64)[:, None]

        def encode(values):
            return _flush(values.astype(np.float32))

    else:
        return None
    if name == "setp" and len(parts) == 2 + ("ftz" in parts) and parts[0] in COMPARISONS:
        return _compare(instruction, COMPARISONS[parts[0]], decode, held, registers)
    if name not in OPERATIONS or set(parts[:-1]) - _FLAGS:
        raise UnsupportedInstruction(str(instruction))
    function = OPERATIONS[name]
    d, *inputs = (registers.index(o, held) for o in instruction.operands)

    def step(warp):
        rows = warp.rows[held]
        result = encode(function(*(decode(rows[i]) for i in inputs)))
        rows[d][:] = result.view(rows[d].dtype)[:, 0]

    return step


def _mix(instruction, name, parts, kind, registers):
    """add, sub and fma of float32 with narrower numbers: of two terms the first, of a product both factors."""
    if name not in ("add", "sub", "fma") or set(parts[:-2]) - {"rn"}:
        raise UnsupportedInstruction(str(instruction))
    target, *narrow, last = instruction.operands
    d, c = registers.index(target, "f32"), registers.index(last, "f32")
    function, decode, indices = OPERATIONS[name], FROM[kind], [registers.index(o, "u16") for o in narrow]

    def step(warp):
        rows = warp.rows["f32"]
        inputs = [decode(warp.rows["u16"][i]).astype(np.float64) for i in indices]
        rows[d][:] = function(*inputs, rows[c].astype(np.float64))

    return step


def _compare(instruction, function, decode, held, registers):
    """setp; of pairs it gives two predicates, p|q."""
    target, *inputs = instruction.operands
    targets = [registers.index(t, "pred") for t in target.split("|")]
    a, b = (registers.index(o, held) for o in inputs)

    def step(warp):
        found = function(decode(warp.rows[held][a]), decode(warp.rows[held][b]))
        for i, index in enumerate(targets):
            warp.rows["pred"][index][:] = found[:, i]

    return step


def _flush(value: np.ndarray) -> np.ndarray:
    return np.where(np.abs(value) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), value), value)
