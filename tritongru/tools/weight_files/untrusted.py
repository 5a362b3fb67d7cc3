"""Checks of files that anyone may have made: sizes, zip members, JSON, and what libhdf5 takes on trust."""

from __future__ import annotations

import contextlib
import json
import mmap
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# A file may hold compressed arrays, but one that claims to unpack to more than this is not a model.
MAX_RATIO = 32
MAX_FREE_BYTES = 1 << 20
MAX_JSON_BYTES = 1 << 26
FAULTS = (
    OSError,
    KeyError,
    IndexError,
    TypeError,
    RuntimeError,
    AttributeError,
    UnicodeError,
    MemoryError,
    ArithmeticError,
    AssertionError,
    EOFError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file makes a reader raise into a ValueError that names the file."""
    try:
        yield
    except ValueError as error:
        if str(error).startswith(f"{path}: "):
            raise
        raise ValueError(f"{path}: {error}") from error
    except (*FAULTS, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read: {type(error).__name__}: {error}") from error


def check_file(path: str | Path) -> Path:
    """Return `path` as a Path; FileNotFoundError where there is none, ValueError for anything but a plain file."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.is_file():
        raise ValueError(f"{path}: not a plain file")
    return path


def check_heaps(data: bytes | mmap.mmap) -> None:
    """Raise ValueError for an HDF5 global heap that does not add up: libhdf5 walks one with an empty entry for ever.

    Source: the HDF5 file format specification, III.E "Disk Format: Level 1E - Global Heap".
    """
    # The signature, version 1 and three reserved zeros.
    signature = b"GCOL\x01\0\0\0"
    start = data.find(signature)
    while start >= 0:
        header = data[start + 8 : start + 16]
        size = struct.unpack("<Q", header)[0] if len(header) == 8 else 0
        if not 16 <= size <= len(data) - start:
            raise ValueError(f"the global heap at byte {start} claims {size} bytes")
        place = start + 16
        while place + 16 <= start + size:
            index, length = struct.unpack("<H6xQ", data[place : place + 16])
            # StoredLayer 0 is the free space, whose length counts its own header.
            step = 16 + (length + 7) // 8 * 8 if index else length
            if step < 16 or place + step > start + size:
                raise ValueError(f"the global heap at byte {start} has an entry of {length} bytes at byte {place}")
            place += step
        start = data.find(signature, start + 8)


def list_members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the members of a zip by name; ValueError for a path that climbs out of it or a name given twice."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        parts = info.filename.replace("\\", "/").split("/")
        if ".." in parts or parts[0] == "" or ":" in parts[0]:
            raise ValueError(f"the zip member {info.filename!r} points out of the archive")
        if info.filename in members:
            raise ValueError(f"the zip member {info.filename!r} appears twice")
        members[info.filename] = info
    return members


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int | None) -> bytes:
    """Return a member's bytes; ValueError where it claims more than `limit`, or than it could unpack to."""
    allowed = MAX_FREE_BYTES + MAX_RATIO * info.compress_size if limit is None else limit
    if info.file_size > allowed:
        raise ValueError(
            f"the zip member {info.filename!r} claims {info.file_size} bytes from {info.compress_size}, "
            f"more than the {allowed} allowed"
        )
    with archive.open(info) as member:
        data = member.read(info.file_size + 1)
    if len(data) != info.file_size:
        raise ValueError(f"the zip member {info.filename!r} has not the {info.file_size} bytes it claims")
    return data


def parse_json(text: str | bytes, what: str) -> Any:
    """Return what a JSON text says; ValueError, naming `what` it is, where it is too long, too deep or not JSON."""
    if len(text) > MAX_JSON_BYTES:
        raise ValueError(f"{what} has {len(text)} bytes, more than the {MAX_JSON_BYTES} allowed")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{what} is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{what} is not JSON: {error}") from error
