"""SHA-256 of large files, remembered by path, size and time of change, so that starting does not read a model's weights whole."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

from nashtune.store.files import write_json

REMEMBERED_BYTES = 1 << 24
"""Smaller files are read again: it takes no longer than looking."""
SETTLED_NS = 2_000_000_000
"""A file changed less than this before it was read may change again within one tick of the file system's clock."""


def file_digest(file: Path, memory: Path | None = None) -> bytes:
    """SHA-256 of the content; taken from the folder ``memory`` where the file has not changed since it was put there."""
    file = file.resolve()
    stat = file.stat()
    if memory is None or stat.st_size < REMEMBERED_BYTES:
        return _read(file)
    note = memory / f"{hashlib.sha256(str(file).encode()).hexdigest()[:24]}.json"
    now = {"path": str(file), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "inode": stat.st_ino}
    known = _note(note)
    if known is not None and {name: known.get(name) for name in now} == now:
        return bytes.fromhex(known["sha256"])
    digest = _read(file)
    if time.time_ns() - stat.st_mtime_ns > SETTLED_NS:
        write_json(note, {**now, "sha256": digest.hex()})
    return digest


def _read(file: Path) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _note(file: Path) -> dict[str, str] | None:
    """A note that cannot be read is none: the file is read instead."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
