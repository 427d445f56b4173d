"""Line 5 of Algorithm 2: the oracle's word on every candidate set."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from nashtune.judging.oracle import Oracle
from nashtune.judging.registry import open_oracle
from nashtune.records import Judgment
from nashtune.run import Run, Stage
from nashtune.scale.local import Unit
from nashtune.seeds import seed_for
from nashtune.stages.candidates import Candidates, Judgments, Units
from nashtune.stages.work import ledger_of, once, stage_units, unit_progress
from nashtune.store import tables
from nashtune.store.files import create_once

UNITS_AT_ONCE = 4
"""Units judged side by side, so that one slow reply does not idle the judge at the end of each unit."""


def judge(run: Run, candidates: Candidates) -> Judgments:
    """Judge candidate sets; a set judged before, in any attempt, is not judged again."""
    stage = run.stage(candidates.iteration, "validate-judge" if candidates.validation else "judge")
    inputs = (candidates.fingerprint, run.recipe.oracle.model_dump(mode="json"), run.recipe.seed)
    units = stage_units(stage, inputs)
    once(stage, inputs, lambda: _judge_all(run, stage, candidates, units))
    return Judgments(candidates, units)


def _judge_all(run: Run, stage: Stage, candidates: Candidates, units: Units) -> dict[str, Any]:
    part = candidates.part
    work = [Unit(index, part.file, units.file(index)) for index in range(part.units)]
    oracle = open_oracle(run.recipe.oracle, lambda: ledger_of(run))
    title = f"iteration {candidates.iteration}: {stage.name}"
    with stage.clock() as tick, unit_progress(title, work, part) as advance:

        def done(count: int) -> None:
            tick()
            advance(count, "")

        asyncio.run(
            _judge_units(oracle, candidates, iter([u for u in work if not u.target.exists()]), run.recipe.seed, done)
        )
    return judgment_facts(units, part.units)


async def _judge_units(
    oracle: Oracle, candidates: Candidates, todo: Iterator[Unit], seed: int, done: Callable[[int], None]
) -> None:
    async def one(unit: Unit) -> None:
        sets = candidates.unit(unit.index)
        seeds = [seed_for(seed, "judge", prompt.id, [a.id for a in answers]) for prompt, answers in sets]
        calls = (oracle.judge(prompt, answers, s) for (prompt, answers), s in zip(sets, seeds, strict=True))
        judgments = await asyncio.gather(*calls)
        create_once(unit.target, tables.encode(Judgment, judgments))
        done(len(judgments))

    try:
        running = {asyncio.create_task(one(unit)) for unit in islice(todo, UNITS_AT_ONCE)}
        while running:
            ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
                running |= {asyncio.create_task(one(unit)) for unit in islice(todo, 1)}
    finally:
        await oracle.aclose()


def judgment_facts(units: Units, count: int) -> dict[str, Any]:
    """Counts, tokens and money over committed judgments."""
    facts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    cost: float | None = None
    for index in range(count):
        for judgment in tables.read(Judgment, units.file(index)):
            facts["judgments"] += 1
            facts["prompt_tokens"] += judgment.usage.prompt_tokens
            facts["completion_tokens"] += judgment.usage.completion_tokens
            facts["calls"] += judgment.usage.calls
            if judgment.usage.cost_usd is not None:
                cost = (cost or 0.0) + judgment.usage.cost_usd
            if judgment.outcome != "ok":
                facts["unusable"] += 1
                reasons[judgment.reason] += 1
    return {**facts, "cost_usd": cost, "unusable_reasons": dict(reasons.most_common(20))}
