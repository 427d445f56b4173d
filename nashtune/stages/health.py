"""The health of a run's oracle, per iteration and judging stage, from what the stages committed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from nashtune.errors import OracleError, StoreError
from nashtune.judging.agreement import Drift
from nashtune.judging.health import JudgeHealth, examine
from nashtune.records import Judgment, Response
from nashtune.run import Run
from nashtune.stage import Stage
from nashtune.stages.anchors import anchor_drift
from nashtune.stages.candidates import Judgments, Units
from nashtune.store import tables

STAGES = ("judge", "validate-judge")


@dataclass(frozen=True, slots=True)
class StageHealth:
    """The health of one iteration's judging stage (one of STAGES)."""

    iteration: int
    stage: str
    health: JudgeHealth


def health_of(run: Run, judgments: Judgments) -> JudgeHealth:
    """The health of a judging stage whose units are all committed."""
    candidates, units = judgments.candidates, judgments.units
    now = [units.file(index) for index in range(candidates.part.units)]
    anchors = _anchors(run, candidates.iteration, now) if candidates.validation else None
    return examine(((answers, judgment) for _, answers, judgment in judgments), run.recipe.health, anchors)


def _anchors(run: Run, iteration: int, now: list[Path]) -> tuple[Iterator[Judgment], Iterator[Judgment]] | Drift | None:
    """The iteration's anchors, where it judged any; else the answers that its held-out sets ``now`` share with the first."""
    if found := anchor_drift(run, iteration):
        moved, again = found
        return moved and replace(moved, rejudged=again.mean_change if again else None)
    if not iteration or not run.stage(0, "validate-judge").file.exists():
        return None
    return tables.stream(Judgment, run.stage(0, "validate-judge").committed()), tables.stream(Judgment, now)


def stop_on_alarm(run: Run, stage: Stage, judgments: Judgments) -> None:
    """Where the recipe asks for it, raise OracleError for a judging stage that gives cause for alarm. Measured again
    each time, so that a threshold that was changed since holds."""
    if not run.recipe.health.stop_on_alarm:
        return
    if alarms := health_of(run, judgments).alarms:
        told = "; ".join(f"{a.message} (health.{a.name}: {a.value:.3g}, threshold {a.threshold:g})" for a in alarms)
        raise OracleError(
            f"{stage.file}: the judge's health is cause for alarm: {told}. The judgments are kept. To go on, look at "
            f"`nashtune judge-check {run.folder}`, then move the threshold or set health.stop_on_alarm=false and run "
            "again; another judge needs `nashtune rollback` or `nashtune fork`"
        )


def run_health(run: Run, iteration: int | None = None) -> list[StageHealth]:
    """The health of every finished judging stage, or of one iteration's, by the recipe's present thresholds.

    Raises StoreError where ``iteration`` was not judged, or the answers to a judgment are gone.
    """
    found = [
        (t, name)
        for t in range(run.last_iteration() + 1)
        for name in STAGES
        if iteration in (None, t) and _has_judge(run.stage(t, name))
    ]
    if iteration is not None and not found:
        judged = [t for t in range(run.last_iteration() + 1) if any(_has_judge(run.stage(t, n)) for n in STAGES)]
        raise StoreError(f"{run.folder}: no judgments of iteration {iteration}; accepted: {judged}")
    return [StageHealth(t, name, _health_on_disk(run, t, name)) for t, name in found]


def _has_judge(stage: Stage) -> bool:
    """Whether the stage is done and somebody judged in it (pairs.rule teacher_wins asks nobody)."""
    return stage.file.exists() and "health" in stage.record()["facts"]


def _health_on_disk(run: Run, iteration: int, name: str) -> JudgeHealth:
    stage = run.stage(iteration, name)
    anchors = _anchors(run, iteration, stage.committed()) if name == "validate-judge" else None
    return examine(_judged(run, iteration, stage), run.recipe.health, anchors)


def _judged(run: Run, iteration: int, stage: Stage) -> Iterator[tuple[list[Response], Judgment]]:
    """Judgments with their answers, unit by unit; the stages that were judged together have the same units."""
    if stage.name == "judge":
        places = [(iteration, "sample"), (iteration, "teacher")]
    else:
        places = [(t, "validate-sample") for t in range(iteration + 1)]
        places.append((0, "validate-teacher"))
    answered = [Units(s.units, s.record()["key"]) for t, name in places if (s := run.stage(t, name)).file.exists()]
    for index, file in enumerate(stage.committed()):
        answers = {r.id: r for units in answered for r in tables.read(Response, units.file(index))}
        for judgment in tables.read(Judgment, file):
            if missing := [i for i in judgment.response_ids if i not in answers]:
                raise StoreError(f"{file}: the answer {missing[0]} that was judged is in none of {places}")
            yield [answers[i] for i in judgment.response_ids], judgment
