"""The command line: `python -m tritongru info | compare | tune | bench | convert | warm | demo`."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from collections.abc import Sequence

# Each command's module in tritongru/tools, and what it does.
COMMANDS = {
    "info": ("info", "versions, device, how the kernels run here"),
    "compare": (
        "oracle.compare",
        "every backend against the float64 oracle: outputs and all gradients; exit status 1 on a failure",
    ),
    "tune": ("tune.sweep", "sweep launch configurations"),
    "bench": ("benchmark.bench", "named workloads, all backends side by side"),
    "convert": ("weight_files.convert", "Keras files, torch state_dicts and safetensors, both ways"),
    "warm": ("warm", "compile the CPU backend's functions ahead of the first call"),
    "demo": ("demo", "train on the Japanese Vowels recordings, then compare"),
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with one subcommand for each tool this installation has."""
    from .tools.options import Parser

    parser = Parser(prog="python -m tritongru", description="The Gated Recurrent Unit for PyTorch.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module_name, summary) in COMMANDS.items():
        module_name = f"tritongru.tools.{module_name}"
        if importlib.util.find_spec(module_name) is None:
            continue
        module = importlib.import_module(module_name)
        command = commands.add_parser(name, help=summary, description=summary)
        module.add_arguments(command)
        command.set_defaults(main=module.main)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parsed = build_parser().parse_args(arguments)
    return parsed.main(parsed)


if __name__ == "__main__":
    raise SystemExit(main())
