"""Compile many configurations at once, for a target or for the GPU at hand, in worker processes that can be stopped.

A worker is `python -m tritongru.tools.tune.workers`: one job per line in, one result per line out, both JSON. Processes
and not threads, since the compiler holds the interpreter; processes of their own and not a pool, since a job that takes
too long has to be ended, and its worker with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ...call.problem import Variant
from ...tuning.configs import LaunchConfig
from ...tuning.table_files import parse_config
from ...tuning.tables import Key
from .model import is_scalar
from .space import Problem

if TYPE_CHECKING:
    from ...backends.triton.ahead import Report

# CUDA's words for errors after which a context is of no more use.
LOST = ("illegal memory access", "device-side assert", "unspecified launch failure", "misaligned address")


@dataclass(frozen=True)
class Job:
    """One kernel to compile for a target; with a batch: to run on the GPU at hand and compare with the oracle."""

    target: str
    key: Key
    config: LaunchConfig
    batch: int = 0


@dataclass(frozen=True)
class Compiled:
    """What became of a job: the compiler's numbers, and what is wrong; nothing wrong: the configuration may run.

    Attributes:
        cycles: of a step of one program, replayed; 0 where the machine code cannot be. cache_bytes: that it moves to
            and from the second-level cache meanwhile.
    """

    registers: int = 0
    spills: int = 0
    shared: int = 0
    matrix: str = ""
    cycles: float = 0.0
    cache_bytes: int = 0
    seconds: float = 0.0
    wrong: tuple[str, ...] = field(default_factory=tuple)


def compile_job(job: Job) -> Compiled:
    """Compile one job in this process."""
    import torch

    from ...backends.triton.ahead import compile_scan

    key, begin = job.key, time.perf_counter()
    try:
        report = compile_scan(
            key.kernel, job.target, job.config, key.units, getattr(torch, key.dtype), key.precision,
            **kernel_features(key),
        )  # fmt: skip
    except Exception as error:  # whatever the compiler raises is its verdict on this configuration
        lines = str(error).strip().splitlines() or [""]
        return Compiled(seconds=time.perf_counter() - begin, wrong=(f"{type(error).__name__}: {lines[-1]}"[:200],))
    wrong = report.violations()
    if is_scalar(key):
        # float32 products in full precision have no matrix instruction to use.
        wrong = [reason for reason in wrong if reason != "no matrix instruction"]
    cycles, moved = (0.0, 0) if wrong else _replay(report)
    seconds = time.perf_counter() - begin
    return Compiled(report.registers, report.spills, report.shared, report.matrix, cycles, moved, seconds, tuple(wrong))


def _replay(report: Report) -> tuple[float, int]:
    """Return the cycles of a step and the bytes it moves; zeros for what cannot be replayed."""
    from ..replay.timeline import replay_cubin

    if not report.binary or report.matrix not in ("", "mma.sync"):
        return 0.0, 0
    config = report.config
    chunks = -(-report.units // config.block_k) if config.streams else 1
    _, replay = replay_cubin(report.binary, config.num_warps, chunks=chunks)
    return round(replay.cycles, 1), replay.cache_bytes


def check_job(job: Job) -> Compiled:
    """Compile one job for the GPU at hand, run it, and compare its results with the oracle's."""
    from .checking import check_config

    begin = time.perf_counter()
    wrong = check_config(Problem(job.key, job.batch), job.config)
    return Compiled(seconds=time.perf_counter() - begin, wrong=(wrong,) if wrong else ())


def is_lost(error: str) -> bool:
    """Return whether after this error the process can run nothing more on its device."""
    return any(words in error for words in LOST)


def kernel_features(key: Key) -> dict[str, Any]:
    """Return what `ahead.compile_scan` calls a key's flags: of each, the case that needs most registers."""
    features: dict[str, Any] = {"variant": Variant(reset_after="reset_before" not in key.flags)}
    if "dropout" in key.flags:
        features["drops"] = 3
    if "masked" in key.flags:
        features |= {"mask": True, "resets": True}
    return features


class Compilers:
    """Worker processes that compile jobs; a context manager.

    Args:
        workers: how many. seconds: what one job may take before its worker is ended.
        interpret: whether kernels run in Triton's interpreter.
    """

    def __init__(self, workers: int, seconds: float = 120.0, interpret: bool = False):
        self.workers, self.seconds = max(1, workers), seconds
        self._environment = os.environ | {"TRITON_INTERPRET": str(int(interpret)), "OMP_NUM_THREADS": "1"}
        self._running: dict[int, tuple[subprocess.Popen, Job | None, float]] = {}
        self._selector = selectors.DefaultSelector()
        # A file, since nobody reads a pipe while the worker is well, and a full one would stop it.
        self._complaints = tempfile.TemporaryFile("w+")

    def __enter__(self) -> Compilers:
        return self

    def __exit__(self, *_: object) -> None:
        for process, _job, _stop in list(self._running.values()):
            self._end(process)
        self._selector.close()
        self._complaints.close()

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Compiled]]:
        """Yield every job with its result, in the order in which they end."""
        waiting = list(dict.fromkeys(jobs))[::-1]
        while waiting or any(job for _, job, _ in self._running.values()):
            for number, (process, job, _) in list(self._running.items()):
                if job is None and waiting:
                    self._give(number, process, waiting.pop())
            while waiting and len(self._running) < self.workers:
                process = self._start()
                self._give(process.pid, process, waiting.pop())
            yield from self._collect()

    def _start(self) -> subprocess.Popen:
        # A session of its own: an interrupt from the keyboard is for this process, which ends the workers itself.
        process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._complaints, text=True, env=self._environment, start_new_session=True,
        )  # fmt: skip
        self._selector.register(process.stdout, selectors.EVENT_READ, process.pid)  # type: ignore[arg-type]
        self._running[process.pid] = (process, None, 0.0)
        return process

    def _give(self, number: int, process: subprocess.Popen, job: Job) -> None:
        self._running[number] = (process, job, time.monotonic() + self.seconds)
        with contextlib.suppress(BrokenPipeError):  # a worker that died says so on its output
            process.stdin.write(json.dumps(asdict(job)) + "\n")
            process.stdin.flush()

    def _collect(self) -> Iterator[tuple[Job, Compiled]]:
        stops = [stop for _, job, stop in self._running.values() if job]
        ready = self._selector.select(max(0.0, min(stops, default=0.0) - time.monotonic()))
        for item, _ in ready:
            process, job, _ = self._running[item.data]
            line = process.stdout.readline()
            if line and job:
                result = json.loads(line)
                self._running[item.data] = (process, None, 0.0)
                yield job, Compiled(**result | {"wrong": tuple(result["wrong"])})
            else:
                self._end(process)
                self._complaints.seek(0)
                last = (self._complaints.read().strip().splitlines() or ["no message"])[-1]
                if job:
                    yield job, Compiled(wrong=(f"the compiler ended with status {process.returncode}: {last}"[:200],))
        for process, job, stop in list(self._running.values()):
            if job and time.monotonic() > stop:
                self._end(process)
                yield job, Compiled(seconds=self.seconds, wrong=(f"not compiled within {self.seconds:g} s",))

    def _end(self, process: subprocess.Popen) -> None:
        self._running.pop(process.pid, None)
        with contextlib.suppress(KeyError):
            self._selector.unregister(process.stdout)  # type: ignore[arg-type]
        process.kill()
        process.wait()


def _work() -> None:
    # The compiler may write to the standard output; results go to a copy of it that only this function knows.
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        given = json.loads(line)
        key = Key(**given["key"] | {"flags": tuple(given["key"]["flags"])})
        job = Job(given["target"], key, parse_config(given["config"]), given["batch"])
        result = check_job(job) if job.batch else compile_job(job)
        print(json.dumps(asdict(result)), file=results, flush=True)
        if any(is_lost(reason) for reason in result.wrong):
            return  # another worker, with a context of its own, takes the next job


if __name__ == "__main__":
    _work()
