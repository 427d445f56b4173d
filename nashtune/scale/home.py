"""Where a run lies, and what workers on machines that do not see its folder are given instead: copies on its object store."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from nashtune.errors import SamplingError
from nashtune.records import Policy
from nashtune.scale.units import Role, Unit
from nashtune.store.files import create_once, digest_files
from nashtune.store.objects import is_there, on_store, unit_of

T = TypeVar("T")
POLICIES, INPUTS = "policies", "inputs"
"""Folders of a run on its store, beside those of its iterations."""


@dataclass(frozen=True, slots=True)
class Home:
    """A run's folder, what its file ``id`` says, and its folder on an object store, where it has one."""

    folder: Path
    id: str
    store: Path | None = None

    def seen(self) -> bool:
        """Whether this machine sees that very folder (and not another run's at the same path)."""
        try:
            return (self.folder / "id").read_text(encoding="utf-8") == self.id
        except OSError:
            return False


class Sending:
    """Puts what units need on the store, each thing once, and says where. For the process that holds the run."""

    def __init__(self, home: Home):
        assert home.store is not None
        self._store = home.store
        self._policies: set[str] = set()
        self._tables: dict[Path, Path] = {}

    def sent(self, role: Role, unit: Unit) -> tuple[Role, Unit]:
        """A role and a unit for a worker elsewhere. The worker finds policies by their fingerprint (``Receiving``)."""
        rebuilt(role, self._send_policy)
        if not on_store(unit.source):
            table = self._table(unit.source)
            source, target = unit.source.absolute(), unit_of(table, unit.index)
            if not is_there(target):
                create_once(target, _row_group(source, unit.index))
            role = rebuilt(role, lambda part: table if isinstance(part, Path) and part.absolute() == source else part)
            unit = replace(unit, source=table)
        return role, replace(unit, stage=None)

    def _send_policy(self, part: Any) -> Any:
        if isinstance(part, Policy) and part.fingerprint not in self._policies:
            from nashtune.model.copies import upload_policy
            from nashtune.model.loading import cache_folder

            place = self._store / POLICIES / part.fingerprint
            upload_policy(part.folder, place, cache_folder() / "digests")
            self._policies.add(part.fingerprint)
        return part

    def _table(self, file: Path) -> Path:
        if file not in self._tables:
            self._tables[file] = self._store / INPUTS / digest_files([file])
        return self._tables[file]


class Receiving:
    """What a worker makes of a role that was sent to it: policies are those of its machine, fetched at need."""

    def __init__(self, home: Home):
        self._home = home
        self._key = ""
        self._found: dict[str, Policy] = {}

    def received(self, role: Role) -> Role:
        """The role with policies that are here. Raises StoreError where one cannot be had."""
        if role.key() != self._key:  # another thing is about to be opened: look whether it is whole
            self._key, self._found = role.key(), {}
        return rebuilt(role, self._find)

    def _find(self, part: Any) -> Any:
        if not isinstance(part, Policy):
            return part
        if part.fingerprint not in self._found:
            self._found[part.fingerprint] = replace(part, folder=self._folder(part))
        return self._found[part.fingerprint]

    def _folder(self, policy: Policy) -> Path:
        from nashtune.model.copies import fetch_policy
        from nashtune.model.loading import cache_folder

        assert self._home.store is not None
        return fetch_policy(self._home.store / POLICIES / policy.fingerprint, cache_folder() / "policies")


def rebuilt(thing: T, swap: Callable[[Any], Any]) -> T:
    """``thing`` with ``swap`` applied to it and to whatever dataclasses it is made of hold, from the outside in."""
    new = swap(thing)
    if new is not thing or not is_dataclass(thing) or isinstance(thing, type):
        return new
    changes = {
        field.name: found
        for field in fields(thing)
        if field.init and (found := rebuilt(old := getattr(thing, field.name), swap)) is not old
    }
    return replace(thing, **changes) if changes else thing


def unseen(unit: Unit, host: str) -> SamplingError:
    """What a worker says that sees neither the run folder nor a store."""
    return SamplingError(
        f"node {host} does not see {unit.source.absolute()} of this run; scale.engine 'ray' needs the run folder and the "
        "models at the same place on every node, as on a shared file system; or scale.store on an object store, through which "
        "they are sent"
    )


def _row_group(file: Path, index: int) -> bytes:
    """One row group of a parquet file, as a file of its own."""
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    with pq.ParquetFile(file) as whole:
        pq.write_table(whole.read_row_group(index), sink, compression="zstd")
    return sink.getvalue()
