"""Roles small enough to try an engine with: they commit a line of text, and misbehave on demand."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from nashtune.errors import ModelError
from nashtune.scale.units import Facts, Unit
from nashtune.store.files import create_once


@dataclass(frozen=True, slots=True)
class Writer:
    """Commits who did the unit. Units in ``deadly`` kill their process once each, those in ``poison`` always; ``broken`` ones
    raise, ``refused`` ones say that nothing can be done; a unit waits until as many units as it says in ``after`` are there."""

    deadly: frozenset[int] = frozenset()
    poison: frozenset[int] = frozenset()
    broken: frozenset[int] = frozenset()
    refused: frozenset[int] = frozenset()
    together: int = 0
    """Workers that must have begun a unit each before any goes on."""

    def key(self) -> str:
        return "writer"

    def open(self) -> str:
        return f"opened in {os.getpid()}"

    def work(self, opened: str, unit: Unit) -> Facts:
        begun = unit.target.with_suffix(f".begun-{os.getpid()}")
        once = not list(unit.target.parent.glob(f"{unit.target.stem}.begun-*"))
        begun.touch()
        if unit.index in self.poison or (unit.index in self.deadly and once):
            os.kill(os.getpid(), signal.SIGKILL)
        if unit.index in self.broken:
            raise ValueError(f"unit {unit.index} is broken")
        if unit.index in self.refused:
            raise ModelError(f"unit {unit.index}: no such model")
        while len({file.suffix for file in unit.target.parent.glob("*.begun-*")}) < self.together:
            time.sleep(0.01)
        create_once(unit.target, f"{unit.index} by {os.getpid()}".encode())
        return {"prompts": 2}


def units_in(folder: Path, count: int) -> list[Unit]:
    source = folder / "source"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.touch()
    return [
        Unit(index, source, folder / "stage" / f"{index:06d}-k.parquet", stage=folder / "stage")
        for index in range(count)
    ]
