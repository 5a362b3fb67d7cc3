"""Steps of the instructions in which a lane looks at its own registers only.

`make(instruction, registers)` returns a function of a warp. float32 products and sums are rounded as the PTX asks, with
two exceptions that the assembler and the hardware are free in too: `fma` is computed in float64 and then rounded, and
`ex2.approx`, `lg2.approx`, `rsqrt.approx` and `div.full` are exact to the last bit or nearly. `tanh.approx` is as wrong
as it may be, see `approximate_tanh`. Source: NVIDIA, PTX ISA, chapter "Instruction Set".
"""

from __future__ import annotations

import numpy as np

from .formats import COMPARISONS as FLOAT_COMPARISONS
from .ptx import Instruction, UnsupportedInstruction, number, register
from .registers import LANES, VIEWS, Registers, kind_of

BINARY = {
    "add": np.add, "sub": np.subtract, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "min": np.fmin, "max": np.fmax,
}  # fmt: skip
UNARY = {"neg": np.negative, "abs": np.abs, "not": np.invert}
COMPARISONS = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip
MULTIPLIER_QUALIFIERS = {"lo", "wide", "hi"}


def make(instruction: Instruction, registers: Registers):
    """Return the step of `instruction`, or None where this module does not know it."""
    parts = instruction.opcode.split(".")
    maker = _MAKERS.get(parts[0])
    return maker(instruction, parts, registers) if maker else None


def _binary(instruction, parts, registers):
    kind, function = kind_of(instruction), BINARY[parts[0]]
    _allow(instruction, {"rn"})
    if kind == "pred" and parts[0] in ("and", "or", "xor"):
        function = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[parts[0]]
    d, a, b = (registers.index(o, kind) for o in instruction.operands)

    def step(warp):
        rows = warp.rows[kind]
        function(rows[a], rows[b], rows[d])

    return step


def _unary(instruction, parts, registers):
    kind, function = kind_of(instruction), UNARY[parts[0]]
    _allow(instruction, set())
    d, a = (registers.index(o, kind) for o in instruction.operands)

    def step(warp):
        rows = warp.rows[kind]
        function(rows[a], rows[d])

    return step


def _approximate(function):
    def maker(instruction, parts, registers):
        _allow(instruction, {"approx"})
        d, a = (registers.index(o, "f32") for o in instruction.operands)

        def step(warp):
            rows = warp.rows["f32"]
            function(rows[a], rows[d])

        return step

    return maker


def _divide(instruction, parts, registers):
    kind = kind_of(instruction)
    d, a, b = (registers.index(o, kind) for o in instruction.operands)
    if kind == "f32":
        _allow(instruction, {"full", "rn"})

        def step(warp):
            rows = warp.rows["f32"]
            np.divide(rows[a], rows[b], rows[d])

        return step
    # Towards zero, as in C; the remainder has the dividend's sign.
    wants_remainder = parts[0] == "rem"

    def step(warp):
        rows = warp.rows[kind]
        remainder = np.fmod(rows[a], rows[b])
        rows[d][:] = remainder if wants_remainder else (rows[a] - remainder) // rows[b]

    return step


def _multiply(instruction, parts, registers):
    """mul and mad; of whole numbers the low or the high half, or all bits in a register twice as wide."""
    kind = kind_of(instruction)
    adds = parts[0] == "mad"
    if kind == "f32" and not adds:
        _allow(instruction, {"rn"})
        d, a, b = (registers.index(o, kind) for o in instruction.operands)

        def step(warp):
            rows = warp.rows["f32"]
            np.multiply(rows[a], rows[b], rows[d])

        return step
    (form,) = MULTIPLIER_QUALIFIERS & set(parts)
    to = kind if form != "wide" else kind[0] + str(2 * int(kind[1:]))
    wide = VIEWS[to][1] if form != "hi" else {"s32": np.int64, "u32": np.uint64}[kind]
    bits = VIEWS[kind][0]
    d, (a, b) = (
        registers.index(instruction.operands[0], to),
        (registers.index(o, kind) for o in instruction.operands[1:3]),
    )
    c = registers.index(instruction.operands[3], to) if adds else None

    def step(warp):
        rows, out = warp.rows[kind], warp.rows[to]
        product = np.multiply(rows[a], rows[b], dtype=wide)
        if form == "hi":
            product >>= wide(bits)
        out[d][:] = product if c is None else product.astype(out[d].dtype) + out[c]

    return step


def _fma(instruction, parts, registers):
    if kind_of(instruction) != "f32":
        raise UnsupportedInstruction(str(instruction))
    _allow(instruction, {"rn"})
    d, a, b, c = (registers.index(o, "f32") for o in instruction.operands)

    def step(warp):
        rows = warp.rows["f32"]
        total = rows[a].astype(np.float64)
        total *= rows[b].astype(np.float64)
        total += rows[c].astype(np.float64)
        rows[d][:] = total

    return step


def _shift(instruction, parts, registers):
    kind = kind_of(instruction)
    d, a = (registers.index(o, kind) for o in instruction.operands[:2])
    amount = registers.index(instruction.operands[2], "u32")
    bits, element = VIEWS[kind]
    shift = np.left_shift if parts[0] == "shl" else np.right_shift

    def step(warp):
        rows = warp.rows[kind]
        by = warp.rows["u32"][amount]
        if by.max() < bits:
            shift(rows[a], by.astype(element), rows[d])
            return
        # All bits are shifted out, of a signed number all but the sign.
        beyond = by >= bits
        moved = shift(rows[a], np.where(beyond, 0, by).astype(element))
        last = shift(rows[a], element(bits - 1)) if kind.startswith("s") and parts[0] == "shr" else element(0)
        rows[d][:] = np.where(beyond, last, moved)

    return step


def _compare(instruction, parts, registers):
    kind = kind_of(instruction)
    if len(parts) != 3 or len(instruction.operands) != 3:
        raise UnsupportedInstruction(str(instruction))
    a, b = (registers.index(o, kind) for o in instruction.operands[1:])
    d = registers.index(instruction.operands[0], "pred")
    name = parts[1]
    if kind.startswith("f"):
        # With NaN, the results of PTX are not those of numpy's own comparisons.
        compare = FLOAT_COMPARISONS[name]

        def step(warp):
            rows = warp.rows[kind]
            warp.rows["pred"][d][:] = compare(rows[a], rows[b])

    else:
        function = COMPARISONS[name]

        def step(warp):
            rows = warp.rows[kind]
            function(rows[a], rows[b], warp.rows["pred"][d])

    return step


def _funnel(instruction, parts, registers):
    """shf: the high or low half of a shifted pair of registers."""
    if instruction.opcode not in ("shf.l.wrap.b32", "shf.r.wrap.b32"):
        raise UnsupportedInstruction(str(instruction))
    d, low, high, amount = (registers.index(o, "u32") for o in instruction.operands)
    left = parts[1] == "l"

    def step(warp):
        rows = warp.rows["u32"]
        both = rows[high].astype(np.uint64) << np.uint64(32) | rows[low]
        by = (rows[amount] & 31).astype(np.uint64)
        rows[d][:] = (both << by) >> np.uint64(32) if left else (both >> by) & np.uint64(0xFFFFFFFF)

    return step


def _select(instruction, parts, registers):
    kind = kind_of(instruction)
    d, a, b = (registers.index(o, kind) for o in instruction.operands[:3])
    chosen = registers.index(instruction.operands[3], "pred")

    def step(warp):
        rows = warp.rows[kind]
        rows[d][:] = np.where(warp.rows["pred"][chosen], rows[a], rows[b])

    return step


def _move(instruction, parts, registers):
    target, value = instruction.operands
    kind = kind_of(instruction)
    if isinstance(target, tuple) or isinstance(value, tuple):
        return _pack(instruction, kind, registers)
    if value.startswith("%") and register(value) is None:
        d = registers.index(target, "u32")

        def step(warp):
            warp.rows["u32"][d][:] = warp.special(value)

    else:
        d, a = registers.index(target, kind), registers.index(value, kind)

        def step(warp):
            rows = warp.rows[kind]
            rows[d][:] = rows[a]

    return step


def _pack(instruction, kind, registers):
    """A register from two or four narrower ones, or back; the first is the lowest."""
    target, value = instruction.operands
    packs = isinstance(value, tuple)
    parts, whole = (value, target) if packs else (target, value)
    narrow = f"b{VIEWS[kind][0] // len(parts)}"
    single = registers.index(whole, kind)
    several = [None if part == "_" else registers.index(part, narrow) for part in parts]

    def step(warp):
        halves = warp.rows[kind][single].view(VIEWS[narrow][1]).reshape(LANES, -1)
        # A copy: the whole register may be one that is written.
        source = None if packs else halves.copy()
        for i, index in enumerate(several):
            if packs:
                halves[:, i] = warp.rows[narrow][index]
            elif index is not None:
                warp.rows[narrow][index][:] = source[:, i]

    return step


def _extract(instruction, parts, registers):
    """bfe: a field of bits, filled up with zeros or with its sign."""
    kind = kind_of(instruction)
    d, a = (registers.index(o, kind) for o in instruction.operands[:2])
    begin, length = (number(o) for o in instruction.operands[2:])
    bits = VIEWS[kind][0]
    if not 0 < length <= bits - begin:
        raise UnsupportedInstruction(str(instruction))
    up, down = VIEWS[kind][1](bits - begin - length), VIEWS[kind][1](bits - length)

    def step(warp):
        rows = warp.rows[kind]
        np.right_shift(np.left_shift(rows[a], up), down, rows[d])

    return step


def _any_logic(instruction, parts, registers):
    """lop3: any function of three bits, as a table of its eight results."""
    if instruction.opcode != "lop3.b32":
        raise UnsupportedInstruction(str(instruction))
    d, a, b, c = (registers.index(o, "u32") for o in instruction.operands[:4])
    table = number(instruction.operands[4])

    def step(warp):
        rows = warp.rows["u32"]
        result = np.zeros_like(rows[a])
        for case in (case for case in range(8) if table >> case & 1):
            one = rows[a] if case & 4 else ~rows[a]
            one = one & (rows[b] if case & 2 else ~rows[b])
            result |= one & (rows[c] if case & 1 else ~rows[c])
        rows[d][:] = result

    return step


def approximate_tanh(value: np.ndarray) -> np.ndarray:
    """Return tanh with an error of up to 2^-11 of it, which depends on all bits of `value`: what `tanh.approx` may do.

    >>> x = np.linspace(-8, 8, 1001, dtype=np.float32)
    >>> error = np.abs(approximate_tanh(x) / np.tanh(x.astype(np.float64)) - 1)[x != 0].max()
    >>> bool(0.9 * 2**-11 < error <= 2**-11)
    True
    """
    bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
    error = ((bits * np.uint32(2654435761)) >> np.uint32(8)).astype(np.float64) / 2**23 - 1
    exact = np.tanh(value.astype(np.float64))
    return np.clip(exact * (1 + error * (2**-11 - 2**-23)), -1, 1).astype(np.float32)


def _tanh(instruction, parts, registers):
    if instruction.opcode != "tanh.approx.f32":
        raise UnsupportedInstruction(str(instruction))
    d, a = (registers.index(o, "f32") for o in instruction.operands)

    def step(warp):
        rows = warp.rows["f32"]
        rows[d][:] = approximate_tanh(rows[a])

    return step


def _permute(instruction, parts, registers):
    """prmt: each byte of the result is one of eight bytes, or eight copies of its sign."""
    if instruction.opcode != "prmt.b32":
        raise UnsupportedInstruction(str(instruction))
    d, a, b, chosen = (registers.index(o, "u32") for o in instruction.operands)

    def step(warp):
        rows = warp.rows["u32"]
        both = np.stack([rows[a], rows[b]], 1).view(np.uint8)
        selectors = rows[chosen][:, None] >> np.arange(0, 16, 4, dtype=np.uint32) & 15
        found = np.take_along_axis(both, (selectors & 7).astype(np.int64), 1)
        found = np.where(selectors & 8, np.where(found & 0x80, 0xFF, 0), found).astype(np.uint8)
        rows[d][:] = np.ascontiguousarray(found).view(np.uint32)[:, 0]

    return step


def _allow(instruction: Instruction, qualifiers: set[str]) -> None:
    """Refuse an opcode with any qualifier but a type and `qualifiers`."""
    if extra := set(instruction.opcode.split(".")[1:]) - qualifiers - VIEWS.keys():
        raise UnsupportedInstruction(f"{instruction}: {', '.join(sorted(extra))}")


_MAKERS = {
    **dict.fromkeys(BINARY, _binary), **dict.fromkeys(UNARY, _unary), "mul": _multiply, "mad": _multiply, "fma": _fma,
    "div": _divide, "rem": _divide, "shl": _shift, "shr": _shift, "setp": _compare, "selp": _select, "mov": _move,
    "bfe": _extract, "shf": _funnel, "prmt": _permute,
    "lop3": _any_logic, "tanh": _tanh, "ex2": _approximate(np.exp2), "lg2": _approximate(np.log2),
}  # fmt: skip
