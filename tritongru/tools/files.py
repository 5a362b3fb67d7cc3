"""Files that survive a full disk, a killed writer and two writers at once."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout  # a requirement of torch


def replace_file(path: str | os.PathLike, content: str | bytes | Callable[[Path], object]) -> None:
    """Write `path` in one step: at every moment the file is the old one or the new one, whole.

    Args:
        content: text (UTF-8), bytes, or a function that fills the file whose path it is given.

    Raises:
        FileNotFoundError: the folder does not exist.
        OSError: the new file could not be written; the old one is as it was.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: the folder {target.parent} does not exist")
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        # A temporary file is the owner's alone; keep what the old file allowed, or what the user's mask allows.
        os.chmod(temporary, target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise


def prepare_place(path: str | os.PathLike) -> None:
    """Make the folder of a file that is to be written later; OSError where `replace_file` could not write it now."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder")
    # What the rights say is not all: a file system may be read-only, or full.
    with tempfile.TemporaryFile(dir=target.parent):
        pass


@contextlib.contextmanager
def hold_lock(path: str | os.PathLike, timeout: float = 60.0) -> Iterator[None]:
    """Keep other processes that ask for the lock of `path` waiting for the length of the block.

    The lock is on a file beside it, `path` with ".lock" added, and ends with the process that holds it, however that
    ends.

    Raises:
        TimeoutError: another process held it for `timeout` seconds.
    """
    beside = Path(f"{os.fspath(path)}.lock")
    beside.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(beside).acquire(timeout=timeout, poll_interval=0.02)
    except Timeout:
        raise TimeoutError(f"{beside} was held by another process for {timeout:g} s") from None
    with held:
        yield


def _umask() -> int:
    # Can only be read by setting it.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
