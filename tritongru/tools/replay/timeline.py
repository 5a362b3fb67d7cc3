"""All warps of a program, replayed in order over some steps: when each instruction of a step is issued.

The replay honours what the assembler wrote into each instruction, stalls and scoreboards, and adds `Latencies`. All
programs are taken to be equal: a strong load of step t gets its value one round trip to the second-level cache after
the last publication of step t - 1. Bytes to and from that cache go one after another, at its rate for one
multiprocessor.
Left out: changes of the clock, polls that come too early, other programs' bytes, instruction fetch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from . import sass
from .latencies import HOPPER, Latencies
from .sass import Instruction

LANES = 32
SECTOR = 32  # bytes that one lane moves at least
FEW_CHUNKS = 8  # of a streamed product, after which each takes as long as the one before


@dataclass(frozen=True)
class Replay:
    """A step in the steady state.

    Attributes:
        cycles: of the slowest warp. times: when the leading warp issues each instruction of the step.
        cache_bytes: that a program moves to and from the second-level cache.
    """

    cycles: float
    times: tuple[float, ...]
    cache_bytes: int


def replay(step: list[Instruction], warps: int, latencies: Latencies = HOPPER, passes: int = 3) -> Replay:
    """Return the replay of a step, repeated `passes` times, of which the last one counts."""
    machine = _Machine(step, warps, latencies, passes)
    machine.run()
    times = machine.issued[-len(step) :]
    cycles = max(begun[-1] - begun[-2] for begun in machine.begun)
    moved = sum(_cache_bytes(x) * (1 if x.leader else warps) for x in step)
    return Replay(cycles, tuple(t - times[0] for t in times), moved)


def replay_cubin(
    cubin: bytes, warps: int, latencies: Latencies = HOPPER, chunks: int = 1
) -> tuple[list[Instruction], Replay]:
    """Return the step of a compiled scan and its replay; `chunks`, errors: as of `sass.one_step`.

    Of many chunks the first are replayed, and the others take as long as the last of them.
    """
    code = sass.parse(sass.disassemble(cubin))
    step = sass.one_step(*code, min(chunks, FEW_CHUNKS))
    few = replay(step, warps, latencies)
    if chunks > FEW_CHUNKS:
        half = replay(sass.one_step(*code, FEW_CHUNKS // 2), warps, latencies)
        more = (chunks - FEW_CHUNKS) / (FEW_CHUNKS - FEW_CHUNKS // 2)
        moved = round(few.cache_bytes + more * (few.cache_bytes - half.cache_bytes))
        few = replace(few, cycles=few.cycles + more * (few.cycles - half.cycles), cache_bytes=moved)
    return step, few


def _cache_bytes(x: Instruction) -> int:
    """Return the bytes that a warp moves; all lanes of a poll ask for the same word."""
    if not x.starts("LDG", "STG", "RED", "ATOM") or x.starts("LDGDEPBAR"):
        return 0
    if x.leader or x.starts("RED", "ATOM") or (x.starts("LDG") and x.strong and x.size == 4):
        return SECTOR
    return LANES * x.size


class _Machine:
    """The state of the replay; a warp's `place` counts instructions over all passes."""

    def __init__(self, step: list[Instruction], warps: int, latencies: Latencies, passes: int):
        self.path, self.length, self.warps, self.its = step * passes, len(step), warps, latencies
        of_all = sum(x.publishes and not x.leader for x in step)
        self.per_pass = [of_all + (sum(x.publishes and x.leader for x in step) if w == 0 else 0) for w in range(warps)]
        self.published, self.last_publication = [0] * warps, 0.0
        self.clock, self.place = [0.0] * warps, [0] * warps
        self.begun: list[list[float]] = [[] for _ in range(warps)]
        self.boards = [[0.0] * 6 for _ in range(warps)]
        # When each group of copies to shared memory is there, the open one last.
        self.copies = [[0.0] for _ in range(warps)]
        self.free = {unit: [0.0] * 4 for unit in ("issue", "MUFU", "HMMA")}  # of each quarter
        self.shared = self.cache = 0.0
        self.arrived: dict[int, float] = {}
        self.issued: list[float] = []

    def run(self) -> None:
        """Issue the earliest instruction of any warp until all have ended."""
        while True:
            for w in range(1, self.warps):
                while self.place[w] < len(self.path) and self.path[self.place[w]].leader:
                    self.place[w] += 1
            going = [w for w in range(self.warps) if self.place[w] < len(self.path) and w not in self.arrived]
            running = [(t, w) for w in going if (t := self.ready(w)) is not None]
            if running:
                self.issue(*min(running))
            elif self.arrived:
                self.pass_barrier()
            elif going:
                raise ValueError("every warp waits for what nobody publishes")
            else:
                return

    def ready(self, w: int) -> float | None:
        """Return when warp `w` can issue; None while what it waits for has not been published."""
        x = self.path[self.place[w]]
        if x.starts("LDG") and x.strong:
            steps = self.place[w] // self.length
            if any(self.published[p] < steps * self.per_pass[p] for p in range(self.warps)):
                return None
        times = [self.clock[w], self.free["issue"][w % 4]]
        times += [self.boards[w][b] for b in range(6) if x.waits >> b & 1]
        times += [self.free[unit][w % 4] for unit in ("MUFU", "HMMA") if x.starts(unit)]
        if x.starts("DEPBAR") and (left := re.search(r"SB\d, 0x(\d+)", x.text)):
            times += self.copies[w][: -1 - int(left[1], 16)]
        return max(times)

    def pass_barrier(self) -> None:
        """All warps that go on have met."""
        after = max(self.arrived.values()) + (self.its.barrier if self.warps > 1 else 6)
        for w in self.arrived:
            self.clock[w] = after
            self.place[w] += 1
        self.arrived = {}

    def issue(self, t: float, w: int) -> None:
        """Warp `w` issues its next instruction at `t`."""
        x, its = self.path[self.place[w]], self.its
        if self.place[w] % self.length == 0:
            self.begun[w].append(t)
        if w == 0:
            self.issued.append(t)
        if x.starts("BAR"):
            self.arrived[w] = t
            return
        self.free["issue"][w % 4] = t + 1
        done, self.clock[w] = t, t + max(1, x.stall)
        if x.starts("MUFU"):
            self.free["MUFU"][w % 4], done = t + its.mufu_every, t + its.mufu
        elif x.starts("HMMA"):
            self.free["HMMA"][w % 4] = t + its.product_every
        elif x.starts("LDS", "STS"):
            moved = 8 * 16 * x.matrices if x.starts("LDSM") else LANES * x.size
            self.shared = max(t + 8, self.shared) + moved / its.shared_rate
            done = self.shared - 8 + (its.ldsm if x.starts("LDSM") else its.lds if x.starts("LDS") else its.sts)
        elif moved := _cache_bytes(x):
            begin = max(t, self.last_publication) if x.strong and x.starts("LDG") else t
            self.cache = max(begin, self.cache) + moved / its.cache_rate
            if x.starts("LDGSTS"):
                self.copies[w][-1] = max(self.copies[w][-1], self.cache + its.cache)
            elif x.starts("LDG", "ATOM"):
                done = self.cache + its.cache
        elif x.starts("LDGDEPBAR"):
            # No wait leaves more than 63 under way.
            self.copies[w] = [*self.copies[w][-63:], 0.0]
        elif x.starts("SHFL"):
            done = t + its.shuffle
        elif x.starts("S2"):
            done = t + its.special
        elif x.starts("VOTE", "R2P", "MATCH", "REDUX", "F2F", "I2F", "F2I", "LDC", "ULDC"):
            done = t + its.other
        elif x.starts("MEMBAR"):
            self.clock[w] = t + its.fence
        elif x.starts("ERRBAR", "CGAERRBAR", "CCTL"):
            self.clock[w] = t + 10
        if x.publishes:
            self.published[w] += 1
            self.last_publication = max(self.last_publication, t)
        if x.writes != 7:
            self.boards[w][x.writes] = max(self.boards[w][x.writes], done)
        if x.reads != 7:
            self.boards[w][x.reads] = max(self.boards[w][x.reads], t + its.source_read)
        self.place[w] += 1
