"""Who is at work on which unit: a small file for each worker beside the stage's objects, for people to look at.

Nothing is decided by these files: the committed object is the truth. A worker writes its file as it begins a unit, so that it
also says which unit died with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nashtune.store.files import read_json

FOLDER, PLAN = ".claims", "stage.json"


@dataclass(frozen=True, slots=True)
class Claim:
    """What one worker said last about a stage."""

    worker: str
    host: str
    unit: str
    """File name of the unit begun last; "" where the worker is known to be gone."""
    started: float
    """When that was (seconds since 1970)."""
    before: int = 0
    """Units that it did before that one."""
    lost: int = 0
    """Units that it had begun when it died, to be done again."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker of a stage under way."""

    name: str
    host: str
    done: int
    unit: str
    """File name of the unit that it is at work on; "" where there is none."""
    started: float
    """When it began that (seconds since 1970)."""
    lost: int


@dataclass(frozen=True, slots=True)
class AtWork:
    """A stage under way."""

    units: int
    done: int
    running: int
    redone: int
    """Units begun in vain by a worker that died."""
    workers: tuple[Worker, ...]


class Claims:
    """A worker's own file in the folder of the stage that it works on; written by who gives it units, where it does not see
    that folder."""

    def __init__(self, worker: str | None = None, host: str | None = None):
        self.worker = worker or f"{platform.node()}-{os.getpid()}"
        self._file: Path | None = None
        self._claim = Claim(self.worker, host or platform.node(), "", 0.0)

    def begin(self, stage: Path, unit: str) -> None:
        """Say that the unit that is to become the object ``unit`` is begun."""
        file = stage / FOLDER / f"{self.worker}.json"
        last = self._claim
        if file != self._file:
            self._file, last = file, (_read(file) if file.exists() else replace(last, unit="", before=0, lost=0))
        done = last.before + bool(last.unit)
        self._claim = replace(last, unit=unit, started=round(time.time(), 3), before=done)
        _write(file, asdict(self._claim))


def open_stage(folder: Path, units: int, committed: Collection[str]) -> None:
    """Note how many units a stage has; what earlier attempts had begun and not ``committed`` (file names) is lost."""
    _write(folder / FOLDER / PLAN, {"units": units})
    for file, claim in _claims(folder):
        if claim.unit and claim.unit not in committed:
            _write(file, asdict(_lost(claim)))


def lose(folder: Path, worker: str, committed: bool) -> None:
    """Note that a worker died. The unit that it had begun is lost, unless that is committed."""
    file = folder / FOLDER / f"{worker}.json"
    if not committed and file.exists() and (claim := _read(file)).unit:
        _write(file, asdict(_lost(claim)))


def close_stage(folder: Path) -> int:
    """Clear a finished stage's files -> units that were lost and done again."""
    redone = sum(claim.lost for _, claim in _claims(folder))
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.rmdir()  # it held nothing else: the stage's units lie on a store
    return redone


def at_work(folder: Path, committed: Collection[str]) -> AtWork | None:
    """A stage under way, by its folder and the file names of its objects; None where nothing is known of workers there."""
    if not (folder / FOLDER / PLAN).exists():
        return None
    workers, running, redone = [], 0, 0
    for _, claim in _claims(folder):
        busy = bool(claim.unit) and claim.unit not in committed
        finished = claim.before + bool(claim.unit and not busy)
        unit = claim.unit if busy else ""
        workers.append(Worker(claim.worker, claim.host, finished, unit, claim.started, claim.lost))
        running += busy
        redone += claim.lost
    return AtWork(read_json(folder / FOLDER / PLAN)["units"], len(committed), running, redone, tuple(workers))


def _lost(claim: Claim) -> Claim:
    return replace(claim, unit="", lost=claim.lost + 1)


def _claims(folder: Path) -> Iterator[tuple[Path, Claim]]:
    for file in sorted((folder / FOLDER).glob("*.json")):
        if file.name != PLAN:
            yield file, _read(file)


def _write(file: Path, value: dict[str, Any]) -> None:
    """Whole or not at all, but not made safe against a power failure: it is only looked at."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(value), encoding="utf-8")
    partial.replace(file)


def _read(file: Path) -> Claim:
    return Claim(**read_json(file))
