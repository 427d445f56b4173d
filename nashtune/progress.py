"""Progress of long work: bars with rates and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_SECONDS = 15.0
Advance = Callable[[int, str], None]


@contextmanager
def progress(title: str, total: int, unit: str, console: Console | None = None) -> Iterator[Advance]:
    """Show work on ``total`` things of kind ``unit``; yields ``advance(count, note)``."""
    console = console or Console(stderr=True)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(title, total=total, note="")
            yield lambda count, note="": bar.update(task, advance=count, note=note)
        return
    yield from _plain(title, total, unit)


def _plain(title: str, total: int, unit: str) -> Iterator[Advance]:
    started = shown = time.monotonic()
    done = 0
    note = ""

    def line() -> None:
        elapsed = time.monotonic() - started
        rate = done / elapsed if elapsed > 0 else 0.0
        left = f", {(total - done) / rate:.0f} s left" if rate > 0 and done < total else ""
        extra = f", {note}" if note else ""
        print(f"{title}: {done}/{total} {unit} in {elapsed:.1f} s{left}{extra}", file=sys.stderr, flush=True)

    def advance(count: int, text: str = "") -> None:
        nonlocal shown, done, note
        done += count
        note = text or note
        if time.monotonic() - shown >= PLAIN_SECONDS and done < total:
            shown = time.monotonic()
            line()

    yield advance
    line()
