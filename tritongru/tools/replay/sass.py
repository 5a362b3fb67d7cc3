"""Machine code of NVIDIA GPUs, as `nvdisasm` prints it: instructions, control codes, and the path of one step.

Control codes are what the assembler decided: how many cycles to wait after an instruction, which of six scoreboards it
sets when it has written or read its registers, and which it waits for. They are bits 105 on of an instruction's 128:
4 of stall, 1 of yield, 3 and 3 of scoreboards (7: none), 6 of a mask. Source: Z. Jia et al., "Dissecting the NVIDIA
Volta GPU Architecture via Microbenchmarking", arXiv 1804.06826, section 2.1; the same bits serve compute capability 7.0
to 10.0.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

COUNTED = (
    "HMMA", "FFMA", "LDSM", "LDS", "STS", "BAR", "MEMBAR", "MUFU", "SHFL", "LDGSTS", "LDGDEPBAR", "LDG", "STG", "RED",
    "ATOM", "LDL", "STL",
)  # fmt: skip
# Of the matrix units, and, where a kernel has none of them, of float32.
PRODUCTS, SCALAR_PRODUCTS = ("HMMA",), ("FFMA",)
# Products that run beside the warps which ask for them; when they end is not in the control codes.
ASYNCHRONOUS = ("HGMMA", "UTC")
_SIZES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
_INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:(@!?U?P\w+)\s+)?(\S+)(.*?);\s*/\* 0x[0-9a-f]{16} \*/")


@dataclass
class Instruction:
    """One instruction.

    Attributes:
        guard: the predicate with its sign, or "". stall: cycles. writes, reads: scoreboards that it sets, 7: none.
        waits: mask of scoreboards. target: label of a branch. leader: whether one warp alone executes it.
    """

    guard: str
    opcode: str
    stall: int
    writes: int
    reads: int
    waits: int
    target: str | None
    text: str
    leader: bool = False

    def starts(self, *names: str) -> bool:
        """Return whether the opcode begins with one of `names`."""
        return self.opcode.startswith(names)

    @property
    def strong(self) -> bool:
        """Whether it takes part in an exchange: relaxed or stronger in the scope of the GPU."""
        return "STRONG" in self.opcode

    @property
    def publishes(self) -> bool:
        """Whether others may wait for it."""
        return self.starts("RED.", "REDG", "ATOM") or (self.starts("ST") and self.strong)

    @property
    def size(self) -> int:
        """Bytes of a lane."""
        return next((_SIZES[part] for part in self.opcode.split(".")[1:] if part in _SIZES), 4)

    @property
    def matrices(self) -> int:
        """Of an LDSM: how many it loads."""
        return {"4": 4, "2": 2}.get(self.opcode.rsplit(".", 1)[-1], 1)


def disassemble(cubin: bytes) -> str:
    """Return what `nvdisasm`, which comes with Triton, prints for a binary: code and encodings."""
    import triton

    tool = next(Path(triton.__file__).parent.rglob("nvdisasm"))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, "-c", "-hex", file.name], capture_output=True, text=True, check=True).stdout


def parse(text: str) -> tuple[list[Instruction], dict[str, int]]:
    """Return the instructions of `nvdisasm -c -hex`, and the places of labels."""
    lines = text.splitlines()
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(found)
        elif code := _INSTRUCTION.match(line):
            upper = re.search(r"/\* 0x([0-9a-f]{16}) \*/", after)
            if upper is None:
                raise ValueError(f"no second half of the encoding after {line.strip()!r}")
            control = int(upper[1], 16) >> 41
            target = re.search(r"`\((\.L_x_\d+)\)", code[3])
            found.append(
                Instruction(
                    code[1] or "", code[2], control & 15, control >> 5 & 7, control >> 8 & 7, control >> 11 & 63,
                    target and target[1], (code[2] + code[3]).strip(),
                )
            )  # fmt: skip
    return found, labels


def one_step(code: list[Instruction], labels: dict[str, int], chunks: int = 1) -> list[Instruction]:
    """Return what a step executes, that of the leading warp among it: the time loop, each wait left at once.

    The time loop is the largest loop with products; a loop of products inside it is repeated `chunks` times. Jumps
    forward are taken over what contains a jump back: the loop of a wait, or its second poll and all that follows when
    patience ends.

    Raises:
        ValueError: no such loop, or products whose end the code does not tell.
    """
    if any(x.starts(*ASYNCHRONOUS) for x in code):
        raise ValueError("asynchronous matrix products")
    products = PRODUCTS if any(x.starts(*PRODUCTS) for x in code) else SCALAR_PRODUCTS
    every = _loops(code, labels)
    with_products = [(a, b) for a, b in every if any(x.starts(*products) for x in code[a:b])]
    if not with_products:
        raise ValueError("no loop with products")
    first, last = max(with_products, key=lambda loop: loop[1] - loop[0])
    step: list[Instruction] = []
    done = 1
    i = first
    while i <= last:
        x = code[i]
        step.append(x)
        aim = labels[x.target] if x.starts("BRA") and x.target else 0
        if i < aim <= last:
            skipped = code[i + 1 : aim]
            goes_back = any(i < b < aim for _, b in every)
            if goes_back and not any(y.starts(*products) for y in skipped):
                i = aim
                continue
            if len(skipped) < 40 and any(y.publishes or y.starts("MEMBAR") for y in skipped):
                for y in skipped:
                    y.leader = True
        if first < aim <= i < last and (aim, i) in with_products:
            if done < chunks:
                done, i = done + 1, aim
                continue
            done = 1
        i += 1
    for x in step:
        one_lane = x.guard != "" and (x.starts("RED.", "REDG", "ATOM", "MEMBAR", "ERRBAR", "CGAERRBAR", "CCTL"))
        one_poll = x.guard.startswith("@!P") and x.starts("LDG") and x.strong and x.size == 4
        x.leader |= one_lane or one_poll
    return step


def _loops(code: list[Instruction], labels: dict[str, int]) -> list[tuple[int, int]]:
    return [(labels[x.target], i) for i, x in enumerate(code) if x.starts("BRA") and x.target and labels[x.target] <= i]


def count(step: list[Instruction]) -> Counter:
    """Return how often each of COUNTED stands in a step, and "instructions" in all."""
    found = Counter(instructions=len(step))
    for x in step:
        if name := next((n for n in COUNTED if x.starts(n)), None):
            found[name] += 1
    return found


def spills_in(step: list[Instruction]) -> int:
    """Return the accesses to local memory."""
    found = count(step)
    return found["LDL"] + found["STL"]


def repetition(step: list[Instruction], warps: int, rows: int, units: int, summed: int, gates: int = 3) -> float:
    """Return how often each product of a step is computed: 1 where no warp repeats another's."""
    done = sum(16 * 8 * int(m[1]) for x in step if (m := re.match(r"HMMA\.168(4|8|16)\.", x.opcode)))
    return done * warps / (rows * units * summed * gates)
