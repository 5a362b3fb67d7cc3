"""Damaged weight files by the thousand: a file is read, or a ValueError names it; nothing else may happen.

    python tests/long/fuzz_files.py --seconds 600

Each file is a good one with bytes changed, cut off, repeated or moved, all from a seed. A child process reads a batch
of them, so that a crash is seen and not suffered. What counts as a failure: another error than ValueError, a crash, a
read that takes longer than a limit, memory that grows beyond a limit, a file written or removed, a process started, a
socket opened, a module imported while a file is read. The file of a failure is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

SUFFIXES = (".h5", ".weights.h5", ".keras", ".safetensors", ".pt")
BATCH = 2000
SECONDS_PER_FILE = 5.0
MEMORY_LIMIT = 256 << 20
# What a read has no business doing, as Python's own audit reports it.
FORBIDDEN = (
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove", "os.rename", "os.mkdir",
    "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "shutil.", "socket.", "ctypes.dlopen", "compile",
    "exec", "import", "pickle.find_class", "urllib.",
)  # fmt: skip


def write_good_files(folder: Path) -> list[Path]:
    """Write one sound file of every format: a GRU, a Bidirectional, and one compressed."""
    import h5py

    from tritongru.keras import GRU, Bidirectional
    from tritongru.tools.weight_files import convert

    stack = [
        Bidirectional(GRU(4, input_size=3, return_sequences=True), name="both"),
        GRU(4, input_size=8, kernel_regularizer="l2", name="last"),
    ]
    paths = [folder / f"good{suffix}" for suffix in SUFFIXES]
    for path in paths:
        convert.save_layers(stack[0] if path.suffix == ".pt" else stack, path)
    for name, options in (("gzip", {"compression": "gzip", "shuffle": True}), ("chunks", {"chunks": True})):
        path = folder / f"{name}.weights.h5"
        with h5py.File(paths[1]) as source, h5py.File(path, "w") as target:
            copy_group(source, target, options)
        paths.append(path)
    for path in paths:
        convert.load_layers(path)
    return paths


def copy_group(source, target, options: dict) -> None:
    """Copy an HDF5 group, its arrays stored with other options."""
    for name, value in source.attrs.items():
        target.attrs[name] = value
    for name, item in source.items():
        if hasattr(item, "shape"):
            target.create_dataset(name, data=item[()], **options)
        else:
            copy_group(item, target.create_group(name), options)


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """Return `data` with one to four kinds of damage."""
    damaged = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        if not damaged:
            break
        place, other = (int(rng.integers(len(damaged))) for _ in range(2))
        length = int(rng.choice([1, 2, 4, 8, 64]))
        kind = rng.choice(["flip", "set", "ones", "count", "cut", "repeat", "move", "text"], p=[0.3, *[0.1] * 7])
        if kind == "flip":
            damaged[place] ^= 1 << int(rng.integers(8))
        elif kind == "set":
            damaged[place : place + length] = rng.bytes(length)
        elif kind == "ones":
            damaged[place : place + length] = (b"\xff" if rng.random() < 0.7 else b"\0") * length
        elif kind == "count":
            # A size or an offset, where the formats keep them: small, at a border, or far beyond the file.
            value = int(rng.choice([0, 1, 255, len(data), 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62]))
            place -= place % 4
            damaged[place : place + 8] = value.to_bytes(8, "little")[: int(rng.choice([4, 8]))]
        elif kind == "cut":
            del damaged[place:]
        elif kind == "repeat":
            damaged[place:place] = damaged[other : other + 64]
        elif kind == "move":
            damaged[place : place + length] = damaged[other : other + length]
        else:
            word = rng.choice([b"../../x", b"kernel", b"GRU", b"{", b'"', b"\0", b"Bidirectional", b"\x80\x04c"])
            damaged[place : place + len(word)] = word
    return bytes(damaged)


@contextlib.contextmanager
def watching() -> Iterator[list[str]]:
    """Record what is done inside that `FORBIDDEN` names, and files opened for writing."""
    global _events
    _events = events = []
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked.append(True)
    try:
        yield events
    finally:
        _events = None


_events: list[str] | None = None
_hooked: list[bool] = []


def _hook(event: str, arguments: tuple) -> None:
    if _events is None:
        return
    if event == "open":
        mode, flags = arguments[1], arguments[2]
        if (mode and set(str(mode)) & set("wax+")) or (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)):
            _events.append(f"open {arguments[0]} {mode}")
    elif event.startswith(FORBIDDEN):
        _events.append(f"{event} {str(arguments)[:200]}")


def read_damaged(paths: list[Path], folder: Path, seed: int, rounds: int) -> dict:
    """Damage and read `rounds` files; return the counts, the failures and the growth of memory in bytes."""
    from tritongru.tools.weight_files import convert

    rng = np.random.default_rng(seed)
    sound = [path.read_bytes() for path in paths]
    report = {"read": 0, "refused": 0, "failures": [], "slowest": 0.0}
    with watching():
        for path in paths:
            convert.load_layers(path)
    before = peak_memory()
    for round_ in range(rounds):
        index = int(rng.integers(len(paths)))
        bad = folder / f"bad{''.join(paths[index].suffixes)}"
        bad.write_bytes(damage(sound[index], rng))
        begun, problem = time.perf_counter(), ""
        with watching() as events:
            try:
                convert.load_layers(bad)
                report["read"] += 1
            except ValueError as error:
                report["refused"] += 1
                if not str(error).startswith(f"{bad}: "):
                    problem = f"the message does not begin with the file: {error}"
            except BaseException as error:
                problem = f"{type(error).__name__}: {error}"
        took = time.perf_counter() - begun
        report["slowest"] = max(report["slowest"], took)
        if took > SECONDS_PER_FILE:
            problem = f"took {took:.1f} s"
        if events:
            problem = f"did {events[:3]}"
        if (left := sorted(p.name for p in folder.iterdir() if p != bad)) != sorted(p.name for p in paths):
            problem = f"left {left}"
        growth = peak_memory() - before
        if growth > MEMORY_LIMIT and not report.get("grown"):
            report["grown"] = True
            problem = f"memory grew by {growth >> 20} MiB"
        if problem:
            report["failures"].append(f"{paths[index].name}, seed {seed}, round {round_}: {problem}")
            kept = Path(tempfile.gettempdir()) / f"fuzz_{seed}_{round_}_{bad.name}"
            kept.write_bytes(bad.read_bytes())
        bad.unlink()
    report["growth"] = peak_memory() - before
    return report


def peak_memory() -> int:
    """Return the most memory this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", action="store_true", help="read one batch and print its report as JSON")
    options = parser.parse_args()
    if options.batch:
        with tempfile.TemporaryDirectory() as folder:
            paths = write_good_files(Path(folder))
            print(json.dumps(read_damaged(paths, Path(folder), options.seed, BATCH)))
        return 0
    stop, seed = time.monotonic() + options.seconds, options.seed
    total = {"read": 0, "refused": 0, "failures": [], "growth": 0, "slowest": 0.0}
    while time.monotonic() < stop:
        command = [sys.executable, __file__, "--batch", "--seed", str(seed)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=BATCH * SECONDS_PER_FILE)
            report = json.loads(done.stdout) if done.returncode == 0 else None
            note = f"exit {done.returncode}: {done.stderr[-500:]}"
        except subprocess.TimeoutExpired:
            report, note = None, "did not end"
        if report is None:
            report = {"failures": [f"seed {seed}: {note}"]}
        for name, value in report.items():
            if name in ("growth", "slowest"):
                total[name] = max(total[name], value)
            elif name != "grown":
                total[name] += value
        print(*report["failures"], sep="\n", end="\n" if report["failures"] else "", flush=True)
        seed += 1
    count = total["read"] + total["refused"]
    print(
        f"{count} files: {total['read']} read, {total['refused']} refused, {len(total['failures'])} failures; "
        f"memory grew by {total['growth'] >> 20} MiB at most, the slowest took {total['slowest']:.2f} s"
    )
    return 1 if total["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
