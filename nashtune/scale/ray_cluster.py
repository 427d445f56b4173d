"""The ``ray`` engine: work units in actors of a Ray cluster, whose nodes may come and go.

Plain actors, one process each, are given units in small windows; prompts, answers and weights go through the run folder, which
all nodes share, or through the run's object store, and never through Ray. A dead actor is replaced, its units are given to
others, and whatever it may still commit is refused where another was first (``create_once``).
"""

from __future__ import annotations

import importlib
import os
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nashtune.errors import SamplingError
from nashtune.recipe import RaySection
from nashtune.scale.claims import lose
from nashtune.scale.home import Home, Sending
from nashtune.scale.ray_crew import Crew, Member
from nashtune.scale.units import Facts, Role, Unit
from nashtune.store.objects import is_there, on_store, undone

WAIT_S = 0.5
"""How long a look at the actors waits for news."""
TELL_S = 30.0
"""How often people are told that there is no room for any actor."""
KNOCK_S = 20.0
"""How long a cluster's address may take to answer."""
OBJECT_STORE_BYTES = 100_000_000
"""Of a cluster started here: nothing large passes through it."""


class RayEngine:
    """Runs units on a Ray cluster; connects at first use and leaves it with ``close``. ``gpus``: what an actor takes where the
    cluster has GPUs and the settings say nothing. ``preload`` names a module that actors import as they start. ``home``: where
    the run lies; through its object store, if it has one, actors are sent what they need and do not see.

    Raises SamplingError where Ray is not installed, the cluster cannot be reached, or a unit failed ``tries`` times.
    """

    def __init__(self, settings: RaySection, preload: str | None = None, gpus: int = 0, home: Home | None = None):
        self._settings = settings
        self._preload = preload
        self._gpus = gpus
        self._home = home
        self._sending = None if home is None or home.store is None else Sending(home)
        self._ray = import_ray()
        self._crew: Crew | None = None
        self._own = False
        self._lost: Counter[Path] = Counter()

    def start(self) -> None:
        """Connect, and have the actors start while the caller does something else."""
        self._connected().adjust(self._settings.max_actors or sys.maxsize)

    def run(self, role: Role, units: Sequence[Unit]) -> Iterator[tuple[Unit, Facts]]:
        """Do the units that are not committed yet, yielding each as it ends (any order)."""
        todo = deque(_absolute(unit) for unit in undone(units))
        if not todo:
            return
        crew = self._connected()
        self._lost.clear()
        try:
            yield from self._work(crew, role, todo)
        finally:
            for member in [m for m in crew.members if m.given]:  # the caller left in the middle
                self._drop(member)

    def pause(self) -> None:
        """End the actors, so that their GPUs and cores are free for others; the next unit starts new ones."""
        if self._crew is not None:
            self._crew.end()

    def release(self) -> None:
        self.pause()

    def close(self) -> None:
        self.pause()
        if self._own:
            self._ray.shutdown()
        self._crew, self._own = None, False

    def _work(self, crew: Crew, role: Role, todo: deque[Unit]) -> Iterator[tuple[Unit, Facts]]:
        told = time.monotonic()
        while todo or any(member.given for member in crew.members):
            crew.adjust(len(todo) + sum(len(member.given) for member in crew.members))
            crew.welcome()
            self._give(crew, role, todo)
            if crew.ready():
                told = time.monotonic()
            elif time.monotonic() - told > TELL_S:
                told = time.monotonic()
                print(f"ray: waiting for room for an actor ({crew.needs()})", file=sys.stderr, flush=True)
            for member in crew.with_news(WAIT_S):
                yield from self._take(crew, member, todo)

    def _give(self, crew: Crew, role: Role, todo: deque[Unit]) -> None:
        """Fill the actors' windows; towards the end each gets one unit, so that none waits behind another."""
        ready = crew.ready()
        depth = self._settings.window if len(todo) > len(ready) else 1
        for deep in range(depth):
            for member in ready:
                if todo and len(member.given) == deep:
                    self._hand(member, role, todo.popleft())

    def _hand(self, member: Member, role: Role, unit: Unit) -> None:
        """Give an actor one unit more."""
        sent = role, unit
        if not member.sees and self._sending is not None:
            sent = self._sending.sent(role, unit)
        member.given.append((member.actor.work.remote(*sent), unit))
        if len(member.given) == 1:
            self._note(member)

    def _note(self, member: Member) -> None:
        """Say what an actor is at that is sent its units, and does not see where to say so."""
        if self._sending is None or member.claims is None or not member.given:
            return
        unit = member.given[0][1]
        if unit.stage is not None:
            member.claims.begin(unit.stage, unit.target.name)

    def _take(self, crew: Crew, member: Member, todo: deque[Unit]) -> Iterator[tuple[Unit, Facts]]:
        """What an actor has to say about the unit that it was given first. Raises where that failed for good."""
        reference, unit = member.given[0]
        try:
            facts, error, again = self._ray.get(reference)
        except self._ray.exceptions.RayError as death:
            facts, error, again = {}, SamplingError(f"its actor died: {_first_line(death)}"), True
        if error is None:
            member.given.popleft()
            self._note(member)
            crew.worked()
            yield unit, facts
            return
        others = [left for _, left in member.given][1:]
        self._drop(member)
        todo.extendleft(reversed(others))
        if is_there(unit.target):  # committed with its last breath
            yield unit, {}
            return
        self._lost[unit.target] += 1
        if not again:
            raise error
        if self._lost[unit.target] >= self._settings.tries:
            raise SamplingError(
                f"unit {unit.target.name} failed {self._lost[unit.target]} times (scale.ray.tries), last on "
                f"{member.name}: {error}"
            )
        todo.appendleft(unit)

    def _drop(self, member: Member) -> None:
        """Be rid of an actor that died, or whose state nobody knows."""
        assert self._crew is not None
        unit = member.given[0][1] if member.given else None
        if member.name is not None and unit is not None and unit.stage is not None:
            lose(unit.stage, member.name, is_there(unit.target))
        self._crew.drop(member)

    def _connected(self) -> Crew:
        if self._crew is None:
            if not self._ray.is_initialized():
                connect(self._ray, self._settings)
                self._own = True
            self._crew = Crew(self._ray, self._settings, self._preload, self._gpus, self._home)
        return self._crew


def import_ray() -> Any:
    """The ray package. Raises SamplingError saying how to get it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise SamplingError(
            f"scale.engine is 'ray', which needs the package ray ({error}); accepted: pip install 'nashtune[ray]', or "
            "scale.engine: local"
        ) from None


def connect(ray: Any, settings: RaySection) -> None:
    """Join the cluster, or start one here that ends with this process. Raises SamplingError where there is none."""
    started: dict[str, Any] = {}
    if settings.address is None:
        started = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        started["_node_ip_address"] = "127.0.0.1"  # nobody else's to reach
    try:
        _knock(settings.address)
        ray.init(
            address=settings.address or "local",
            runtime_env=dict(settings.runtime_env) or None,
            log_to_driver=False,
            logging_level="ERROR",
            **started,
        )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise SamplingError(
            f"scale.ray.address is {settings.address!r}, but there is no cluster to join: {_first_line(error)}; accepted: the "
            "address of one that runs the same versions of Python and ray, or null to start one here"
        ) from error


def _knock(address: str | None) -> None:
    """Raise OSError where nobody listens at HOST:PORT; Ray itself would try for many minutes."""
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()


def _absolute(unit: Unit) -> Unit:
    """Its places as every process finds them, wherever it was started; a store's are so already."""
    places = (unit.source, unit.target, unit.beside, unit.stage)
    source, target, beside, stage = (p if p is None or on_store(p) else p.absolute() for p in places)
    assert source is not None
    assert target is not None
    return Unit(unit.index, source, target, beside, stage)


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
