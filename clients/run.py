"""Run every library with torch.nn.GRU and with ours in its place, compare, and write the table of docs/torch.md.

    .venv-clients/bin/python clients/run.py [LIBRARY ...] [--no-page | --packages]

Exits with 1 where a check that passes with torch.nn.GRU fails or differs with ours.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "torch.md"
BEGIN, END = "<!-- written by make clients -->", "<!-- end of what make clients writes -->"
# Losses and weights after a few steps of training, in float32.
RTOL, ATOL = 1e-4, 1e-5
HEADER = "| library | version | what runs | result |\n|---|---|---|---|"


def libraries() -> dict[str, str]:
    """Return the names of the checks and of the packages they are for."""
    found = {}
    for path in sorted((HERE / "checks").glob("check_*.py")):
        line = next(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("PACKAGE = "))
        found[path.stem.removeprefix("check_")] = line.split('"')[1]
    return found


def run(name: str, gru: str, folder: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Run the checks of a library in a process of their own; return report and arrays."""
    path = folder / f"{name}-{gru}.npz"
    environment = {"OMP_NUM_THREADS": "1", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", **os.environ}
    command = [sys.executable, str(HERE / "one.py"), name, gru, str(path)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=1200, check=False, cwd=folder
    )
    if done.returncode:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        return {"import": {"what": "import", "seconds": 0.0, "error": last}}, {}
    with np.load(path) as data:
        return json.loads(str(data["__report__"])), {key: data[key] for key in data.files if key != "__report__"}


def compare(check: str, theirs: dict[str, np.ndarray], ours: dict[str, np.ndarray]) -> tuple[bool, str]:
    """Return whether what both returned is equal, and that in words."""
    keys = [key for key in theirs if key.startswith(f"{check}/")]
    if not keys or sorted(keys) != sorted(key for key in ours if key.startswith(f"{check}/")):
        return False, "DIFFERENT: other names of results"
    worst = 0.0
    for key in keys:
        if theirs[key].shape != ours[key].shape:
            return False, f"DIFFERENT: {key} has shape {ours[key].shape}, with torch.nn.GRU {theirs[key].shape}"
        if not np.allclose(ours[key], theirs[key], rtol=RTOL, atol=ATOL):
            return False, f"DIFFERENT: {key} by {np.abs(ours[key] - theirs[key]).max():.1e}"
        worst = max(worst, float(np.abs(ours[key] - theirs[key]).max(initial=0.0)))
    return True, f"equal to {worst:.0e}" if worst else "equal to the bit"


def judge(name: str, package: str, folder: Path) -> tuple[list[tuple[str, str, str, str]], bool]:
    """Return the rows of the table for one library, and whether all is well."""
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return [(package, "", "", "skipped: not installed")], True
    theirs, expected = run(name, "torch", folder)
    ours, found = run(name, "tritongru", folder)
    rows, fine = [], True
    for check, report in theirs.items():
        other = ours.get(check, {"error": next(iter(ours.values()))["error"]})
        if report["error"]:
            words = f"does not run with torch.nn.GRU either: {report['error']}"
        elif other["error"]:
            fine, words = False, f"FAILS: {other['error']}"
        else:
            same, words = compare(check, expected, found)
            fine &= same
        text = " ".join(words.split())[:160].replace("|", "/")
        rows.append((package, version, report["what"], text))
        print(f"{package} {version}: {report['what']}: {text}", flush=True)
    return rows, fine


def write_page(rows: list[tuple[str, str, str, str]]) -> None:
    """Put the table between the marks in docs/torch.md.

    Raises:
        ValueError: the marks are not there.
    """
    text = PAGE.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{PAGE} has not the lines {BEGIN!r} and {END!r}")
    date = f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}"
    torch, python = importlib.metadata.version("torch"), ".".join(map(str, sys.version_info[:3]))
    lines = [f"On {date}, torch {torch}, Python {python}, on a CPU:", "", HEADER]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    before, rest = text.split(BEGIN)
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + rest.split(END)[1], encoding="utf-8")


def main() -> int:
    known = libraries()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("libraries", nargs="*", choices=[*known, []], help="all of them without")
    parser.add_argument("--packages", action="store_true", help="print the packages of the libraries, and end")
    parser.add_argument("--no-page", action="store_true", help="leave docs/torch.md as it is")
    options = parser.parse_args()
    chosen = options.libraries or list(known)
    if options.packages:
        print(*(known[name] for name in chosen))
        return 0
    rows, fine = [], True
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen:
            more, well = judge(name, known[name], Path(folder))
            rows, fine = rows + more, fine and well
    if not options.no_page:
        write_page(rows)
    return int(not fine)


if __name__ == "__main__":
    raise SystemExit(main())
