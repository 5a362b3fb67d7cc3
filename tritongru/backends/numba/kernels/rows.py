"""Rows of U numbers, read and written a vector at a time."""

from __future__ import annotations

from ..compile import helper
from .vectors import full, lanes, load, load_first, store, store_first


@helper
def put(start, index, value, count):
    """Write as much of a vector as `count` numbers allow."""
    if count >= lanes(start):
        store(start, index, value)
    elif count > 0:
        store_first(start, index, value, count)


@helper
def get(start, index, count):
    """Read a vector, zeros beyond `count` numbers."""
    if count >= lanes(start):
        return load(start, index)
    return load_first(start, index, max(count, 0))


@helper
def copy_row(source, i, target, o, U, P):
    """Copy U numbers, and zeros up to P."""
    for j in range(0, P, lanes(source)):
        store(target, o + j, get(source, i + j, U - j))


@helper
def show_row(source, i, target, o, U, P):
    """Copy U of P numbers."""
    for j in range(0, P, lanes(source)):
        put(target, o + j, load(source, i + j), U - j)


@helper
def fill_row(target, o, U):
    """Write U zeros."""
    for j in range(0, U, lanes(target)):
        put(target, o + j, full(target, 0.0), U - j)
