"""Tables and progress on a terminal: rich where it is installed, plain text without it."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Sequence


def has_rich() -> bool:
    """Return whether rich is installed and someone is watching."""
    return sys.stdout.isatty() and importlib.util.find_spec("rich") is not None


def print_table(headers: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """Print `rows` under `headers`, columns aligned."""
    cells = [[str(cell) for cell in row] for row in rows]
    if has_rich():
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(*headers, title=title or None)
        for row in cells:
            table.add_row(*map(escape, row))
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    if title:
        print(title)
    for row in (list(headers), ["-" * width for width in widths], *cells):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@contextlib.contextmanager
def show_progress(label: str, total: int) -> Iterator[Callable[[str], None]]:
    """Give a function to call after each of `total` pieces of work, with a word on how it stands."""
    if has_rich():
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns) as progress:
            task = progress.add_task(label, total=total, note="")
            yield lambda note: progress.update(task, advance=1, note=note)
        return
    start, done, shown = time.perf_counter(), 0, 0

    def advance(note: str) -> None:
        nonlocal done, shown
        done += 1
        tenths = 10 * done // total
        if tenths > shown:
            shown = tenths
            print(f"{label} {10 * tenths:3d} %  {time.perf_counter() - start:5.1f} s  {note}", flush=True)

    yield advance


@contextlib.contextmanager
def show_steps(label: str) -> Iterator[Callable[[int, int, str], None]]:
    """Give a function to call with the pieces done, the pieces known so far, and a word on the last one.

    Unlike `show_progress`, the total may change on the way; it shows the time left as well.
    """
    if has_rich():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        words = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
        with Progress(words[0], BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), words[1]) as progress:
            task = progress.add_task(label, total=None, note="")
            yield lambda done, total, note: progress.update(task, completed=done, total=total, note=note)
        return
    start = shown = time.perf_counter()

    def report(done: int, total: int, note: str) -> None:
        nonlocal shown
        now = time.perf_counter()
        if now - shown < 10.0 and done < total:
            return
        shown, left = now, (now - start) * (total - done) / max(done, 1)
        print(f"{label} {done} of {total}  {now - start:.0f} s, about {left:.0f} s left  {note}", flush=True)

    yield report
