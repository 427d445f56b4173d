"""From a run folder to the report's input. Reads; computes nothing that a stage did not record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from nashtune.evaluated import all_scores
from nashtune.records import Judgment, Pair, Prompt, Response
from nashtune.report.health import SETS, JudgedStage
from nashtune.report.html import ReportInput, ShownAnswer, SideBySide, render_report
from nashtune.run import Run
from nashtune.store import tables
from nashtune.store.files import read_json, write_atomic

SHOWN = 12
"""Held-out prompts shown side by side."""


def write_report(run: Run) -> Path:
    """Write RUN/report.html from what is on disk; works on a run in progress too."""
    target = run.folder / "report.html"
    write_atomic(target, render_report(assemble(run)))
    return target


def assemble(run: Run) -> ReportInput:
    """Everything the report shows."""
    summaries = run.summaries()
    best = run.best()
    prompts = run.folder / "prompts" / "report.json"
    return ReportInput(
        name=run.recipe.name,
        created=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        recipe=run.recipe.resolved(),
        environment=read_json(run.folder / "environment.json"),
        summaries=summaries,
        best=best.iteration if best else None,
        state=run.state(),
        train_curves={t: curve for t in run.iterations() if (curve := _curve(run, t))},
        pair_margins={t: margins for t in run.iterations() if (margins := _margins(run, t))},
        lengths={s.iteration: _lengths(run, s.iteration) for s in summaries},
        contests=list(_side_by_side(run, [s.iteration for s in summaries])),
        prompt_report=read_json(prompts) if prompts.exists() else {},
        health=list(_health(run)),
        average=run.averaged(),
        exported=run.exported(),
        evaluations=all_scores(run.folder),
        passed_over=run.passed_over(),
    )


def _health(run: Run) -> Iterator[JudgedStage]:
    """The judge's health as each judging stage recorded it; records of older versions have none."""
    for iteration in range(run.last_iteration() + 1):
        for name in SETS:
            stage = run.stage(iteration, name)
            if stage.file.exists() and (health := stage.record()["facts"].get("health")):
                yield JudgedStage(iteration, name, health)


def _curve(run: Run, iteration: int) -> list[dict[str, float]]:
    file = run.stage(iteration, "train").folder / "metrics.jsonl"
    if not file.exists():
        return []
    rows = (json.loads(line) for line in file.read_text().splitlines() if line.strip())
    return [{k: v for k, v in row.items() if isinstance(v, int | float)} for row in rows]


def _margins(run: Run, iteration: int) -> dict[str, list[float]]:
    file = run.stage(iteration, "pairs").folder / "pairs.parquet"
    margins: dict[str, list[float]] = {}
    for pair in tables.read(Pair, file) if file.exists() else ():
        margins.setdefault(pair.kind, []).append(pair.margin)
    return margins


def _lengths(run: Run, iteration: int) -> list[int]:
    files = run.stage(iteration, "validate-sample").files()
    return [len(response.text.split()) for response in tables.stream(Response, files)]


def _side_by_side(run: Run, iterations: list[int]) -> Iterator[SideBySide]:
    """The first held-out prompts with every validated policy's first answer, as the last contest judged them."""
    file = run.folder / "prompts" / "validation.parquet"
    if not iterations or not file.exists():
        return
    answers: dict[str, list[ShownAnswer]] = {}
    for iteration in iterations:
        label = "initial policy" if iteration == 0 else f"iteration {iteration}"
        _add_answers(run, iteration, "validate-sample", label, answers)
    if run.stage(0, "validate-teacher").file.exists():
        _add_answers(run, 0, "validate-teacher", "teacher", answers)
    for prompt in tables.read(Prompt, file, 0)[:SHOWN]:
        system = next((m.content for m in prompt.messages if m.role == "system"), None)
        yield SideBySide(prompt.text, system, answers.get(prompt.id, []))


def _add_answers(run: Run, iteration: int, stage: str, label: str, answers: dict[str, list[ShownAnswer]]) -> None:
    """The first answer to each prompt of the first unit, with the verdict of that iteration's own contest."""
    verdicts: dict[str, tuple[Judgment, int]] = {}
    for judgment in tables.stream(Judgment, run.stage(iteration, "validate-judge").files()[:1]):
        verdicts |= {r: (judgment, place) for place, r in enumerate(judgment.response_ids)}
    for response in tables.stream(Response, run.stage(iteration, stage).files()[:1]):
        if response.k and stage == "validate-sample":
            continue
        judgment, place = verdicts.get(response.id, (None, 0))
        if judgment is not None and judgment.outcome != "ok":
            judgment = None
        shown = ShownAnswer(
            label,
            response.text,
            judgment.scores[place] if judgment and judgment.scores else None,
            {name: values[place] for name, values in judgment.measures.items()} if judgment else {},
            response.finish,
            response.defects,
        )
        answers.setdefault(response.prompt_id, []).append(shown)
