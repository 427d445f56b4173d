"""A run's stages played through, failures drawn at random: seconds, and where processors' time went.

Discrete events: work units on engines, nodes that fail and come back, a judge with a rate, training between checkpoints.
What no failure and no spread gives is written down in closed_form.py.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from nashtune.errors import PlanError

MOST_UNITS = 1_000_000
"""Units of one stage that are simulated; a scheduler would have trouble with more, too."""
MOST_FAILURES = 8.0
"""Failures expected in loading and one unit, or between two checkpoints, beyond which nothing would ever be done."""


@dataclass(frozen=True, slots=True)
class Machines:
    """``engines`` on each of ``nodes``; a node fails after ``mtbf`` seconds in the mean (exponential), loses the units in
    flight on it, and is back ``replace`` seconds later, with engines that have to start and load. Units take their time
    multiplied by a log-normal factor of mean 1 and this sigma (``spread``). A node that is not held is up ``boot`` seconds after
    it is asked for: all at the run's beginning; those given back, unless ``keep``, while only a judge or teacher worked for
    longer than that, and, of nodes that do not train, meanwhile."""

    nodes: int
    engines: int
    mtbf: float = math.inf
    replace: float = 0.0
    spread: float = 0.0
    boot: float = 0.0
    keep: bool = False

    def boot_of(self, needed: int, there: int) -> float:
        """Seconds until so many nodes are up."""
        return 0.0 if there >= needed else self.boot

    def held(self, work: Work, waiting: float, there: int) -> int:
        """Nodes that are up after a stage in which only somebody else worked for ``waiting`` seconds."""
        match work:
            case Units():
                return self.nodes
            case Training():
                return max(there, work.nodes) if self.keep else work.nodes
            case Calls():
                return 0 if waiting > self.boot and not self.keep else there
            case Preparing():
                return there


@dataclass(frozen=True, slots=True)
class Units:
    """``number`` units of ``seconds`` each on one engine, the last of ``last`` seconds; ``load`` seconds before an engine's
    first, after ``start`` seconds in which its process comes up. ``again``: both for an engine on a lost node's successor,
    where the others may be up and have loaded in an earlier stage. ``name`` is the stage's."""

    name: str
    number: int
    seconds: float
    last: float
    load: float = 0.0
    start: float = 0.0
    again: float | None = None
    """None: start + load."""

    @property
    def anew(self) -> float:
        return self.start + self.load if self.again is None else self.again


@dataclass(frozen=True, slots=True)
class Preparing:
    """Before the first stage: the run's own process starts and reads prompts. No engine has work."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Calls:
    """A judge's or teacher's work: seconds for each unit at the tightest of its limits (``binding``), the seconds that the last
    reply takes to come, and those before the first unit (``start``: a model that judges is loaded)."""

    name: str
    units: int
    seconds: float
    last: float
    latency: float
    binding: str
    alongside: bool = False
    """It begins with the first unit of the stage before it, not after the last."""
    local: bool = False
    """It computes on the machines of the run, which are held for it."""
    start: float = 0.0


@dataclass(frozen=True, slots=True)
class Training:
    """``seconds`` of optimizer steps and references on ``nodes`` nodes, after ``start`` (processes and libraries) and ``load``
    seconds and before ``save``; a checkpoint of ``checkpoint`` seconds each ``interval`` seconds of work. A failure goes back to
    the last one, and costs replacing the node and, in ``again`` seconds, starting and loading on it."""

    name: str
    seconds: float
    load: float
    save: float
    interval: float
    checkpoint: float
    nodes: int
    start: float = 0.0
    again: float | None = None
    """None: start + load."""

    @property
    def anew(self) -> float:
        return self.start + self.load if self.again is None else self.again


Work = Preparing | Units | Calls | Training


@dataclass(slots=True)
class Outcome:
    """Seconds of a stage, and sums over its engines (training: over its machines) in seconds of one. ``busy`` is work kept,
    ``lost`` work done again, ``loading`` processes, models and checkpoints, ``down`` waiting for a node to boot or for a lost
    one's successor, ``idle`` the rest.
    ``waiting``: seconds in which only a judge or teacher worked."""

    name: str
    seconds: float = 0.0
    busy: float = 0.0
    lost: float = 0.0
    loading: float = 0.0
    down: float = 0.0
    idle: float = 0.0
    waiting: float = 0.0
    judging: float = 0.0
    redone: int = 0
    failures: int = 0
    commits: Sequence[float] = field(default=(), repr=False)
    """When each unit was committed."""


def sample(units: Units, machines: Machines, draw: random.Random, boot: float = 0.0) -> Outcome:
    """Every unit done once, each by the engine that is free first; the nodes are up after ``boot`` seconds.

    Raises PlanError where there are too many units, or units so long that none would end before a failure.
    """
    if units.number > MOST_UNITS:
        raise PlanError(
            f"{units.name}: {units.number:,} work units; accepted: at most {MOST_UNITS:,} in a stage, by a larger "
            "sampling.unit_prompts"
        )
    if (units.anew + units.seconds) / machines.mtbf > MOST_FAILURES:
        raise PlanError(
            f"{units.name}: {units.anew:,.0f} s of loading and a unit of {units.seconds:,.0f} s, where a node fails every "
            f"{machines.mtbf:,.2g} s, would never end; accepted: a smaller sampling.unit_prompts, or a longer --mtbf"
        )
    return _Stage(units, machines, draw).play(boot)


class _Stage:
    """Engines are (node, number); an event that was planned before its node failed carries an old generation."""

    def __init__(self, units: Units, machines: Machines, draw: random.Random):
        self.units, self.machines, self.draw = units, machines, draw
        self.events: list[tuple[float, int, str, int, int, int]] = []  # time, tie, kind, node, engine, generation
        self.order = count()
        self.todo = units.number
        self.short_left = units.number > 0  # whether the shorter last unit is still to do
        self.running: dict[tuple[int, int], tuple[float, bool]] = {}  # since when, and whether it is the short one
        self.loading: dict[tuple[int, int], float] = {}
        self.idle: set[tuple[int, int]] = set()
        self.generation = [0] * machines.nodes
        self.commits: list[float] = []
        self.outcome = Outcome(units.name)
        self.mu = -(machines.spread**2) / 2

    def play(self, boot: float) -> Outcome:
        self.outcome.down = boot * self.machines.nodes * self.machines.engines
        for node in range(self.machines.nodes):
            self._up(node, boot, self.units.start + self.units.load)
        now = boot
        while len(self.commits) < self.units.number:
            now, _, kind, node, engine, generation = heapq.heappop(self.events)
            if generation != self.generation[node]:
                continue
            if kind == "fails":
                self._fail(node, now)
            elif kind == "back":
                self._up(node, now, self.units.anew)
            else:
                if kind == "loaded":
                    self.outcome.loading += now - self.loading.pop((node, engine))
                else:
                    self.outcome.busy += now - self.running.pop((node, engine))[0]
                    self.commits.append(now)
                self._next(node, engine, now)
        return self._end(now)

    def _plan(self, when: float, kind: str, node: int, engine: int = 0) -> None:
        heapq.heappush(self.events, (when, next(self.order), kind, node, engine, self.generation[node]))

    def _fails_later(self, node: int, now: float) -> None:
        if self.machines.mtbf < math.inf:
            self._plan(now + self.draw.expovariate(1 / self.machines.mtbf), "fails", node)

    def _up(self, node: int, now: float, seconds: float) -> None:
        """A node is there: its engines start and load."""
        self._fails_later(node, now)
        for engine in range(self.machines.engines):
            self.loading[node, engine] = now
            self._plan(now + seconds, "loaded", node, engine)

    def _next(self, node: int, engine: int, now: float) -> None:
        """The short unit is the last to be begun."""
        if not self.todo:
            self.idle.add((node, engine))
            return
        short = self.short_left and self.todo == 1
        self.short_left &= not short
        self.todo -= 1
        seconds = self.units.last if short else self.units.seconds
        if self.machines.spread:
            seconds *= self.draw.lognormvariate(self.mu, self.machines.spread)
        self.running[node, engine] = (now, short)
        self._plan(now + seconds, "done", node, engine)

    def _fail(self, node: int, now: float) -> None:
        self.outcome.failures += 1
        self.generation[node] += 1
        for engine in range(self.machines.engines):
            since, short = self.running.pop((node, engine), (None, False))
            if since is not None:
                self.outcome.lost += now - since
                self.outcome.redone += 1
                self.todo += 1
                self.short_left |= short
            if (begun := self.loading.pop((node, engine), None)) is not None:
                self.outcome.loading += now - begun
            self.idle.discard((node, engine))
        self._plan(now + self.machines.replace, "back", node)
        self.outcome.down += self.machines.replace * self.machines.engines
        for free in sorted(self.idle)[: self.todo]:
            self.idle.discard(free)
            self._next(*free, now)

    def _end(self, now: float) -> Outcome:
        """Engines that were still loading, or away, when the last unit was committed."""
        found, machines = self.outcome, self.machines
        found.seconds, found.commits = now, self.commits
        found.loading += sum(now - since for since in self.loading.values())
        late = [when - now for when, _, kind, node, _, generation in self.events
                if kind == "back" and when > now and generation == self.generation[node]]  # fmt: skip
        found.down -= sum(late) * machines.engines
        total = now * machines.nodes * machines.engines
        found.idle = max(0.0, total - found.busy - found.lost - found.loading - found.down)
        return found


def call(calls: Calls, sampled: Outcome | None) -> Outcome:
    """A judge that takes units as they were committed (``sampled``), or all at once after they were. ``seconds`` are those
    after the sampling's end."""
    total = calls.start + (calls.units - 1) * calls.seconds + calls.last if calls.units else 0.0
    if not calls.alongside or sampled is None:
        after = total + (calls.latency if calls.units else 0.0)
    else:
        end = calls.start
        for number, commit in enumerate(sampled.commits, 1):
            end = max(end, commit) + (calls.last if number == calls.units else calls.seconds)
        after = max(0.0, end + calls.latency - sampled.seconds)
    found = Outcome(calls.name, seconds=after, judging=total)
    if not calls.local:
        found.waiting = after
    else:
        found.busy = after
    return found


def train(training: Training, machines: Machines, draw: random.Random, boot: float = 0.0) -> Outcome:
    """Training from loading to the saved policy, once its nodes are up; sums are in seconds of the whole group.

    Raises PlanError where no checkpoint would ever be reached.
    """
    rate = training.nodes / machines.mtbf
    segment = min(training.interval, training.seconds)
    if rate * (segment + training.checkpoint) > MOST_FAILURES:
        raise PlanError(
            f"{training.name}: {segment:,.0f} s between checkpoints where one of {training.nodes} nodes fails every "
            f"{1 / rate:,.0f} s would never end; accepted: a smaller train.checkpoint_steps, or a longer --mtbf"
        )
    found = Outcome(training.name, loading=training.start + training.load, down=boot)
    left = training.seconds
    until_failure = draw.expovariate(rate) if rate else math.inf
    while left > 1e-9:
        work = min(training.interval, left)
        whole = work + (training.checkpoint if left > training.interval else training.save)
        while until_failure < whole:
            found.lost += until_failure
            found.failures += 1
            found.down += machines.replace
            found.loading += training.anew
            until_failure = draw.expovariate(rate)
        until_failure -= whole
        found.busy += work
        found.loading += whole - work
        left -= work
    found.seconds = found.busy + found.lost + found.loading + found.down
    return found


def play(stages: Sequence[Work], machines: Machines, seed: str) -> list[Outcome]:
    """The stages one after the other; a judge ``alongside`` takes the units of the stage before it."""
    found: list[Outcome] = []
    there = 0  # nodes that are held, and up
    for number, work in enumerate(stages):
        draw = random.Random(f"{seed} {number}")
        match work:
            case Preparing():
                found.append(Outcome(work.name, seconds=work.seconds))
            case Units():
                found.append(sample(work, machines, draw, machines.boot_of(machines.nodes, there)))
            case Calls():
                found.append(call(work, found[-1] if found and work.alongside else None))
            case Training():
                found.append(train(work, machines, draw, machines.boot_of(work.nodes, there)))
        there = machines.held(work, found[-1].waiting, there)
        if number:
            found[number - 1].commits = ()  # needed by the next stage alone
    return found
