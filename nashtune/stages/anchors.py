"""Anchors: held-out sets of iteration 0 that the judge is shown again in each iteration, to see whether it changes its mind.

Answers, companions and judge stay the same, so what moves is the judge. A judgment that was bought is never bought again, so
each time has a seed of its own (which decides order and mark); in the first iteration the anchors are judged twice, and the
difference of those two says how much judging again changes by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from nashtune.judging.agreement import Drift, drift
from nashtune.judging.registry import open_oracle
from nashtune.progress import progress
from nashtune.records import Judgment
from nashtune.run import Run
from nashtune.seeds import seed_for
from nashtune.stages.candidates import Candidate, Candidates
from nashtune.stages.endpoints import check_endpoints
from nashtune.stages.work import finish, make_room, once, oracle_identity, resources_of, stage_units
from nashtune.store import tables
from nashtune.store.files import create_once
from nashtune.store.objects import is_there
from nashtune.together import together

STAGE = "anchor-judge"


def judge_anchors(run: Run, iteration: int, first: Candidates) -> None:
    """Judge the anchors, the first ``health.anchors`` sets of ``first`` (the held-out candidates of iteration 0)."""
    count, section = run.recipe.health.anchors, run.recipe.judge(validation=True)
    stage = run.stage(iteration, STAGE)
    if not count or section is None or stage.file.exists():
        return
    times = 1 if any(run.stage(t, STAGE).file.exists() for t in range(iteration)) else 2
    inputs = (first.fingerprint, oracle_identity(run, section, iteration), run.recipe.seed, iteration, count, times)
    units = stage_units(stage, inputs)

    def ask() -> dict[str, Any]:
        check_endpoints(run, iteration, section)
        make_room(run, section)
        sets = list(islice(first, count))
        with (
            stage.clock() as tick,
            progress(f"iteration {iteration}: {STAGE}", times * len(sets), "prompts") as advance,
        ):
            for time in range(times):
                if not is_there(units.file(time)):
                    seeds = [seed_for(run.recipe.seed, "anchor", iteration, time, prompt.id) for prompt, _ in sets]
                    create_once(units.file(time), tables.encode(Judgment, finish(_judged(run, iteration, sets, seeds))))
                advance(len(sets), "")
                tick()
        return _facts(units.file(time) for time in range(times))

    once(stage, inputs, ask)


async def _judged(run: Run, iteration: int, sets: list[Candidate], seeds: list[int]) -> list[Judgment]:
    section = run.recipe.judge(validation=True)
    assert section is not None
    oracle = open_oracle(section, resources_of(run, iteration))
    try:
        return await together(
            oracle.judge(prompt, answers, s) for (prompt, answers), s in zip(sets, seeds, strict=True)
        )
    finally:
        await oracle.aclose()


def _facts(files: Iterator[Path]) -> dict[str, Any]:
    judgments = list(tables.stream(Judgment, list(files)))
    costs = [j.usage.cost_usd for j in judgments if j.usage.cost_usd is not None]
    return {
        "judgments": len(judgments),
        "unusable": sum(j.outcome != "ok" for j in judgments),
        "calls": sum(j.usage.calls for j in judgments),
        "prompt_tokens": sum(j.usage.prompt_tokens for j in judgments),
        "completion_tokens": sum(j.usage.completion_tokens for j in judgments),
        "cost_usd": sum(costs) if costs else None,
    }


def anchor_drift(run: Run, iteration: int) -> tuple[Drift | None, Drift | None] | None:
    """How the anchors' verdicts changed since the first iteration that judged them, and how they changed between the two
    judgments of that one; None where ``iteration`` is that one, or has not judged any."""
    stages = [run.stage(t, STAGE) for t in range(iteration + 1)]
    judged = [stage for stage in stages if stage.file.exists()]
    if len(judged) < 2 or not stages[-1].file.exists():
        return None
    first, again = judged[0].committed()[:2]
    now = stages[-1].committed()[:1]
    return (
        drift(tables.stream(Judgment, [first]), tables.stream(Judgment, now)),
        drift(tables.stream(Judgment, [first]), tables.stream(Judgment, [again])),
    )
