"""Files that appear whole or not at all, and work-unit objects that are created once."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from nashtune.errors import RunLockedError, StoreError
from nashtune.store.objects import create_object, names_in, on_store, read_object


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
    """Create ``path`` unless it exists: by hard link, on an object store by a conditional put. False: another writer was
    first, and its content stands."""
    if on_store(path):
        return create_object(path, data)
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
    if on_store(source) or on_store(target):
        return create_once(target, whole(source))
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError:  # another file system, or one without hard links
        return create_once(target, source.read_bytes())
    return True


def whole(path: Path) -> bytes:
    """A finished file or object. Raises FileNotFoundError."""
    return read_object(path) if on_store(path) else path.read_bytes()


def files_in(folder: Path, pattern: str) -> list[Path]:
    """The files or objects directly in a folder whose names match, in order; none where there is no such folder."""
    if on_store(folder):
        return [folder / name for name in names_in(folder) if fnmatchcase(name, pattern)]
    return sorted(folder.glob(pattern))


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
        if on_store(file):
            digest.update(hashlib.sha256(read_object(file)).digest())
            continue
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
