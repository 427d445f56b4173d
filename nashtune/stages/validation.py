"""Algorithm 2's last line needs a measure: held-out prompts answered by the new policy and judged against the others."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from statistics import quantiles
from typing import Any

from nashtune.evaluate.improvement import eta_of, improvement_bound
from nashtune.evaluate.significance import beats
from nashtune.evaluate.winrate import Labelled, contest, mean_measure, mean_score
from nashtune.records import Interval, IterationSummary
from nashtune.run import Run
from nashtune.stages.anchors import judge_anchors
from nashtune.stages.candidates import Candidates, PromptPart
from nashtune.stages.divergence import kl_from_previous
from nashtune.stages.export import export
from nashtune.stages.judging import judge
from nashtune.stages.payoffs import payoffs_of
from nashtune.stages.prepare import validation_part
from nashtune.stages.sampling import draw, drawing
from nashtune.stages.streaming import judged_alongside
from nashtune.stages.teacher import teacher_group
from nashtune.summaries import AVERAGE, column_name

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def validate(run: Run, iteration: int) -> IterationSummary:
    """Judge policy ``iteration`` (or the AVERAGE) on the held-out prompts against the initial policy, the previous one and the
    teacher, all in one candidate set per prompt; measure how far it moved; record its row and export the best so far."""
    candidates = held_out(run, iteration)
    if run.recipe.health.anchors and iteration != AVERAGE:
        judge_anchors(run, iteration, held_out(run, 0) if iteration else candidates)
    judgments = judge(run, candidates)
    rows: list[Labelled] = []
    words: list[int] = []
    unusable = 0
    for _, answers, judgment, labels in judgments.labelled():
        rows.append((judgment, labels))
        unusable += judgment.outcome != "ok"
        words += [len(a.text.split()) for a, label in zip(answers, labels, strict=True) if label == "policy"]
    kl = kl_from_previous(run, iteration)
    summary = IterationSummary(
        iteration=iteration,
        kl_from_previous=kl,
        improvement_bound=improvement_bound(kl, eta_of(run.recipe)),
        **_contests(rows, _place(run, iteration), run.recipe.validate_.confidence),
        p_beats_teacher=beats(contest(rows, "policy", "teacher").per_prompt),
        satisfied=mean_measure(rows, "satisfied"),
        good=mean_measure(rows, "good"),
        satisfied_and_good=mean_measure(rows, "satisfied_and_good"),
        mean_score=mean_score(rows),
        mean_words=sum(words) / len(words),
        words_by_quantile=_quantiles(words),
        unusable_judgments=unusable,
        **_from_records(run, iteration),
    )
    summary = _with_payoffs(run, summary)
    run.record(summary)
    export(run)
    return summary


def _with_payoffs(run: Run, summary: IterationSummary) -> IterationSummary:
    """With the game between the policies so far, in which the last is this one."""
    best = run.best_of([*run.summaries(), *([] if summary.iteration == AVERAGE else [summary])])
    found = payoffs_of(run, summary.iteration, best.iteration if best else None)
    return replace(summary, payoffs=found, exploitability=found.exploitability.get("last") if found else None)


def held_out(run: Run, iteration: int) -> Candidates:
    """The held-out candidate sets of an iteration: its policy's answers and those it is compared with."""
    part = validation_part(run)
    rivals = run.recipe.rivals(_place(run, iteration))
    groups = [draw(*_answers(run, rival, _label(rival, rivals))) for rival in rivals]
    if teacher := teacher_group(run, 0, "validate-teacher", part):
        groups.append(teacher)
    policy, draw_it = drawing(*_answers(run, iteration, "policy"))
    candidates = Candidates(iteration, part, (policy, *groups), validation=True)
    with judged_alongside(run, candidates) as watch:
        draw_it(watch)
    return candidates


def _place(run: Run, iteration: int) -> int:
    """Where a policy comes in the run: the average, after all iterations."""
    return run.recipe.iterations + 1 if iteration == AVERAGE else iteration


def _label(rival: int, rivals: list[int]) -> str:
    if rival == 0:
        return "initial"
    return "previous" if rival == rivals[-1] else column_name(rival)


def _answers(run: Run, iteration: int, label: str) -> tuple[Run, int, str, PromptPart, int, str, int, str]:
    """Every policy answers the held-out prompts with the same random streams, which narrows the comparison's noise."""
    k = run.recipe.validate_.k
    return run, iteration, "validate-sample", validation_part(run), iteration, "validate", k, label


def _contests(rows: list[Labelled], place: int, confidence: float) -> dict[str, Interval | None]:
    def against(label: str) -> Interval | None:
        return contest(rows, "policy", label).interval(confidence)

    initial = against("initial") if place else None
    return {
        "win_rate_vs_initial": initial,
        "win_rate_vs_previous": against("previous") if place >= 2 else initial,
        "win_rate_vs_teacher": against("teacher"),
    }


def _quantiles(values: list[int]) -> tuple[float, ...]:
    if len(values) < 2:
        return tuple(float(v) for v in values) * len(QUANTILES)
    cuts = quantiles(values, n=100, method="inclusive")
    return tuple(cuts[round(100 * q) - 1] for q in QUANTILES)


def _from_records(run: Run, iteration: int) -> dict[str, Any]:
    """What the iteration's stage records say: pairs, tokens, seconds, money."""
    files = sorted(run.iteration_folder(iteration).glob("*.json"))
    records = {f.stem: run.stage(iteration, f.stem).record() for f in files if f.stem != "summary"}
    facts = {name: record["facts"] for name, record in records.items()}
    pairs, trained = facts.get("pairs", {}), facts.get("train", {})
    tokens = {name: found["tokens"] for name, found in facts.items() if "tokens" in found}
    for name in ("judge", "validate-judge", "anchor-judge"):
        if spent := sum(facts.get(name, {}).get(key, 0) for key in ("prompt_tokens", "completion_tokens")):
            tokens[name] = spent
    costs = [c for found in facts.values() if (c := found.get("cost_usd")) is not None]
    unusable = facts.get("judge", {}).get("unusable", 0)
    dropped = Counter(pairs.get("dropped", {}))
    return {
        "pairs": pairs.get("kinds", {}),
        "dropped": dict(dropped),
        "dynamics": pairs.get("dynamics", {}) | {"unusable_judgments": float(unusable)},
        "defects": facts.get("sample", {}).get("defects", {}),
        "replayed_pairs": trained.get("replayed", 0),
        "train": {k: v for k, v in trained.items() if k not in ("replayed", "tokens", "rank_memory_gb")},
        "tokens": tokens,
        "seconds": {name: record["seconds"] for name, record in records.items()},
        "cost_usd": sum(costs) if costs else None,
    }
