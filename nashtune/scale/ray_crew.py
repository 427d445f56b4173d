"""The actors of a Ray cluster that do units: as many as there is room for, replaced when they die, never waited for."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from nashtune.errors import SamplingError
from nashtune.recipe import RaySection
from nashtune.scale.claims import Claims
from nashtune.scale.home import Home
from nashtune.scale.ray_worker import RayWorker
from nashtune.scale.units import Unit

LOOK_S = 2.0
"""How often the nodes are counted."""
FAILED_STARTS = 8
"""Actors in a row that died before they could do anything, after which something is wrong with all of them."""
REST_S = 30.0
"""How long actors may take to end what they started, as a vLLM process."""


@dataclass(eq=False, slots=True)
class Member:
    """An actor, and the units it was given, in order."""

    actor: Any
    hello: Any
    name: str | None = None
    """What it calls itself, once it is up."""
    sees: bool = True
    """Whether its machine sees the run folder."""
    claims: Claims | None = None
    """Where this process says what the actor is at, which does not see the place."""
    given: deque[tuple[Any, Unit]] = field(default_factory=deque)


class Crew:
    """Actors that are up, and actors that wait for a node with room."""

    def __init__(self, ray: Any, settings: RaySection, preload: str | None, gpus: int, home: Home | None = None):
        self.members: list[Member] = []
        self._ray, self._settings, self._preload, self._home = ray, settings, preload, home
        has_gpus = any("GPU" in node["Resources"] for node in self._nodes())
        asked = settings.gpus_per_actor
        self._gpus = asked if asked is not None else gpus if has_gpus else 0
        self._class = ray.remote(RayWorker)
        self._looked = -LOOK_S
        self._failed = 0

    def needs(self) -> dict[str, float]:
        """What an actor asks of its node."""
        needs = {"CPU": float(self._settings.cpus_per_actor), "GPU": float(self._gpus), **self._settings.resources}
        return {name: amount for name, amount in needs.items() if amount}

    def ready(self) -> list[Member]:
        return [member for member in self.members if member.name is not None]

    def adjust(self, units: int) -> None:
        """Have as many actors as the settings and the nodes allow, and ``units`` need. Those that are up stay; some that wait
        for room are given up where there is less of it now."""
        if self.members and time.monotonic() - self._looked < LOOK_S:
            return
        self._looked = time.monotonic()
        wanted = min(units, self._settings.max_actors or max(self._settings.min_actors, self._room()))
        while len(self.members) < wanted:
            self.members.append(self._start())
        pending = [member for member in self.members if member.name is None]
        for member in pending[: max(0, len(self.members) - max(wanted, 1))]:
            self.drop(member)

    def welcome(self) -> None:
        """See which actors have come up. Raises SamplingError where none does, but all die at once."""
        waiting = {member.hello: member for member in self.members if member.name is None}
        if not waiting:
            return
        up, _ = self._ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
        for hello in up:
            try:
                name, host, sees = self._ray.get(hello)
                member = waiting[hello]
                member.name, member.sees = name, sees
                member.claims = None if sees else Claims(name, host)
            except self._ray.exceptions.RayError as error:
                self.drop(waiting[hello])
                self._failed += 1
                if self._failed >= FAILED_STARTS:
                    raise SamplingError(f"ray: {self._failed} actors in a row died as they started: {error}") from error

    def worked(self) -> None:
        """An actor has done a unit."""
        self._failed = 0

    def with_news(self, seconds: float) -> list[Member]:
        """The actors whose first unit has ended, or that are gone; after at most that time."""
        first = {member.given[0][0]: member for member in self.members if member.given}
        waiting = [member.hello for member in self.members if member.name is None]
        if not first and not waiting:
            time.sleep(seconds)
            return []
        ended, _ = self._ray.wait([*first, *waiting], num_returns=1, timeout=seconds)
        if not ended or not first:
            return []
        ended, _ = self._ray.wait(list(first), num_returns=len(first), timeout=0)
        return [first[reference] for reference in ended]

    def drop(self, member: Member) -> None:
        self.members.remove(member)
        self._ray.kill(member.actor)
        self._looked = -LOOK_S  # another may take its place at once

    def end(self) -> None:
        """End all actors, those that are up in peace."""
        resting = [member.actor.rest.remote() for member in self.ready() if not member.given]
        if resting:
            self._ray.wait(resting, num_returns=len(resting), timeout=REST_S)
        for member in list(self.members):
            self.drop(member)

    def _start(self) -> Member:
        actor = self._class.options(
            num_cpus=self._settings.cpus_per_actor,
            num_gpus=self._gpus,
            resources=dict(self._settings.resources) or None,
            max_restarts=0,
            scheduling_strategy="SPREAD",
        ).remote(os.getcwd(), self._settings.cpus_per_actor, self._preload, self._home)
        return Member(actor, actor.hello.remote())

    def _room(self) -> int:
        """How many actors the nodes that are there could hold, if they did nothing else."""
        needs = self.needs()
        return sum(
            min((int(node["Resources"].get(name, 0) // amount) for name, amount in needs.items()), default=sys.maxsize)
            for node in self._nodes()
        )

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"]]
