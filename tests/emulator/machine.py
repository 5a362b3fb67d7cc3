"""Warps, the programs they form, and a grid of programs, run in a random order that a seed fixes.

A warp runs some instructions, drawn at random, then another one's turn comes: so each interleaving of the warps of a
program between two block barriers, and of programs that run at once, can happen. Programs of a cooperative launch all
run at once. Of another launch a device need not run two at a time, so here they run one after another: who waits for a
program that has not begun waits in vain.
"""

from __future__ import annotations

import random

import numpy as np

from . import arithmetic, conversions, exchanges, formats, transfers, warpgroups
from .memory import GlobalMemory, make_shared
from .ptx import Instruction, Kernel, UnsupportedInstruction, register
from .races import Actor, Clocks
from .registers import LANES, Registers
from .transfers import BARRIER, EXIT
from .warpgroups import Products

# Instructions between two changes of turn: mostly long stretches, now and then one instruction alone.
STRETCHES = (1, 10, 100, 400)


class SynchronisationError(AssertionError):
    """A barrier that not all warps reach, or programs that wait for each other for ever."""


class Code:
    """A kernel, decoded: one function of a warp per instruction."""

    def __init__(self, kernel: Kernel):
        self.kernel, self.registers = kernel, Registers(kernel)
        self.steps = [self._decode(i, instruction) for i, instruction in enumerate(kernel.instructions)]
        self.granule = transfers.shared_granule(kernel.instructions)
        self.has_products = any(i.opcode.startswith("wgmma.") for i in kernel.instructions)

    def _decode(self, i: int, instruction: Instruction):
        if instruction.opcode in ("bra", "bra.uni"):
            return self._branch(instruction)
        for module in (transfers, warpgroups):
            step = module.make(instruction, i, self.registers)
            if step is not None:
                return step
        for module in (conversions, exchanges, formats, arithmetic):
            step = module.make(instruction, self.registers)
            if step is not None:
                break
        else:
            raise UnsupportedInstruction(str(instruction))
        return step if instruction.guard is None else self._guard(step, instruction)

    def _branch(self, instruction: Instruction):
        aim = self.kernel.labels[instruction.operands[0]]  # type: ignore[index]
        if instruction.guard is None:
            return lambda warp: aim
        guard, negated = self.registers.index(instruction.guard, "pred"), instruction.negated

        def step(warp):
            holds = warp.rows["pred"][guard]
            taken = int(holds.sum())
            if 0 < taken < LANES:
                raise UnsupportedInstruction(f"{instruction}: lanes of one warp part")
            return aim if bool(taken) != negated else None

        return step

    def _guard(self, step, instruction: Instruction):
        """Keep the old values of the lanes for which the guard does not hold."""
        guard, negated = self.registers.index(instruction.guard, "pred"), instruction.negated  # type: ignore[arg-type]
        found = register(instruction.operands[0])
        if found is None or instruction.opcode.split(".")[0] in ("shfl", "redux", "mma"):
            raise UnsupportedInstruction(str(instruction))
        kind = {"%p": "pred", "%rs": "u16", "%r": "u32", "%rd": "u64"}[found[0]]

        def guarded(warp):
            holds = warp.rows["pred"][guard] != negated
            row = warp.rows[kind][found[1]]
            before = row.copy()
            step(warp)
            np.copyto(row, before, where=~holds)

        return guarded


class Warp:
    """32 lanes with one program counter.

    Attributes:
        rows: the registers by type. in_grid, in_program: the warp as the shadows of global and shared memory know it.
        copies, groups: asynchronous copies under way, not yet and already committed. products: those of matrices.
    """

    def __init__(self, program: Program, number: int):
        grid = program.grid
        self.program, self.number, self.counter = program, number, 0
        self.rows = grid.code.registers.make()
        first = program.number * grid.warps
        known = grid.clocks.known[first + number]
        self.in_grid = Actor(first + number, known)
        self.in_program = Actor(number, known[first : first + grid.warps])
        self.copies: list = []
        self.groups: list = []
        self.products = Products()
        self.waiting = self.ended = False

    def run(self, instructions: int) -> int:
        """Run up to so many instructions; return how many, and stop before another warp must come first."""
        steps, counter = self.program.grid.code.steps, self.counter
        done = 0
        while done < instructions:
            done += 1
            after = steps[counter](self)
            if after is None:
                counter += 1
            elif after >= 0:
                counter = after
            else:
                counter += 1
                self.waiting, self.ended = after == BARRIER, after == EXIT
                break
        self.counter = counter
        return done

    def special(self, name: str):
        """Return a special register's value, one for all lanes or one per lane."""
        program = self.program
        if name == "%tid.x":
            return np.arange(LANES, dtype=np.uint32) + LANES * self.number
        value, _, axis = name.partition(".")
        if value in ("%ctaid", "%nctaid") and axis in ("x", "y", "z"):
            return (program.place if value == "%ctaid" else program.grid.size)["xyz".index(axis)]
        raise UnsupportedInstruction(f"special register {name}")

    def acquire(self, address: int) -> None:
        """Take over what the releases at `address` have handed on."""
        grid = self.program.grid
        if (handed := grid.memory.released.get(address)) is not None:
            grid.clocks.acquire(self.in_grid.number, handed)

    def release(self, address: int) -> None:
        """Hand on what this warp knows, beside what earlier releases at `address` have: they form a chain."""
        released, known = self.program.grid.memory.released, self.in_grid.known
        released[address] = np.maximum(released[address], known) if address in released else known.copy()

    def overwrite(self, address: int, releases: bool) -> None:
        """A store, which ends the chain of releases at `address` and may begin another."""
        released = self.program.grid.memory.released
        if released:
            released.pop(address, None)
        if releases:
            self.release(address)


class Program:
    """The warps that share a memory and meet at block barriers."""

    def __init__(self, grid: Grid, number: int, place: tuple[int, int, int]):
        self.grid, self.number, self.place = grid, number, place
        self.shared = make_shared(grid.shared_size, grid.code.granule, grid.warps, grid.instructions)
        if grid.code.has_products:
            self.shared.close_to_products()
        self.warps = [Warp(self, number) for number in range(grid.warps)]

    def runnable(self) -> list[Warp]:
        """Return the warps that can go on; lets them through the barrier if all have reached it."""
        able = [warp for warp in self.warps if not (warp.waiting or warp.ended)]
        if able or all(warp.ended for warp in self.warps):
            return able
        if late := [warp.number for warp in self.warps if warp.ended]:
            raise SynchronisationError(f"warps {late} of program {self.place} have ended, others wait at a barrier")
        counters = {warp.counter for warp in self.warps}
        if len(counters) > 1:
            instructions = [str(self.grid.instructions[counter - 1]) for counter in sorted(counters)]
            raise SynchronisationError(f"warps of program {self.place} meet at barriers {' and '.join(instructions)}")
        self.grid.clocks.pass_block_barrier(self.number)
        for warp in self.warps:
            warp.waiting = False
        return self.warps


class Grid:
    """One launch.

    Args:
        code: of the kernel. size: of the grid, (x, y, z).
        shared_size: bytes of shared memory of a program. cooperative: whether all programs run at once.
        seed: of the order. tensors: behind the kernel's pointers, by name.

    Attributes:
        parameters: the kernel's, by name: numbers, and addresses out of `memory.addresses`; to be set before `run`.
    """

    def __init__(
        self, code: Code, size: tuple[int, int, int], shared_size: int, cooperative: bool, seed: int,
        tensors: dict,
    ):  # fmt: skip
        self.code, self.size, self.shared_size, self.cooperative = code, size, shared_size, cooperative
        self.instructions = list(code.kernel.instructions)
        self.warps = code.kernel.threads // LANES
        self.clocks = Clocks(size[0] * size[1] * size[2], self.warps)
        self.memory = GlobalMemory(tensors, self.clocks, self.instructions)
        self.parameters: dict[str, int] = {}
        self.random = random.Random(seed)

    def run(self, limit: int = 1 << 40) -> int:
        """Run all programs to their end; return the number of instructions run. SynchronisationError after `limit`."""
        x, y, z = self.size
        places = [(i, j, k) for k in range(z) for j in range(y) for i in range(x)]
        numbers = list(range(len(places)))
        self.random.shuffle(numbers)
        done = 0
        with np.errstate(all="ignore"):
            groups = [numbers] if self.cooperative else [[number] for number in numbers]
            for group in groups:
                done = self._run_together([Program(self, n, places[n]) for n in group], done, limit)
        return done

    def _run_together(self, programs: list[Program], done: int, limit: int) -> int:
        while programs:
            program = self.random.choice(programs)
            able = program.runnable()
            if not able:
                programs.remove(program)
                continue
            done += self.random.choice(able).run(self.random.choice(STRETCHES))
            if done > limit:
                raise SynchronisationError(f"the programs have not ended after {limit} instructions")
        return done
