"""Apply the bugs of mutant_list.py to a copy of the repository, one at a time, and require that tests catch each.

    python tests/long/mutants.py                     all of them
    python tests/long/mutants.py --only compat.py    those whose file or number matches

A test must fail because of the bug: a mutant whose tests pass survives, and one whose tests cannot be collected, or
whose text does not occur exactly once, is an error of the list. So is one whose tests fail without the bug, which each
choice of tests is run for once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import hypothesis
import pytest
import torch
from mutant_list import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 600


def occurrences(mutant: Mutant, root: Path = ROOT) -> int:
    """Return how often the mutant's text occurs in its file."""
    return (root / "tritongru" / mutant.file).read_text().count(mutant.old)


def run_tests(mutant: Mutant, root: Path) -> tuple[int | None, str]:
    """Return pytest's exit status (None where it ran out of time) and the end of its output.

    The tests run in a fork of this process, which has imported what is slow to import and nothing of this package.
    """
    assert not any(name in sys.modules for name in ("tritongru", "triton")), "a fork would use the package unchanged"
    log = root / "output"
    child = os.fork()
    if child == 0:
        _run_pytest(mutant, root, log)
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")[-2000:]
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None, f"no end within {TIMEOUT_S} s"


def _run_pytest(mutant: Mutant, root: Path, log: Path) -> None:
    """Run the mutant's tests and end this process; never returns."""
    status = 70
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(root)
        sys.path[:] = [str(root), *(path for path in sys.path if not Path(path).is_relative_to(ROOT / "tests"))]
        os.environ["PYTHONPATH"] = str(root)
        os.environ["TRITON_INTERPRET"] = "1" if "interpreted/" in mutant.tests else "0"
        sys.dont_write_bytecode = True
        torch.set_num_threads(1)
        # One failure is enough: none is shrunk.
        hypothesis.settings.register_profile("found", phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate))
        hypothesis.settings.load_profile("found")
        words = [f"tests/{word}" if ".py" in word else word for word in mutant.tests.split()]
        status = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *words]))
    finally:
        os._exit(status)


def judge(mutant: Mutant, root: Path, sound: dict[str, bool]) -> tuple[str, str]:
    """Apply one mutant in `root`, run its tests, undo it; return "caught", "survived" or "error", and the output.

    `sound` keeps which choices of tests pass without a bug.
    """
    path = root / "tritongru" / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        return "error", f"its text occurs {text.count(mutant.old)} times"
    if mutant.tests not in sound:
        status, output = run_tests(mutant, root)
        sound[mutant.tests] = status == 0
        if status != 0:
            return "error", f"without the bug:\n{output}"
    if not sound[mutant.tests]:
        return "error", "its tests fail without the bug"
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        status, output = run_tests(mutant, root)
    finally:
        path.write_text(text)
    # 1 is a failed test. A run without an end proves nothing: the machine may be slow.
    verdicts: dict[int | None, str] = {1: "caught", 0: "survived"}
    return verdicts.get(status, "error"), output


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="part of a file's name, or numbers such as 3,7,12")
    args = parser.parse_args()
    chosen = list(enumerate(MUTANTS))
    if args.only:
        numbers = {int(n) for n in args.only.split(",")} if args.only.replace(",", "").isdigit() else None
        chosen = [(n, m) for n, m in chosen if (n in numbers if numbers is not None else args.only in m.file)]
    counts: dict[str, int] = {}
    sound: dict[str, bool] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("tritongru", "tests"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", root)
        for number, mutant in chosen:
            begin = time.monotonic()
            verdict, output = judge(mutant, root, sound)
            counts[verdict] = counts.get(verdict, 0) + 1
            seconds = time.monotonic() - begin
            print(f"{number:3} {verdict:8} {seconds:5.0f} s  {mutant.file}: {mutant.new.strip()!r}", flush=True)
            if verdict != "caught":
                print(output, flush=True)
    print(f"{counts.get('caught', 0)} of {len(chosen)} caught")
    return 0 if counts.get("caught", 0) == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
