"""A stage of an iteration: its folder of committed units, and its record: written last, it names what the stage was made from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nashtune.errors import DriftError
from nashtune.seeds import content_hash
from nashtune.store.files import digest_files, files_in, link_once, read_json, write_atomic, write_json
from nashtune.store.objects import open_store


class Stage:
    """One stage of one iteration: its folder, its units, and its record. ``shared`` is where runs leave units for each other;
    ``store`` gives the run's folder on an object store, where its units go."""

    def __init__(
        self, iteration_folder: Path, name: str, shared: Path | None = None, store: Callable[[], Path] | None = None
    ):
        self.folder = iteration_folder / name
        self.file = iteration_folder / f"{name}.json"
        self.name = name
        self.shared = shared
        self._store = store

    @property
    def units(self) -> Path:
        """The folder of the committed units: where the record says, else where this run's go now."""
        if self.file.exists():
            recorded = self.record().get("units")
            return self.folder if recorded is None else open_store(recorded)
        return self.folder if self._store is None else self._store() / self.file.parent.name / self.name

    def done(self, *inputs: Any) -> bool:
        """Whether the stage is recorded as made from ``inputs``. Raises DriftError where it was made from others.

        A stage of a finished iteration is done whatever the recipe says now: a fork or rollback keeps it as it is.
        """
        if not self.file.exists():
            return False
        if (self.file.parent / "summary.json").exists():
            return True
        record = read_json(self.file)
        if record["fingerprint"] != content_hash(self.name, *inputs):
            raise DriftError(
                f"{self.file}: made from other inputs ({record['inputs']}) than now ({list(inputs)}). "
                "Something under it changed: roll back to the iteration before, or fork"
            )
        return True

    def key(self, inputs: Sequence[Any]) -> str:
        """What the names of the stage's units carry: a hash of its inputs, or what a finished stage recorded."""
        if self.file.exists():
            return self.record()["key"]
        return content_hash(self.name, *inputs, length=10)

    def borrow(self, inputs: Sequence[Any]) -> None:
        """Take over the units that another run made from the same inputs, if runs share theirs."""
        if self.shared is not None and not self.file.exists():
            there = self.units
            for file in self._exchange(inputs).glob("*.parquet"):
                link_once(file, there / file.name)

    def lend(self, inputs: Sequence[Any]) -> None:
        """Leave the units for other runs, if runs share theirs."""
        if self.shared is not None:
            for file in files_in(self.units, f"*-{self.key(inputs)}.parquet"):
                link_once(file, self._exchange(inputs) / file.name)

    def _exchange(self, inputs: Sequence[Any]) -> Path:
        assert self.shared is not None
        return self.shared / content_hash(self.name, *inputs)

    @contextmanager
    def clock(self) -> Iterator[Clock]:
        """Count this stage's seconds, those of interrupted attempts included."""
        clock = Clock(self.file.with_name(f".{self.name}.seconds"))
        try:
            yield clock
        finally:
            clock()

    def seconds(self) -> float:
        """Seconds spent on the stage so far, over all attempts."""
        return Clock(self.file.with_name(f".{self.name}.seconds")).before

    def finish(self, inputs: Sequence[Any], facts: Mapping[str, Any], output: str | None = None) -> None:
        """Write the record, last of all."""
        self.lend(inputs)
        # Of units on a store, those of these inputs: a rolled-back iteration's others may still lie there.
        made = self.files() if self._store is None else files_in(self.units, f"*-{self.key(inputs)}.parquet")
        record = {
            "stage": self.name,
            "fingerprint": content_hash(self.name, *inputs),
            "key": self.key(inputs),
            "inputs": list(inputs),
            "output": output or digest_files(made),
            "seconds": round(self.seconds(), 3),
            "facts": dict(facts),
        }
        write_json(self.file, record if self._store is None else record | {"units": str(self.units)})

    def record(self) -> dict[str, Any]:
        return read_json(self.file)

    @property
    def output(self) -> str:
        """Fingerprint of what the stage made."""
        return self.record()["output"]

    def files(self) -> list[Path]:
        """The committed units, in order of the input."""
        if self.units != self.folder and self.file.exists():
            return self.committed()
        return files_in(self.units, "*.parquet")

    def committed(self) -> list[Path]:
        """The units that the stage's record is about, in order of the input."""
        return files_in(self.units, f"*-{self.record()['key']}.parquet")

    def names(self) -> set[str]:
        """File names of the units committed so far."""
        return {file.name for file in self.files()}

    def count(self) -> int:
        """Units committed so far."""
        return len(files_in(self.units, "*.parquet"))


class Clock:
    """Seconds of a stage, kept in a small file so that they survive a kill; call it to write them down."""

    def __init__(self, file: Path):
        self.file = file
        self.before = float(file.read_text()) if file.exists() else 0.0
        self._started = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds of this attempt."""
        return time.monotonic() - self._started

    def __call__(self) -> None:
        write_atomic(self.file, f"{self.before + self.elapsed:.3f}")
