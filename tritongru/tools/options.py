"""Numbers and devices on the command line: each has a range, and what lies outside ends in one line and status 2."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

import torch

# What an option takes at most: past it a typing error is likelier than a wish.
MOST_UNITS = 65_536
MOST_ROWS = MOST_STEPS = 1 << 20
WEEK_IN_SECONDS = 7 * 24 * 3600.0


class Parser(argparse.ArgumentParser):
    """A parser that answers wrong options with one line instead of every option there is."""

    def error(self, message: str):
        """Print `message` to stderr and end with status 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def whole(low: int, high: int) -> Callable[[str], int]:
    """Return an argparse type: a whole number from `low` to `high`.

    >>> whole(1, 9)("7")
    7
    """

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected a whole number from {low:,} to {high:,}, got {text!r}")
        return value

    return parse


def number(high: float, *, zero: bool = False) -> Callable[[str], float]:
    """Return an argparse type: a number above 0, or from 0 on if `zero`, up to `high`.

    >>> number(3600)("0.5")
    0.5
    """

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        # NaN is in no range.
        if not (0 < value <= high or (zero and value == 0)):
            raise argparse.ArgumentTypeError(
                f"expected a number {'from 0' if zero else 'above 0'} to {high:,g}, got {text!r}"
            )
        return value

    return parse


def device(text: str) -> str:
    """An argparse type: the name of a device that is here."""
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split(". ")[0].split())
        raise argparse.ArgumentTypeError(f"no device {text!r} here: {reason}") from None
    return text


def memory_of(place: torch.device) -> int | None:
    """Return the bytes of memory of a device; None where the system does not say."""
    if place.type == "cuda":
        return torch.cuda.get_device_properties(place).total_memory
    if place.type != "cpu" or not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
