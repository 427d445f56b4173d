"""Work-unit objects on an object store, through fsspec; each is created once, and is there whole or not at all.

A place on a store is universal_pathlib's UPath, which has the methods of a Path and is typed as one here. Object stores make
an object visible when its last byte is there, so only creating it once has to be asked for: of S3 by ``If-None-Match: *``.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from nashtune.errors import StoreError
from nashtune.recipe.store_url import ACCEPTED, check_url, scheme_of


class _Target(Protocol):
    @property
    def target(self) -> Path: ...


Aimed = TypeVar("Aimed", bound=_Target)
RACERS = 4
"""Writers of one probe object, at the same time."""
ATTEMPTS = 4
"""Of creating an object where the store answers with neither yes nor no (as S3 does when two writers meet)."""
PAUSE_SECONDS = 0.25


def open_store(url: str) -> Path:
    """The place that ``scale.store`` names; nothing is read or written yet.

    Raises StoreError where the URL is of a kind that is not accepted, or its package is not installed.
    """
    try:
        check_url(url)
    except ValueError as error:
        raise StoreError(f"scale.store: {error}") from None
    if (scheme := scheme_of(url)) == "file":
        return Path(url.removeprefix("file://")).expanduser().absolute()
    try:
        from upath import UPath

        place: Any = UPath(url, use_listings_cache=False)  # other processes commit here too
        _ = place.fs
    except ImportError as error:
        raise StoreError(
            f"scale.store: {url!r} needs the package {error.name or error} (pip install nashtune[s3], or fsspec's for {scheme})"
        ) from None
    except Exception as error:
        raise _failed(url, "was opened", error) from error
    return place


def on_store(place: Path) -> bool:
    """Whether a place is on an object store rather than in this machine's file system."""
    return not isinstance(place, Path)


def check_store(root: Path) -> None:
    """Find out for real whether objects below ``root`` can be written, read and created once only: several writers race for one.

    Raises StoreError naming scale.store where not.
    """
    from nashtune.store.files import create_once

    probe = root / f"probe-{uuid.uuid4().hex}"
    barrier, won, errors = threading.Barrier(RACERS), list[bytes](), list[Exception]()

    def race(content: bytes) -> None:
        barrier.wait()
        try:
            if create_once(probe, content):
                won.append(content)
        except Exception as error:  # noqa: BLE001 - raised below, in the caller's thread
            errors.append(error)

    racers = [threading.Thread(target=race, args=(f"writer {n}".encode(),)) for n in range(RACERS)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    if errors:
        raise errors[0] if isinstance(errors[0], StoreError) else _failed(root, "was written to", errors[0])
    late = create_once(probe, b"late")
    if late or len(won) != 1 or read_object(probe) != won[0]:
        raise StoreError(
            f"scale.store: {root}: {len(won) + late} of {RACERS + 1} writers of one object were told that it is theirs, so it "
            "cannot keep the first of two (create-if-absent); accepted: S3 and stores that honour If-None-Match, or a folder"
        )
    remove_object(probe)


def create_object(place: Path, data: bytes) -> bool:
    """Create an object unless it exists. False: it does, whole; another writer's, or this one's unheard first attempt.

    Raises StoreError where the store cannot be written to.
    """
    store: Any = place
    return _create(place, lambda: store.fs.pipe_file(store.path, data, mode="create"))


def put_file(file: Path, place: Path) -> bool:
    """``create_object`` from a file, in parts where it is large."""
    store: Any = place
    return _create(place, lambda: store.fs.put_file(str(file), store.path, mode="create"))


def _create(place: Path, write: Callable[[], Any]) -> bool:
    for attempt in range(ATTEMPTS):
        try:
            write()
            return True
        except FileExistsError:
            return False
        except Exception as error:
            if isinstance(error, PermissionError | FileNotFoundError | TypeError) or attempt + 1 == ATTEMPTS:
                raise _failed(place, "was written to", error) from error
            if is_there(place):
                return False
            time.sleep(PAUSE_SECONDS * 2**attempt)
    raise AssertionError("unreachable")


def fetch_file(place: Path, file: Path) -> None:
    """Write an object's content to a file, in parts where it is large. Raises StoreError where the store cannot be read."""
    store: Any = place
    with _errors_named(place, "was read"):
        store.fs.get_file(store.path, str(file))


def read_object(place: Path) -> bytes:
    """Raises FileNotFoundError, and StoreError where the store cannot be read."""
    with _errors_named(place, "was read"):
        return place.read_bytes()


def is_there(place: Path) -> bool:
    """Raises StoreError where the store cannot be asked."""
    if not on_store(place):
        return place.exists()
    with _errors_named(place, "was looked at"):
        return place.exists()


def unit_of(table: Path, index: int) -> Path:
    """Where a store keeps one work unit of a table that is a file of row groups elsewhere."""
    return table / f"{index:06d}.parquet"


def names_in(folder: Path) -> list[str]:
    """Names of what lies directly in a folder of a store, in order; none where it has nothing, so that nothing is there."""
    store: Any = folder
    with _errors_named(folder, "was listed"):
        try:
            entries = store.fs.ls(store.path, detail=False)
        except FileNotFoundError:
            return []
    return sorted(str(entry).rstrip("/").rpartition("/")[2] for entry in entries if str(entry).strip("/") != store.path)


def absent(places: Sequence[Path]) -> list[bool]:
    """For each place, whether it is missing; one listing for each folder of a store."""
    listed: dict[str, set[str]] = {}
    found = []
    for place in places:
        if not on_store(place):
            found.append(not place.exists())
            continue
        folder = str(place.parent)
        if folder not in listed:
            listed[folder] = set(names_in(place.parent))
        found.append(place.name not in listed[folder])
    return found


def undone(units: Sequence[Aimed]) -> list[Aimed]:
    """Of work units, those whose object is not committed yet."""
    return [unit for unit, missing in zip(units, absent([u.target for u in units]), strict=True) if missing]


def remove_object(place: Path) -> None:
    """Remove it, where this user may."""
    with _errors_named(place, "was cleaned"):
        try:
            place.unlink(missing_ok=True)
        except PermissionError:  # who may not remove leaves it there
            return


@contextmanager
def _errors_named(place: Path, what: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, PermissionError, StoreError) as error:
        if isinstance(error, PermissionError):
            raise _failed(place, what, error) from error
        raise
    except Exception as error:
        raise _failed(place, what, error) from error


def _failed(place: Path | str, what: str, error: Exception) -> StoreError:
    return StoreError(
        f"scale.store: {place}: failed as it {what}: {type(error).__name__}: {error}. Accepted: {ACCEPTED}, that exists, can be "
        "reached from here and may be read and written; the same command then goes on from here"
    )
