"""Files that appear whole or not at all, and work-unit objects that are created once."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nashtune.errors import RunLockedError, StoreError


def _write_partial(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    with partial.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    return partial


def write_atomic(path: Path, data: bytes | str) -> None:
    """Replace ``path`` by ``data``; a reader sees the old or the new content, never a part."""
    _write_partial(path, data.encode() if isinstance(data, str) else data).replace(path)


def create_once(path: Path, data: bytes) -> bool:
    """Create ``path`` unless it exists. False: another writer was first, and its content stands."""
    partial = _write_partial(path, data)
    try:
        os.link(partial, path)
    except FileExistsError:
        return False
    finally:
        partial.unlink()
    return True


def link_once(source: Path, target: Path) -> bool:
    """Give a finished file a second name, by hard link, or as a copy where that cannot be. False: ``target`` exists."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError:  # another file system, or one without hard links
        return create_once(target, source.read_bytes())
    return True


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises StoreError naming the file where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{path}: missing") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StoreError(f"{path}: damaged: {error}") from None


def digest_files(files: Iterable[Path]) -> str:
    """One hash over names and contents, for the fingerprint of a stage's output."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def remove_partials(folder: Path) -> None:
    """Clear what an interrupted writer left behind; call it only while holding the run's lock."""
    for partial in folder.rglob(".*.partial"):
        partial.unlink(missing_ok=True)


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``, after whoever holds it now; the kernel releases it when the process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``; the kernel releases it when the process ends, however it ends.

    Raises RunLockedError naming the process that holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise RunLockedError(
                f"{path.parent}: process {stream.read().strip() or '?'} is working on this run"
            ) from None
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield
