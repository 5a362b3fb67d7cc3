"""The text of a compiled kernel, read into instructions.

Source: NVIDIA, PTX ISA, chapters "Syntax" and "Instruction Operands".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Register names by the prefixes that LLVM gives, and the bits they hold.
WIDTHS = {"%p": 1, "%rs": 16, "%r": 32, "%rd": 64}
# Where shared memory begins: not at 0, which would take no shift for granted.
SHARED_BASE = 1024
_NUMBERED = re.compile(r"(%[a-z]+)(\d+)")
_STATEMENT = re.compile(r"(?:@(?P<negated>!?)(?P<guard>%p\d+)\s+)?(?P<opcode>[a-z][\w.:]*)\s*(?P<operands>.*)", re.S)
# What may be a register's name in a scope of inline assembly, and is no part of an opcode or of another name.
_LOCAL = re.compile(r"(?<![\w.%$])[a-z]\w*(?![\w.])")

Operand = str | tuple[str, ...]


class UnsupportedInstruction(NotImplementedError):
    """An instruction, or a use of one, that the emulator does not know."""


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        opcode: with all its qualifiers, "ld.global.v4.b32".
        operands: registers, numbers, symbols and [addresses] as text; a vector {a, b} as a tuple.
        guard, negated: the predicate it is executed under, or None.
        source: where in the kernel's Python it comes from. line: of the PTX.
    """

    opcode: str
    operands: tuple[Operand, ...]
    guard: str | None
    negated: bool
    source: str
    line: int

    def __str__(self) -> str:
        guard = f"@{'!' if self.negated else ''}{self.guard} " if self.guard else ""
        shown = ", ".join(o if isinstance(o, str) else "{" + ", ".join(o) + "}" for o in self.operands)
        return f"`{guard}{self.opcode} {shown}` (PTX line {self.line}, {self.source})"


@dataclass(frozen=True)
class Kernel:
    """An entry of a PTX text.

    Attributes:
        parameters: name and type ("u64", "u32") in order. labels: index of the instruction that follows.
        registers: how many of each prefix. threads: of a program.
    """

    name: str
    parameters: tuple[tuple[str, str], ...]
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
    registers: dict[str, int]
    threads: int


def parse(text: str) -> Kernel:
    """Return the one kernel of `text`.

    >>> kernel = parse('''.visible .entry k(.param .u32 k_param_0) .reqntid 32
    ... {
    ... 	.reg .b32 %r<3>;
    ... 	ld.param.b32 	%r1, [k_param_0];
    ... $L__BB0_1:
    ... 	@!%p1 bra 	$L__BB0_1;
    ... }''')
    >>> kernel.parameters, kernel.labels, kernel.registers
    ((('k_param_0', 'u32'),), {'$L__BB0_1': 1}, {'%r': 3})
    >>> print(kernel.instructions[1])
    `@!%p1 bra $L__BB0_1` (PTX line 6, unknown)
    """
    header = re.search(r"\.entry\s+(\w+)\s*\((.*?)\)(.*?)\{", text, re.S)
    if header is None or len(re.findall(r"\.entry\b", text)) != 1 or ".func" in text:
        raise UnsupportedInstruction("a PTX text without exactly one kernel, or with functions beside it")
    name, declared, directives = header.groups()
    parameters = tuple(re.findall(r"\.param\s+\.(\w+)\b[^,]*?(\w+)\s*(?:,|$)", declared.strip()))
    threads = re.search(r"\.reqntid\s+(\d+)", directives)
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    registers: dict[str, int] = {}
    scopes: list[dict[str, str]] = []
    source = "unknown"
    first = text[: header.end()].count("\n") + 1
    for number, line in enumerate(text[header.end() :].split("\n"), first):
        code, _, comment = line.partition("//")
        code = code.strip()
        if code.startswith(".loc"):
            source = comment.strip() or code
        elif code == "{":
            scopes.append(dict(scopes[-1]) if scopes else {})
        elif code == "}":
            if not scopes:
                break
            scopes.pop()
        elif scopes and (declared := re.fullmatch(r"\.reg\s+\.(\w+)\s+([^%]*);", code)):
            scopes[-1] |= _declare(*declared.groups(), registers)
        elif match := re.fullmatch(r"(\$\w+):", code):
            labels[match[1]] = len(instructions)
        elif match := re.fullmatch(r"\.reg\s+\.\w+\s+(%[a-z]+)<(\d+)>;", code):
            registers[match[1]] = int(match[2])
        elif code.startswith(".") and not code.startswith(".pragma"):  # advice to the assembler
            raise UnsupportedInstruction(f"directive {code!r} in PTX line {number}")
        elif not code.startswith("."):
            if scopes:
                code = _LOCAL.sub(lambda found: scopes[-1].get(found[0], found[0]), code)
            for statement in filter(None, map(str.strip, code.split(";"))):
                instructions.append(_read_statement(statement, source, number))
    return Kernel(
        name,
        tuple((n, t) for t, n in parameters),
        tuple(instructions),
        labels,
        registers,
        int(threads[1]) if threads else 32,
    )


def _declare(kind: str, names: str, registers: dict[str, int]) -> dict[str, str]:
    """Return registers for the names that a scope declares, `b<4>` for four of them; count them in `registers`.

    >>> registers = {"%r": 5}
    >>> _declare("b32", "a<2>, left", registers), registers
    ({'a0': '%r5', 'a1': '%r6', 'left': '%r7'}, {'%r': 8})
    """
    (prefix,) = (p for p, bits in WIDTHS.items() if bits == (1 if kind == "pred" else int(kind[1:])))
    found = {}
    for name, several in re.findall(r"(\w+)(?:<(\d+)>)?", names):
        for one in [f"{name}{i}" for i in range(int(several))] if several else [name]:
            registers[prefix] = registers.get(prefix, 0) + 1
            found[one] = f"{prefix}{registers[prefix] - 1}"
    return found


def _read_statement(statement: str, source: str, line: int) -> Instruction:
    match = _STATEMENT.fullmatch(statement)
    if match is None:
        raise UnsupportedInstruction(f"{statement!r} in PTX line {line}")
    parts = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", match["operands"])
    operands = tuple(
        tuple(item.strip() for item in part[1:-1].split(",")) if part.startswith("{") else part.strip()
        for part in parts
    )
    # `.shared` alone means the same, and is what Triton up to 3.7 writes.
    opcode = match["opcode"].replace(".shared::cta.", ".shared.")
    return Instruction(opcode, operands, match["guard"], match["negated"] == "!", source, line)


def register(operand: Operand) -> tuple[str, int] | None:
    """Return the prefix and the number of a register; None for anything else.

    >>> register("%rd12"), register("12"), register("%tid.x")
    (('%rd', 12), None, None)
    """
    match = _NUMBERED.fullmatch(operand) if isinstance(operand, str) else None
    return (match[1], int(match[2])) if match and match[1] in WIDTHS else None


def number(operand: str) -> int:
    """Return the bits of a literal, as a whole number that may be negative, or the address of shared memory.

    >>> number("-1"), number("0x7701U"), hex(number("0f3F800000"))
    (-1, 30465, '0x3f800000')
    """
    if operand == "global_smem":
        return SHARED_BASE
    if re.fullmatch(r"0[fFdD][0-9A-Fa-f]+", operand):
        return int(operand[2:], 16)
    return int(operand.rstrip("U"), 0)


def address(operand: Operand) -> tuple[str, int]:
    """Return the base and the offset in bytes of an address.

    >>> address("[%rd1 + 0]"), address("[%r4+-16]"), address("[global_smem]")
    (('%rd1', 0), ('%r4', -16), ('global_smem', 0))
    """
    match = re.fullmatch(r"\[\s*([%$\w]+)\s*(?:\+\s*(-?\w+)\s*)?\]", operand) if isinstance(operand, str) else None
    if match is None:
        raise UnsupportedInstruction(f"address {operand!r}")
    return match[1], int(match[2] or "0", 0)
