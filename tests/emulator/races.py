"""Which accesses to memory are ordered: happens-before between the lanes, warps and programs of a grid.

Every warp has a clock that each barrier it passes moves on, and knows up to which time of every other warp's clock all
accesses lie before its own. An access (warp, lane, time) is ordered before what a lane of warp w does now, if

    the same lane made it                     (program order)
    warp w made it at an earlier time         (`bar.warp.sync` or a block barrier lies between)
    another warp made it, at a time before the one that w knows of it

What a warp knows grows at a block barrier, where all warps of a program learn what each knows, and through words of
global memory: a release hands on what the releasing warp knew at its last barrier, an acquire takes that over from the
next barrier on. So a missing barrier before a release or after an acquire shows, which is what those of
`kernels/exchange.py` are for. It is stricter than PTX in two points: a release does not cover what the releasing lane
itself wrote since the barrier, and an acquire orders nothing of its own lane before the next one.

Two accesses to the same place, not both reads, not both atomic or volatile, and not ordered: that is a race, in
whatever order this run happened to make them. Atomic and volatile ones must be of the same bytes, or they are none: who
reads a word that is written in halves may see one of them. One pair is let pass: a load from global memory and a later
store by another lane of the same warp. Triton moves values from the lanes that load them to those that store them by
shuffles, which are no barriers; but what is stored then has come out of the load. Source: NVIDIA, PTX ISA, chapter
"Memory Consistency Model".
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# In place of a lane's number: the whole warp, as ldmatrix and stmatrix do, or several lanes.
TOGETHER, SEVERAL = 32, 33
LANE_STRIDE = 64


class RaceError(AssertionError):
    """Two accesses that nothing orders."""


class Clocks:
    """What the warps of a grid know of each other: `known[w, v]`, and its own time in `known[w, w]`."""

    def __init__(self, programs: int, warps: int):
        """`warps`: of a program."""
        self.warps = warps
        self.known = np.zeros((programs * warps, programs * warps), np.int32)
        self.acquired = np.zeros_like(self.known)  # taken over at the next barrier

    def pass_block_barrier(self, program: int) -> None:
        """All warps of `program` have met."""
        own = slice(program * self.warps, (program + 1) * self.warps)
        joined = np.maximum(self.known[own].max(0), self.acquired[own].max(0))
        joined[own] += 1
        self.known[own] = joined

    def pass_warp_barrier(self, warp: int) -> None:
        """All lanes of `warp` have met."""
        known = self.known[warp]
        time = known[warp] + 1
        np.maximum(known, self.acquired[warp], out=known)
        known[warp] = time

    def acquire(self, warp: int, handed: np.ndarray) -> None:
        """`warp` has read a word that was released with `handed`."""
        np.maximum(self.acquired[warp], handed, out=self.acquired[warp])


class Actor:
    """A warp as a shadow sees it: its number there, and what it knows of the warps there."""

    def __init__(self, number: int, known: np.ndarray):
        self.number, self.known = number, known


class Shadow:
    """For each granule of a memory: who wrote it last and when, and when each warp read it last.

    Attributes:
        written: time of the last write, -1 before any.
    """

    def __init__(self, name: str, granules: int, warps: int, steps: list, is_shared: bool = False):
        """`steps`: the kernel's instructions, for messages."""
        self.name, self.steps, self.is_shared = name, steps, is_shared
        self.written = np.full(granules, -1, np.int32)
        self.writer = np.zeros(granules, np.int32)
        self.write_lane = np.zeros(granules, np.int8)
        self.write_step = np.zeros(granules, np.int32)
        self.write_width = np.zeros(granules, np.int8)  # bytes of an element that a strong write wrote, else 0
        # By the reads' strength, plain first: of each warp's last read its time and lane in one number, and its step.
        self.reads: list[tuple[np.ndarray, np.ndarray] | None] = [None, None]
        self._shape = (warps, granules)

    def read(self, places: np.ndarray, lanes: np.ndarray, actor: Actor, step: int, strong: int) -> np.ndarray:
        """Record a read of `places` by `lanes`, and return when they were written; RaceError if that is not before.

        `strong`: the bytes of an element if the read is atomic or volatile, else 0.
        """
        written = self.written[places]
        late = self._late_writes(written, places, lanes, actor, strong)
        if late is not None:
            self._report_write(places[late], actor, step, "reads")
        reads = self.reads[strong > 0]
        if reads is None:
            reads = self.reads[strong > 0] = (np.full(self._shape, -1, np.int32), np.zeros(self._shape, np.int32))
        stamps, steps = reads[0][actor.number], reads[1][actor.number]
        stamp = lanes + actor.known[actor.number] * LANE_STRIDE
        if self.is_shared:
            before = stamps[places]
            stamps[places] = stamp
            # Lanes that read one place in one instruction, or one after another at the same time.
            others = ((before // LANE_STRIDE == stamp[0] // LANE_STRIDE) & (before != stamp)) | (
                stamps[places] != stamp
            )
            if np.count_nonzero(others):
                stamps[places[others]] += SEVERAL - lanes[others]
        else:
            stamps[places] = stamp
        steps[places] = step
        return written

    def write(
        self, places: np.ndarray, lanes: np.ndarray, actor: Actor, step: int, strong: int,
        find_same: Callable | None = None,
    ) -> None:  # fmt: skip
        """Record a write of `places` by `lanes`; RaceError if another access is not ordered before it.

        `find_same`: tells for each place whether the write leaves it as it is. Where a layout holds a value several
        times, Triton lets each warp store it: the same instruction, the same value. That is no race.
        """
        late = self._late_writes(self.written[places], places, lanes, actor, strong)
        if late is not None and find_same is not None:
            late &= ~(find_same() & (self.write_step[places] == step))
        if late is not None and late.any():
            self._report_write(places[late], actor, step, "writes")
        for strength in (False, True):
            reads = self.reads[strength]
            if reads is None or (strength and strong):
                continue
            stamps = reads[0][:, places]
            late = stamps >= actor.known[:, None] * LANE_STRIDE
            if np.count_nonzero(late):
                late[actor.number] &= self.is_shared & (stamps[actor.number] % LANE_STRIDE != lanes)
                if late.any():
                    warp, where = (int(i) for i in np.argwhere(late)[0])
                    place = int(places[where])
                    self._raise(place, actor, step, "writes", warp, int(reads[1][warp, place]), "read")
        self.written[places] = actor.known[actor.number]
        self.writer[places] = actor.number
        self.write_lane[places] = lanes
        self.write_step[places] = step
        self.write_width[places] = strong

    def _late_writes(self, written, places, lanes, actor: Actor, strong: int) -> np.ndarray | None:
        """Return where the last write, of time `written`, is not ordered before `actor`; None if it is everywhere."""
        late = written >= actor.known[self.writer[places]]
        if np.count_nonzero(late):
            late &= (self.writer[places] != actor.number) | (self.write_lane[places] != lanes)
            if strong:
                late &= self.write_width[places] != strong
            if late.any():
                return late
        return None

    def _report_write(self, places: np.ndarray, actor: Actor, step: int, verb: str) -> None:
        place = int(places[0])
        self._raise(place, actor, step, verb, int(self.writer[place]), int(self.write_step[place]), "written")

    def _raise(self, place: int, actor: Actor, step: int, verb: str, other: int, other_step: int, done: str) -> None:
        whom = "another lane of it" if other == actor.number else f"warp {other}"
        raise RaceError(
            f"warp {actor.number} {verb} granule {place} of {self.name} with {self.steps[step]}, which {whom} has "
            f"{done} with {self.steps[other_step]}, and nothing orders the two"
        )
