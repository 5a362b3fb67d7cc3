"""The stopwatch, and files under bad conditions."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time

import pytest

from tritongru.tools import files
from tritongru.tools.benchmark import timing


def test_calls_take_turns_in_an_order_that_rotates():
    order = []
    calls = {name: lambda i, name=name: (order.append(name), time.sleep(3e-3)) for name in "ab"}
    found = timing.measure(calls, seconds=0, rounds=9, least=4)
    measured = "".join(order[-16:])
    assert measured == "aabbbbaaaabbbbaa"  # each once before it is timed, see `timing.measure`
    assert {len(t.samples) for t in found.values()} == {4}


def test_time_is_what_passed():
    found = timing.measure({"one": lambda i: time.sleep(2e-3), "four": lambda i: time.sleep(8e-3)}, seconds=0.05)
    assert 2 <= found["one"].p20 <= found["one"].p50 <= found["one"].p80
    assert found["four"].p50 >= 8
    assert timing.ratio(found["four"], found["one"]) > 1.5


def test_samples_take_their_inputs_in_rotation():
    seen = []
    timing.measure({"x": lambda i: (seen.append(i), time.sleep(3e-3))}, seconds=0, least=5)
    assert seen[-10:] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]  # each once before it is timed


@pytest.mark.parametrize("bad", [dict(least=0), dict(rounds=0), dict(seconds=-1)], ids=str)
def test_bad_options_are_named(bad):
    with pytest.raises(ValueError, match="least"):
        timing.measure({}, **bad)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    files.replace_file(path, "old\n")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.replace_file(path, "new\n")
    assert path.read_text() == "old\n"
    assert os.listdir(tmp_path) == ["a.csv"]


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.csv"
    files.replace_file(path, "old\n")
    code = (
        "import os, signal\nfrom tritongru.tools import files\n"
        "files.os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"with files.hold_lock({str(path)!r}): files.replace_file({str(path)!r}, 'new')\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert path.read_text() == "old\n"
    with files.hold_lock(path, timeout=1):  # the lock died with its holder
        files.replace_file(path, "newer\n")
    assert path.read_text() == "newer\n"


def test_a_held_lock_is_waited_for_and_named(tmp_path):
    path = tmp_path / "a.csv"
    with files.hold_lock(path), pytest.raises(TimeoutError, match=r"a\.csv\.lock"), files.hold_lock(path, timeout=0.1):
        pass


def test_the_mode_of_the_old_file_is_kept(tmp_path):
    path = tmp_path / "a.csv"
    files.replace_file(path, "old\n")
    path.chmod(0o640)
    files.replace_file(path, "new\n")
    assert path.stat().st_mode & 0o777 == 0o640
