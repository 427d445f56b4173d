"""What simulated runs come to: hours, dollars and wasted work, by stage and in total."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from statistics import fmean
from typing import Any

from nashtune.planning.simulate import Calls, Outcome, Preparing, Training, Units
from nashtune.planning.workload import Stage


@dataclass(frozen=True, slots=True)
class Costs:
    """GPUs that are paid for: of all nodes, of training, of one engine, of the judge; dollars an hour of one. ``keep``: those
    of the nodes also while only a judge or teacher works. Without GPUs, machines are counted in place of them."""

    gpus: int
    train_gpus: int
    engine_gpus: int
    judge_gpus: int
    usd_per_hour: float
    keep: bool

    @property
    def trained_by(self) -> int:
        return self.train_gpus or 1

    def held(self, stage: Stage, outcome: Outcome, before: Outcome | None) -> float:
        """GPU-seconds paid for on the nodes and for the judge."""
        work = stage.work
        if isinstance(work, Preparing):
            return 0.0
        if isinstance(work, Units):
            return outcome.seconds * self.gpus
        if isinstance(work, Training):
            return outcome.seconds * (self.gpus if self.keep else self.train_gpus)
        nodes = outcome.seconds * self.gpus if work.local or self.keep else 0.0
        beside = before.seconds if work.alongside and before is not None else 0.0
        return nodes + (self.judge_gpus * (outcome.seconds + beside) if stage.own_judge else 0.0)

    def unused(self, stage: Stage, outcome: Outcome, before: Outcome | None) -> float:
        """GPU-seconds of those held in which a GPU had nothing to do, the engines' own idle time left out."""
        work = stage.work
        if isinstance(work, Units | Preparing):
            return 0.0
        if isinstance(work, Training):
            return outcome.seconds * (self.gpus - self.train_gpus) if self.keep else 0.0
        beside = before.seconds if work.alongside and before is not None else 0.0
        serving = max(0.0, outcome.seconds + beside - outcome.judging) if stage.own_judge else 0.0
        return outcome.waiting * self.gpus * self.keep + serving * self.judge_gpus


@dataclass(frozen=True, slots=True)
class Row:
    """Means over the runs of one stage. ``hours`` pass before the next stage begins; GPU-hours (of engines, where there are no
    GPUs) are held, of which ``lost`` were done again, ``loading``, ``down`` (waiting for a node to boot, or for a lost one's
    successor) and ``idle``.
    ``judge_hours``: what the judge takes at its limits, ``limit`` the tightest of them."""

    iteration: int
    stage: str
    kind: str
    hours: float
    gpu_hours: float
    lost: float
    loading: float
    down: float
    idle: float
    redone_units: float
    failures: float
    judge_hours: float
    limit: str
    gpu_usd: float
    api_usd: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Total:
    """Of the whole run. ``wasted``: share of the GPU-hours held in which nothing was done that is kept."""

    hours: float
    least: float
    most: float
    gpu_hours: float
    lost: float
    loading: float
    down: float
    idle: float
    redone_units: float
    failures: float
    judge_hours: float
    gpu_usd: float
    api_usd: float

    @property
    def usd(self) -> float:
        return self.gpu_usd + self.api_usd

    @property
    def wasted(self) -> float:
        away = self.lost + self.loading + self.down + self.idle
        return away / self.gpu_hours if self.gpu_hours else 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"usd": self.usd, "wasted": self.wasted}


def rows_of(stages: Sequence[Stage], played: Sequence[Sequence[Outcome]], costs: Costs) -> list[Row]:
    """One for each stage, over all trials."""
    found = []
    for number, stage in enumerate(stages):
        trials = [trial[number] for trial in played]
        before = [trial[number - 1] if number else None for trial in played]
        held = fmean(costs.held(stage, one, last) for one, last in zip(trials, before, strict=True))
        unused = fmean(costs.unused(stage, one, last) for one, last in zip(trials, before, strict=True))
        found.append(_row(stage, trials, held, unused, costs))
    return found


def _row(stage: Stage, trials: Sequence[Outcome], held: float, unused: float, costs: Costs) -> Row:
    work = stage.work

    def mean(name: str) -> float:
        return fmean(getattr(one, name) for one in trials)

    # Sums over engines of a stage of units, over the whole group of training.
    each = costs.trained_by if isinstance(work, Training) else costs.engine_gpus
    seconds = (
        mean("seconds") * costs.trained_by if isinstance(work, Training) else fmean(_engine_seconds(o) for o in trials)
    )
    return Row(
        iteration=stage.iteration,
        stage=stage.name,
        kind=stage.kind,
        hours=mean("seconds") / 3600,
        gpu_hours=(held if costs.gpus else seconds) / 3600,
        lost=each * mean("lost") / 3600,
        loading=each * mean("loading") / 3600,
        down=each * mean("down") / 3600,
        idle=(each * mean("idle") + unused) / 3600,
        redone_units=mean("redone"),
        failures=mean("failures"),
        judge_hours=mean("judging") / 3600,
        limit=work.binding if isinstance(work, Calls) else "",
        gpu_usd=held / 3600 * costs.usd_per_hour,
        api_usd=stage.usd,
    )


def _engine_seconds(outcome: Outcome) -> float:
    return outcome.busy + outcome.lost + outcome.loading + outcome.down + outcome.idle


def total_of(rows: Sequence[Row], played: Sequence[Sequence[Outcome]]) -> Total:
    """Sums of the rows; the shortest and longest of the runs."""
    hours = [math.fsum(one.seconds for one in trial) / 3600 for trial in played]
    sums = {
        f.name: math.fsum(getattr(row, f.name) for row in rows)
        for f in fields(Total)
        if f.name not in ("least", "most")
    }
    return Total(least=min(hours), most=max(hours), **sums)
