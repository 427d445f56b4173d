"""Line 5 of Algorithm 2: the oracle's word on every candidate set."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import Any

from nashtune import recipe
from nashtune.judging.oracle import Oracle
from nashtune.judging.registry import hosted_in, open_oracle, parts_of, wants_all_at_once
from nashtune.judging.teacher_wins import TeacherWins
from nashtune.records import Judgment
from nashtune.run import Run
from nashtune.scale.claims import close_stage
from nashtune.scale.local import Unit
from nashtune.stage import Stage
from nashtune.stages.candidates import Candidates, Judgments, Units
from nashtune.stages.endpoints import check_endpoints
from nashtune.stages.health import health_of, stop_on_alarm
from nashtune.stages.judge_workers import engine_seconds, judge_role, judge_workers, judges_in_units
from nashtune.stages.local_judge import judge_sets
from nashtune.stages.work import (
    engine_of,
    finish,
    make_room,
    once,
    oracle_identity,
    resources_of,
    run_units,
    stage_units,
    unit_progress,
)
from nashtune.store import tables
from nashtune.store.files import create_once
from nashtune.store.objects import absent, undone
from nashtune.summaries import called
from nashtune.together import together

UNITS_AT_ONCE = 4
"""Units judged side by side, so that one slow reply does not idle the judge at the end of each unit. A judge that works
in batches, or by people, gets all of them together."""


def judge(run: Run, candidates: Candidates) -> Judgments:
    """Judge candidate sets; a set judged before, in any attempt, is not judged again.

    Raises OracleError where no judgment is possible, and under health.stop_on_alarm for a judge that gives cause.
    """
    stage, inputs, units = judge_stage(run, candidates)
    once(stage, inputs, lambda: _judge_all(run, stage, candidates, units))
    judgments = Judgments(candidates, units)
    if not judged_by_none(run, candidates):
        stop_on_alarm(run, stage, judgments)
    return judgments


def judged_by_none(run: Run, candidates: Candidates) -> bool:
    """Whether the sets' verdicts are given by the pair rule, so that there is no judge whose health could be asked about."""
    return run.recipe.judge(validation=candidates.validation) is None


def judge_stage(run: Run, candidates: Candidates) -> tuple[Stage, tuple[Any, ...], Units]:
    """The stage that judges ``candidates``, what it is made from, and where its units go."""
    stage = run.stage(candidates.iteration, "validate-judge" if candidates.validation else "judge")
    section = run.recipe.judge(validation=candidates.validation)
    judge_ = oracle_identity(run, section, candidates.iteration) if section else TeacherWins.name
    inputs = (candidates.fingerprint, judge_, run.recipe.seed)
    return stage, inputs, stage_units(stage, inputs)


def _judge_all(run: Run, stage: Stage, candidates: Candidates, units: Units) -> dict[str, Any]:
    part = candidates.part
    work = [Unit(index, part.file, units.file(index)) for index in range(part.units)]
    todo = undone(work)
    section = run.recipe.judge(validation=candidates.validation)
    title = f"{called(candidates.iteration)}: {stage.name}"
    if section is not None and judges_in_units(run, section):
        done_in_units = _judge_in_units(run, title, stage, section, candidates, units)
        return judgment_facts(run, Judgments(candidates, units)) | done_in_units
    if todo:
        check_endpoints(run, candidates.iteration, section)
        make_room(run, section)
        if section is not None and any(is_waited_for(inner) for inner in parts_of(section)):
            engine_of(run).pause()
    with stage.clock() as tick, unit_progress(title, work, part) as advance:

        def done(count: int) -> None:
            tick()
            advance(count, "")

        waiting = deque(todo)

        async def next_unit() -> Unit | None:
            return waiting.popleft() if waiting else None

        finish(judge_units(run, candidates, len(todo), next_unit, done))
    return judgment_facts(run, Judgments(candidates, units))


def _judge_in_units(
    run: Run, title: str, stage: Stage, section: recipe.Oracle, candidates: Candidates, units: Units
) -> dict[str, Any]:
    """What is left of the units, by the judge's workers; where those are its own, the sampler makes room first."""
    facts: dict[str, float] = {}
    if any(absent([units.file(index) for index in range(candidates.part.units)])):
        workers = judge_workers(run, section)
        own = workers is not engine_of(run)
        if own:
            engine_of(run).release()
        try:
            role = judge_role(run, section, candidates)
            facts = run_units(run, title, stage, role, candidates.part, units, workers=workers)
        finally:
            if own:
                workers.release()
    else:  # done beside the sampler, together with what the trainer may have begun
        facts["units_redone"] = close_stage(stage.folder)
    if hosted_in(section):
        facts["engine_seconds"] = round(facts.get("engine_seconds", 0.0) + (run.take(engine_seconds(stage)) or 0.0), 3)
    return facts


def is_waited_for(part: recipe.Oracle) -> bool:
    """Whether somebody else does the work of judging."""
    if isinstance(part, recipe.ScriptedOracle):
        return part.latency_s > 0
    return isinstance(part, recipe.PeopleOracle) or (isinstance(part, recipe.Asking) and part.engine is not None)


async def judge_units(
    run: Run,
    candidates: Candidates,
    count: int,
    next_unit: Callable[[], Awaitable[Unit | None]],
    done: Callable[[int], None],
) -> None:
    """Judge and commit ``count`` units as ``next_unit`` gives them (None: no more); ``done`` hears of the judgments made. Where
    one fails, what is in flight is finished first: it is paid for."""
    section = run.recipe.judge(validation=candidates.validation)
    oracle: Oracle = open_oracle(section, resources_of(run, candidates.iteration)) if section else TeacherWins()
    failed = False

    async def one(unit: Unit) -> None:
        judgments = await judge_sets(oracle, candidates.unit(unit.index), run.recipe.seed)
        create_once(unit.target, tables.encode(Judgment, judgments))
        done(len(judgments))

    async def one_after_another() -> None:
        nonlocal failed
        try:
            while not failed and (unit := await next_unit()) is not None:
                await one(unit)
        except BaseException:
            failed = True  # the others finish theirs and begin no more
            raise

    try:
        at_once = count if section and wants_all_at_once(section) else UNITS_AT_ONCE
        await together(one_after_another() for _ in range(min(at_once, count)))
    finally:
        await oracle.aclose()


def judgment_facts(run: Run, judgments: Judgments) -> dict[str, Any]:
    """Counts, tokens and money over committed judgments, and the oracle's health."""
    facts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    cost: float | None = None
    for index in range(judgments.candidates.part.units):
        for judgment in tables.read(Judgment, judgments.units.file(index)):
            facts["judgments"] += 1
            facts["prompt_tokens"] += judgment.usage.prompt_tokens
            facts["completion_tokens"] += judgment.usage.completion_tokens
            facts["calls"] += judgment.usage.calls
            if judgment.usage.cost_usd is not None:
                cost = (cost or 0.0) + judgment.usage.cost_usd
            if judgment.outcome != "ok":
                facts["unusable"] += 1
                reasons[judgment.reason] += 1
    found = {**facts, "cost_usd": cost, "unusable_reasons": dict(reasons.most_common(20))}
    if judged_by_none(run, judgments.candidates):
        return found
    return found | {"health": health_of(run, judgments).to_dict()}
