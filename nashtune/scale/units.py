"""What an engine schedules: units of work, the roles that do them, and what a worker keeps open between two of them.

A role (what a worker does) is a picklable object: ``open()`` loads whatever it needs, a model say, and ``work`` turns a
unit into a committed object and a small dict of facts. Nothing bulky passes through an engine.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from nashtune.errors import NashtuneError, SamplingError
from nashtune.scale.claims import Claims


@dataclass(frozen=True, slots=True)
class Unit:
    """One piece of work: a row group of the input file, and the object to commit."""

    index: int
    source: Path
    target: Path
    beside: Path | None = None
    """A second input (as the prompts beside their samples)."""
    stage: Path | None = None
    """Folder of the stage, where workers say what they are at; None: nobody looks."""


Facts = dict[str, float]


class Role(Protocol):
    """What a worker does with a unit."""

    def key(self) -> str:
        """Roles with one key open the same thing, so that a worker keeps what it loaded."""
        ...

    def open(self) -> Any: ...

    def work(self, opened: Any, unit: Unit) -> Facts:
        """Do ``unit`` with what ``open`` returned, and commit its object."""
        ...


class WorkEngine(Protocol):
    """Decides where units run. What they made lies in their objects; losing an engine loses the units in flight."""

    def start(self) -> None:
        """Have the workers load their libraries while the caller does something else."""
        ...

    def run(self, role: Role, units: Sequence[Unit]) -> Iterator[tuple[Unit, Facts]]:
        """Do the units that are not committed yet, yielding each as it ends (any order)."""
        ...

    def pause(self) -> None:
        """No units for a while, as when only a judge is at work: workers that hold what others could use give it back."""
        ...

    def release(self) -> None:
        """Forget what was loaded for units, before something else needs the memory."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class Resting(Protocol):
    """Something opened that is costly to start and can be put to rest: it gives back the memory it computes with, and a
    role may open it again for something else."""

    def rest(self) -> bool:
        """Give back memory. False: nothing is left that would be worth keeping."""
        ...

    def close(self) -> None:
        """Give back everything."""
        ...


@runtime_checkable
class Reopening(Protocol):
    """A role that may go on with what another role left at rest."""

    def reopen(self, resting: Any) -> Any | None:
        """What ``open`` would return, made from ``resting``; None where that is of another kind."""
        ...


class Opened:
    """What the last role opened, kept as long as the next one would open the same; beside it, what lies at rest."""

    def __init__(self, worker: str | None = None) -> None:
        self._claims = Claims(worker)
        self._key: str | None = None
        self._value: Any = None
        self._resting: Resting | None = None

    def work(self, role: Role, unit: Unit) -> Facts:
        if self._key != role.key():
            self.rest()  # freed before the next thing is loaded
            self._value = self._open(role)
            self._key = role.key()
        if unit.stage is not None:
            self._claims.begin(unit.stage, unit.target.name)
        return role.work(self._value, unit)

    def _open(self, role: Role) -> Any:
        if self._resting is None or not isinstance(role, Reopening):
            return role.open()
        resting, self._resting = self._resting, None
        try:
            value = role.reopen(resting)
        except BaseException:
            resting.close()
            raise
        if value is not None:
            return value
        resting.close()  # of no use to this role, and two such things at once may not fit
        return role.open()

    def rest(self) -> None:
        """Give back the memory of what is open."""
        value, self._key, self._value = self._value, None, None
        if isinstance(value, Resting) and value.rest():
            self._resting = value
        if value is not None:
            from nashtune.model.allocator import give_back_memory

            del value
            give_back_memory()

    def close(self) -> None:
        """Give back everything."""
        for thing in (self._value, self._resting):
            if isinstance(thing, Resting):
                thing.close()
        self._key = self._value = self._resting = None


def obey(opened: Opened, order: tuple[Role, Unit] | None) -> tuple[Facts, Exception | None]:
    """Do a unit, or rest (None) -> the unit's facts, and what went wrong."""
    name = "rest" if order is None else f"unit {order[1].target.name}"
    try:
        if order is not None:
            return opened.work(*order), None
        opened.rest()
    except NashtuneError as error:
        return {}, error
    except Exception as error:  # noqa: BLE001 - told to the parent, which raises it
        return {}, SamplingError(f"{name}: {type(error).__name__}: {error}\n{traceback.format_exc()}")
    return {}, None
