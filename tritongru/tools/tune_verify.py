"""Compile every entry of a table and hold it to its budget: what a table claims is checked, not believed."""

from __future__ import annotations

from pathlib import Path

from .. import choices, tables
from ..configs import Device
from ..tables import Entry, Table
from . import show
from .tune_compile import Compilers, Job


def verify_table(path: Path, jobs: int, seconds: float) -> int:
    """Print every entry that its device cannot run or that breaks the compiler's budget; return 1 if there is one."""
    table = tables.read(path)
    broken = [f"{path}: {problem}" for problem in table.problems]
    broken += [f"{entry}: {reason}" for entry in table.entries for reason in misfits(table, entry)]
    wanted: dict[Job, list[Entry]] = {}
    for entry in table.entries:
        wanted.setdefault(Job(table.device["target"], entry.key, entry.config), []).append(entry)
    with show.show_steps("verify") as report, Compilers(jobs, seconds) as compilers:
        for done, (job, compiled) in enumerate(compilers.run(wanted), 1):
            for entry in wanted[job]:
                broken += [f"{entry}: {reason}" for reason in compiled.wrong]
                if entry.shared and compiled.shared > entry.shared and not compiled.wrong:
                    broken.append(f"{entry}: {compiled.shared} bytes of shared memory, {entry.shared} in the table")
            report(done, len(wanted), f"{len(broken)} broken")
    print("\n".join([*broken, f"{path}: {len(table.entries)} entries, {len(broken)} broken"]))
    return int(bool(broken))


def table_device(table: Table) -> Device:
    """Return the device that a table is for."""
    known = ("processors", "shared_memory", "warp_size", "name", "target")
    return Device(**{name: table.device[name] for name in known})


def misfits(table: Table, entry: Entry) -> list[str]:
    """Return why the table's own device cannot run an entry, in any batch bucket that it serves."""
    return choices.reasons_against(entry, entry.key, entry.batches[1], table_device(table))
