"""Compile the CPU kernels ahead of time, so that no call of a deployment waits for them."""

from __future__ import annotations

import argparse
import sys

from ..environment import reasons_against_numba
from .options import whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m tritongru warm`."""
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=("float32", "float64"),
        default=["float32"],
        help="what calls compute in; half precision is computed in float32 (default: float32)",
    )
    parser.add_argument("--inference", action="store_true", help="leave out what gradients need")
    parser.add_argument(
        "--processes", type=whole(1, 64), help="that compile at once; default: one for each processor core"
    )


def main(args: argparse.Namespace) -> int:
    """Compile, and print how long each kernel took and where it is kept; exit status 1 where nothing can be kept."""
    if reasons := reasons_against_numba():
        print("; ".join(reasons), file=sys.stderr)
        return 1
    from ..backends.numba.compile import cache_folder
    from ..backends.numba.warm import warm

    if (folder := cache_folder()) is None:
        print(
            "nothing compiled: no cache folder can be written to; set NUMBA_CACHE_DIR to one, or TRITONGRU_CACHE where "
            "that is not set",
            file=sys.stderr,
        )
        return 1
    for (kernel, dtype), seconds in warm(args.dtype, not args.inference, args.processes).items():
        print(f"{kernel:<12} {dtype}  {seconds:5.1f} s")
    print(f"kept in {folder}")
    return 0
