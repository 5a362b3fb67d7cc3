"""Releases of other packages, as far as the code here differs by them."""

from __future__ import annotations

import functools
import importlib.metadata
import re


def read_release(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version; (0, 0) for what is none.

    >>> read_release("3.7.1+git"), read_release("of no version")
    ((3, 7), (0, 0))
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


@functools.cache
def triton_release() -> tuple[int, int] | None:
    """Return the release of the installed Triton, without importing it; None where it is not installed."""
    for name in ("triton", "pytorch-triton"):
        try:
            return read_release(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
