"""A second run folder from a first one: files by hard link, the ledger by SQLite's own backup."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from nashtune.store.files import link_once


def link_folders(source: Path, target: Path, names: Iterable[str | Path]) -> None:
    """Give the folders ``names`` inside ``source`` a second place inside ``target``."""
    for name in names:
        shutil.copytree(source / name, target / name, copy_function=_link)


def copy_ledger(source: Path, target: Path) -> None:
    """What was paid for there is not paid for again here; nothing where there is no ledger."""
    if source.exists():
        with sqlite3.connect(source) as first, sqlite3.connect(target) as copy:
            first.backup(copy)


def _link(source: str, target: str) -> None:
    link_once(Path(source), Path(target))
