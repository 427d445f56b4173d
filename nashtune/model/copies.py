"""Policies for machines that do not see the run folder: uploaded once to an object store, fetched once into a machine's cache.

    PLACE/config.json, model.safetensors, ...    each created once, whole or not at all
    PLACE/manifest.json                          last of all: every file's size and SHA-256

A place without a manifest is an upload that was cut short: nobody reads it, and the next upload goes on with what is missing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nashtune.errors import StoreError
from nashtune.model.digests import file_digest
from nashtune.store.files import create_once, one_at_a_time
from nashtune.store.objects import fetch_file, is_there, names_in, put_file, read_object

MANIFEST = "manifest.json"
SUFFIXES = {".safetensors", ".bin", ".json", ".jinja", ".model", ".txt", ".py"}
"""Files of a policy's folder that loading it may read."""
KEPT, KEPT_S = 4, 24 * 3600.0
"""Copies in a machine's cache that stay, however old; others go once nobody has asked for them for so long."""


def upload_policy(folder: Path, place: Path, memory: Path | None = None) -> None:
    """Put a policy's files on the store, those that are not there; ``memory``: see ``file_digest``.

    Raises StoreError where the store cannot be written to.
    """
    there = set(names_in(place))
    if MANIFEST in there:
        return
    files = sorted(f for f in folder.iterdir() if f.suffix in SUFFIXES and f.is_file())
    manifest = {f.name: {"bytes": f.stat().st_size, "sha256": file_digest(f, memory).hex()} for f in files}
    for file in files:
        if file.name not in there:
            put_file(file.resolve(), place / file.name)
    create_once(place / MANIFEST, json.dumps(manifest, indent=1).encode())


def fetch_policy(place: Path, cache: Path) -> Path:
    """The folder of this machine's copy of what lies in ``place``; fetched, or mended where files are missing or damaged. One
    process of a machine at a time; the others find it done.

    Raises StoreError where the store holds no whole policy there, or files other than its manifest says.
    """
    folder = cache / place.name
    with one_at_a_time(cache / f"{place.name}.lock"):
        manifest = _manifest(place)
        folder.mkdir(exist_ok=True)
        for name, said in manifest.items():
            if not _is_whole(folder / name, said, cache / "digests"):
                _fetch(place / name, folder / name, said)
        for file in folder.iterdir():  # a stray file would be read, as another tokenizer's
            if file.name not in manifest:
                file.unlink()
        (cache / f"{place.name}.lock").touch()  # asked for now
    _forget_old(cache, folder)
    return folder


def _manifest(place: Path) -> Mapping[str, Any]:
    file = place / MANIFEST
    try:
        return json.loads(read_object(file))
    except FileNotFoundError:
        raise StoreError(
            f"{place}: no whole policy is there (it has no {MANIFEST}); it is uploaded by the run"
        ) from None
    except ValueError as error:
        raise StoreError(f"{file}: damaged: {error}; remove it, and the run uploads it again") from None


def _is_whole(file: Path, said: Mapping[str, Any], memory: Path) -> bool:
    return file.is_file() and file.stat().st_size == said["bytes"] and file_digest(file, memory).hex() == said["sha256"]


def _fetch(source: Path, file: Path, said: Mapping[str, Any]) -> None:
    partial = file.with_name(f".{file.name}.partial")
    if not is_there(source):
        raise StoreError(
            f"{source}: missing, though the policy's {MANIFEST} names it; remove that, and the run uploads it again"
        )
    fetch_file(source, partial)
    with partial.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != said["sha256"]:
        partial.unlink()
        raise StoreError(
            f"{source}: its SHA-256 is {found}, but the policy's {MANIFEST} says {said['sha256']}; remove both, and the run "
            "uploads them again"
        )
    partial.replace(file)


def _forget_old(cache: Path, wanted: Path) -> None:
    """Remove copies that nobody has asked for lately."""
    locks = sorted(cache.glob("*.lock"), key=lambda lock: lock.stat().st_mtime, reverse=True)
    for lock in locks[KEPT:]:
        folder = lock.with_suffix("")
        if folder != wanted and folder.is_dir() and time.time() - lock.stat().st_mtime > KEPT_S:
            with one_at_a_time(lock):
                shutil.rmtree(folder, ignore_errors=True)
