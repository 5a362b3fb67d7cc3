"""Search for a configuration without a GPU: compile what the rules allow, in the order of the model, and replay it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ...tuning.configs import Device
from ...tuning.tables import MEASURED, MODELLED, REPLAYED, Entry, bucket
from ..benchmark.timing import Timing
from .model import Machine
from .space import Candidate, Problem, list_candidates
from .workers import Compiled, Compilers, Job

NOT_COMPILED = "not compiled"


@dataclass
class Tried:
    """A candidate and what is known of it: compiled or not, timed or not.

    Attributes:
        compiled: None: not compiled. timing: of a step, ms; None: not timed. fault: why it may not win; "": it may.
    """

    candidate: Candidate
    compiled: Compiled | None = None
    timing: Timing | None = None
    fault: str = NOT_COMPILED

    @property
    def microseconds(self) -> float:
        """Of a step: measured where it was, else replayed, else modelled."""
        if self.timing is not None:
            return self.timing.p50 * 1e3
        if self.compiled is not None and self.compiled.cycles:
            return self.candidate.microseconds(self.compiled.cycles)
        return self.candidate.step.total

    @property
    def kind(self) -> str:
        """What `microseconds` is: one of `tables.KINDS`."""
        if self.timing is not None:
            return MEASURED
        return REPLAYED if self.compiled is not None and self.compiled.cycles else MODELLED


@dataclass
class Found:
    """All candidates of a problem, in the order of the model."""

    problem: Problem
    tried: list[Tried] = field(default_factory=list)

    @property
    def winner(self) -> Tried | None:
        """The best that may win: of those that were timed, else replayed, the fastest, else the model's first."""
        able = [one for one in self.tried if not one.fault]
        for kind in (MEASURED, REPLAYED):
            if known := [one for one in able if one.kind == kind]:
                return min(known, key=lambda one: one.microseconds)
        return next(iter(able), None)


def open_problems(
    problems: Iterable[Problem], device: Device, machine: Machine, known: Sequence[Entry] = ()
) -> list[Found]:
    """Return every problem with all its candidates, those against a rule marked with it.

    Args:
        known: entries of a table, whose configurations are candidates for their key, for every batch.
    """
    found = []
    for problem in dict.fromkeys(problems):
        mine = [entry.config for entry in known if entry.key == problem.key]
        candidates = list_candidates(problem, device, machine, mine)
        tried = [Tried(one, fault="; ".join(one.against) or NOT_COMPILED) for one in candidates]
        found.append(Found(problem, tried))
    return found


def compile_candidates(
    found: Sequence[Found], target: str, compilers: Compilers, depth: int, report: Callable[[int, int, str], None]
) -> None:
    """Compile the candidates of every problem and mark what may win.

    Args:
        found: changed in place, result by result, so that an interruption keeps what was found.
        depth: stop at this many that may win, in the order of the model, and what is known; 0: compile all.
        report: told how many compilations are done, how many are known to come, and what was last.
    """
    known: dict[Job, Compiled] = {}
    while True:
        jobs: dict[Job, list[Tried]] = {}
        for problem in found:
            able = sum(not one.fault for one in problem.tried)
            for one in problem.tried:
                if one.fault != NOT_COMPILED:
                    continue
                if depth and able >= depth and not one.candidate.known:
                    continue
                job = Job(target, one.candidate.problem.key, one.candidate.config)
                if job in known:
                    able += _settle(one, known[job])
                    continue
                jobs.setdefault(job, []).append(one)
                if depth:
                    able += 1  # until the compiler says otherwise
        if not jobs:
            return
        begun = len(known)
        for job, result in compilers.run(jobs):
            known[job] = result
            for one in jobs[job]:
                _settle(one, result)
            report(len(known), begun + len(jobs), f"{job.key.kernel} {job.key.dtype} U={job.key.units}")


def make_entries(found: Iterable[Found], provenances: Mapping[str, str]) -> list[Entry]:
    """Return the winners as entries; neighbouring batch buckets that share one become one entry.

    Args:
        provenances: of each kind of result, its id.
    """
    entries: list[Entry] = []
    ordered = sorted(found, key=lambda one: (*one.problem.key.group, one.problem.key.units, bucket(one.problem.batch)))
    for problem in ordered:
        if (best := problem.winner) is None:
            continue
        key, here, low = problem.problem.key, bucket(problem.problem.batch), bucket(problem.problem.batch)
        last = entries[-1] if entries else None
        if last and last.key == key and last.batches[1] * 2 == here and last.config == best.candidate.config:
            low = entries.pop().batches[0]
        compiled = best.compiled or Compiled()
        entries.append(
            Entry(
                key, (low, here), best.candidate.config, round(best.microseconds, 4), provenances[best.kind],
                compiled.shared, compiled.registers,
            )
        )  # fmt: skip
    return entries


def _settle(one: Tried, compiled: Compiled) -> int:
    one.compiled, one.fault = compiled, "; ".join(compiled.wrong)
    return int(not one.fault)
