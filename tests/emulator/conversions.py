"""Steps of `cvt`, and the formats of half precision and TF32.

Source: NVIDIA, PTX ISA, "Data Movement and Conversion Instructions: cvt".
"""

from __future__ import annotations

import numpy as np

from .ptx import WIDTHS, Instruction, UnsupportedInstruction, register
from .registers import Registers

_WHOLE = {
    f"{sign}{bits}": np.dtype(f"{'i' if sign == 's' else 'u'}{bits // 8}") for sign in "su" for bits in (8, 16, 32, 64)
}


def to_bfloat16(value: np.ndarray) -> np.ndarray:
    """Return the bits of float32 numbers, rounded to the nearest bfloat16, ties to even.

    >>> [hex(bits) for bits in to_bfloat16(np.array([1.0, 1 + 2.0**-8, 1 + 3 * 2.0**-8, np.nan], np.float32))]
    ['0x3f80', '0x3f80', '0x3f82', '0x7fff']
    """
    bits = np.ascontiguousarray(value).view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    return np.where(np.isnan(value), 0x7FFF, rounded).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Return the float32 numbers of 16-bit bfloat16."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_half(value: np.ndarray) -> np.ndarray:
    """Return the bits of float32 numbers, rounded to the nearest float16, ties to even."""
    return np.where(np.isnan(value), 0x7FFF, value.astype(np.float16).view(np.uint16)).astype(np.uint16)


def from_half(bits: np.ndarray) -> np.ndarray:
    """Return the float32 numbers of 16-bit float16."""
    return np.ascontiguousarray(bits).view(np.float16).astype(np.float32)


TO = {"bf16": to_bfloat16, "f16": to_half}
FROM = {"bf16": from_bfloat16, "f16": from_half}


def make(instruction: Instruction, registers: Registers):
    """Return the step of a `cvt`, or None for another instruction."""
    if not instruction.opcode.startswith("cvt."):
        return None
    *qualifiers, to, start = instruction.opcode.split(".")[1:]
    key = (*qualifiers, to, start)
    target, value = instruction.operands[0], instruction.operands[1:]
    if to in _WHOLE and start in _WHOLE and not qualifiers:
        return _between_whole(target, value[0], to, start, registers)
    if start in FROM and to == "f32" and not qualifiers:
        decode, d, a = FROM[start], registers.index(target, "f32"), registers.index(value[0], "u16")

        def step(warp):
            warp.rows["f32"][d][:] = decode(warp.rows["u16"][a])

    elif to in TO and start == "f32" and qualifiers == ["rn"]:
        encode, d, a = TO[to], registers.index(target, "u16"), registers.index(value[0], "f32")

        def step(warp):
            warp.rows["u16"][d][:] = encode(warp.rows["f32"][a])

    elif to in ("bf16x2", "f16x2") and start == "f32" and qualifiers == ["rn"]:
        encode, d = TO[to[:-2]], registers.index(target, "u32")
        high, low = (registers.index(v, "f32") for v in value)

        def step(warp):
            rows = warp.rows["f32"]
            warp.rows["u32"][d][:] = encode(rows[high]).astype(np.uint32) << 16 | encode(rows[low])

    elif to in TO and start in ("s32", "u32") and qualifiers == ["rn"]:
        encode, d, a = TO[to], registers.index(target, "u16"), registers.index(value[0], start)

        def step(warp):
            whole = warp.rows[start][a]
            if (np.abs(whole.astype(np.int64)) > 1 << 24).any():
                raise UnsupportedInstruction(f"{instruction} of numbers that float32 does not hold")
            warp.rows["u16"][d][:] = encode(whole.astype(np.float32))

    elif key == ("rna", "tf32", "f32"):
        d, a = registers.index(target, "u32"), registers.index(value[0], "u32")

        def step(warp):
            # The nearest number with 10 bits of mantissa; ties away from zero.
            rows = warp.rows["u32"]
            rows[d][:] = (rows[a] + np.uint32(0x1000)) & np.uint32(0xFFFFE000)

    elif key in (("rn", "f32", "s32"), ("rn", "f32", "u32"), ("rzi", "s32", "f32")):
        d, a = registers.index(target, to), registers.index(value[0], start)

        def step(warp):
            warp.rows[to][d][:] = warp.rows[start][a]

    else:
        raise UnsupportedInstruction(str(instruction))
    return step


def _between_whole(target, value, to, start, registers):
    # A register may be wider than the type: the low bits count, and the result fills it.
    held, kept = f"u{_bits_of(value, start)}", f"{to[0]}{_bits_of(target, to)}"
    d, a = registers.index(target, kept), registers.index(value, held)
    first, last = _WHOLE[start], _WHOLE[to]

    def step(warp):
        warp.rows[kept][d][:] = warp.rows[held][a].astype(first).astype(last)

    return step


def _bits_of(operand, kind: str) -> int:
    found = register(operand)
    return WIDTHS[found[0]] if found else max(16, int(kind[1:]))
