"""The GPU-marked tests in several processes, and compute-sanitizer on small cases of each schedule."""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FIELDS = ("date", "device", "torch", "triton", "what", "passed", "failed", "skipped", "seconds", "notes")
SANITIZER_TOOLS = ("memcheck", "racecheck")
# Compiling is what takes long, on a core of its own for each process.
MOST_PROCESSES = 12


@dataclass(frozen=True)
class Outcome:
    """What one part of the step found."""

    what: str
    passed: int
    failed: int
    skipped: int
    seconds: float
    notes: str = ""


def child_environment(root: Path, rehearse: bool) -> dict[str, str]:
    """Return the environment of a child process: this source tree first; in a rehearsal the interpreter and no GPU."""
    paths = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    rehearsal = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""} if rehearse else {}
    return os.environ | {"PYTHONPATH": paths} | rehearsal


def run(root: Path, out: Path, budget: float, rehearse: bool) -> int:
    """Run tests and sanitizer, write gpu-tests.csv, print a table; 1 if anything failed or nothing ran."""
    from tritongru.tools.files import replace_file
    from tritongru.tools.show import print_table

    stop = time.monotonic() + budget
    # A part of the time is kept for the sanitizer.
    outcomes = [run_pytest(root, out, 0.7 * budget, rehearse)]
    outcomes += run_sanitizer(root, stop, rehearse)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FIELDS)
    facts = _facts(rehearse)
    for o in outcomes:
        writer.writerow((*facts, o.what, o.passed, o.failed, o.skipped, f"{o.seconds:.0f}", o.notes))
    replace_file(out / "gpu-tests.csv", text.getvalue())
    print_table(FIELDS[4:], [(o.what, o.passed, o.failed, o.skipped, f"{o.seconds:.0f}", o.notes) for o in outcomes])
    return int(any(o.failed for o in outcomes) or outcomes[0].passed == 0)


def run_pytest(root: Path, out: Path, seconds: float, rehearse: bool) -> Outcome:
    """Run every GPU-marked test, shared out among processes; in a rehearsal a few tests of the kernels, interpreted."""
    begin = time.monotonic()
    environment = child_environment(root, rehearse) | {"OMP_NUM_THREADS": "1"}
    chosen = ["tests", "-m", "gpu"]
    if rehearse:
        chosen = ["tests/interpreted", "-k", "test_empty or repeated_runs"]
    # A file that needs a package that is not there is left out, and the notes say so.
    base = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    collected = subprocess.run(
        [*base, "--collect-only", *chosen], env=environment, cwd=root, capture_output=True, text=True, timeout=seconds
    )
    names = re.findall(r"^(\S+::.+)$", collected.stdout, re.M)
    if not names:
        print(collected.stdout[-3000:] + collected.stderr[-3000:])
        return Outcome("pytest", 0, 1, 0, time.monotonic() - begin, "no test was collected")
    count = 2 if rehearse else max(1, min(MOST_PROCESSES, (os.cpu_count() or 1) - 1))
    # Dealt out in turn, so that the slow ones, which stand together, are spread.
    shares = [share for share in (names[i::count] for i in range(count)) if share]
    processes = []
    for number, share in enumerate(shares):
        log = (out / f"gpu-tests-{number}.log").open("w")
        report = ["--junitxml", str(out / f"gpu-tests-{number}.xml")]
        processes.append(
            subprocess.Popen([*base, *report, *share], env=environment, cwd=root, stdout=log, stderr=subprocess.STDOUT)
        )
    late = _wait_for(processes, begin + seconds)
    passed = failed = skipped = 0
    for number, (process, share) in enumerate(zip(processes, shares, strict=True)):
        report = out / f"gpu-tests-{number}.xml"
        if report.exists():
            totals = ElementTree.parse(report).getroot().find("testsuite").attrib
            bad, idle = int(totals["failures"]) + int(totals["errors"]), int(totals["skipped"])
            passed, failed, skipped = passed + int(totals["tests"]) - bad - idle, failed + bad, skipped + idle
            report.unlink()
        elif process.returncode not in (0, None):
            # Ended from outside, or it died: its log says where.
            failed += 1
        log = out / f"gpu-tests-{number}.log"
        if process.returncode == 0:
            log.unlink()
        else:
            print(f"--- {log}, {len(share)} tests\n{log.read_text()[-2500:]}")
    missing = re.findall(r"^ERROR (\S+\.py)", collected.stdout, re.M)
    notes = f"{len(names)} tests in {len(shares)} processes" + (f"; {late} ended for lack of time" if late else "")
    notes += "".join(f"; {name} could not be collected" for name in dict.fromkeys(missing))
    notes += "".join(
        f"; {reason}" for reason in dict.fromkeys(re.findall(r"^E +(\w*Error: .*)$", collected.stdout, re.M))
    )
    return Outcome("pytest", passed, failed, skipped, time.monotonic() - begin, notes)


def run_sanitizer(root: Path, stop: float, rehearse: bool) -> list[Outcome]:
    """Run one small case of each schedule under compute-sanitizer's tools, where it is installed."""
    from tritongru.tuning.configs import SCHEDULES

    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if rehearse:
        return [_case(root, [], schedule, "plainly, no sanitizer", stop, True) for schedule in ("single", "steps")]
    if tool is None:
        return [Outcome("compute-sanitizer", 0, 0, 1, 0.0, "not installed")]
    return [
        _case(root, [tool, "--tool", name, "--error-exitcode", "9"], schedule, name, stop, False)
        for schedule in SCHEDULES
        for name in SANITIZER_TOOLS
    ]


def _case(root: Path, prefix: Sequence[str], schedule: str, name: str, stop: float, rehearse: bool) -> Outcome:
    begin, what = time.monotonic(), f"{schedule}, {name}"
    environment = child_environment(root, rehearse)
    left = stop - begin
    if left < 5:
        return Outcome(what, 0, 0, 1, 0.0, "no time left")
    command = [*prefix, sys.executable, str(root / "bench" / "small_case.py"), schedule]
    try:
        done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=left)
    except subprocess.TimeoutExpired:
        return Outcome(what, 0, 0, 1, time.monotonic() - begin, "did not end in time")
    if done.returncode:
        print(f"--- {what}\n{(done.stdout + done.stderr)[-2500:]}")
    last = (done.stdout.strip().splitlines() or [""])[-1]
    return Outcome(what, int(done.returncode == 0), int(done.returncode != 0), 0, time.monotonic() - begin, last[:100])


def _wait_for(processes: list[subprocess.Popen], stop: float) -> int:
    """Wait for all; end those that are not done by `stop`, and return how many."""
    late = 0
    for process in processes:
        try:
            process.wait(max(0.1, stop - time.monotonic()))
        except subprocess.TimeoutExpired:
            late += 1
            process.terminate()
            process.wait()
    return late


def _facts(rehearse: bool) -> tuple[str, ...]:
    import torch

    from tritongru.tools.benchmark.results import conditions

    found = conditions(torch.device("cpu" if rehearse else "cuda"))
    return found["date"], found["device"], found["torch"], found["triton"]
