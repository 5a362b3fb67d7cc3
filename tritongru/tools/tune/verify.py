"""Compile every entry of a table and hold it to its budget: what a table claims is checked, not believed."""

from __future__ import annotations

import datetime
from dataclasses import replace
from pathlib import Path

from ...tuning import choices, table_files, tables
from ...tuning.configs import Device
from ...tuning.tables import Entry, Table
from .. import show
from ..files import replace_file
from .store import fingerprint_kernels
from .workers import Compilers, Job


def verify_table(path: Path, jobs: int, seconds: float, repair: bool = False) -> int:
    """Print every entry that its device cannot run or that breaks the compiler's budget; return 1 if there is one.

    With `repair` the table is written again without those entries, which the formula then serves, and the others say
    what the kernels of today take of registers and shared memory.
    """
    table = table_files.read(path)
    broken = [f"{path}: {problem}" for problem in table.problems]
    kept: list[Entry] = []
    wanted: dict[Job, list[Entry]] = {}
    for entry in table.entries:
        if reasons := misfits(table, entry):
            broken += [f"{entry}: {reason}" for reason in reasons]
        else:
            wanted.setdefault(Job(table.device["target"], entry.key, entry.config), []).append(entry)
    with show.show_steps("verify") as report, Compilers(jobs, seconds) as compilers:
        for done, (job, compiled) in enumerate(compilers.run(wanted), 1):
            for entry in wanted[job]:
                broken += [f"{entry}: {reason}" for reason in compiled.wrong]
                if compiled.wrong:
                    continue
                kept.append(replace(entry, registers=compiled.registers, shared=compiled.shared))
                if entry.shared and compiled.shared > entry.shared:
                    broken.append(f"{entry}: {compiled.shared} bytes of shared memory, {entry.shared} in the table")
            report(done, len(wanted), f"{len(broken)} broken")
    print("\n".join([*broken, f"{path}: {len(table.entries)} entries, {len(broken)} broken"]))
    if repair and not table.problems:
        today = f"{datetime.date.today().isoformat()} with kernels {fingerprint_kernels()}"
        used = {entry.provenance for entry in kept}
        table.provenances = {k: v | {"verified": today} for k, v in table.provenances.items() if k in used}
        table.entries = tables.merge([], kept)
        replace_file(path, table_files.dump(table))
        print(f"{path}: written again with {len(kept)} entries")
    return int(bool(broken))


def table_device(table: Table) -> Device:
    """Return the device that a table is for."""
    known = ("processors", "shared_memory", "warp_size", "name", "target")
    return Device(**{name: table.device[name] for name in known})


def misfits(table: Table, entry: Entry) -> list[str]:
    """Return why the table's own device cannot run an entry, in any batch bucket that it serves."""
    return choices.reasons_against(entry, entry.key, entry.batches[1], table_device(table))
