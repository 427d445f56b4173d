"""What a run, or a probe, has shown: lengths of answers, the judge's tokens, and rates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from nashtune.planning.times import Times
from nashtune.recipe import Recipe
from nashtune.records import Response
from nashtune.run import Run
from nashtune.store import tables

STAGES = ("sample", "teacher", "judge", "pairs", "train", "kl-sample", "kl-scores")
STARTED = "start_seconds"
"""Fact of a stage of units: seconds before its first unit began, in which processes start and models are loaded."""
READ_RESPONSES = 2000
"""Most answers whose length is looked at."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Mean length of answers, in tokens and characters."""

    count: int
    tokens: float
    characters: float


@dataclass(frozen=True, slots=True)
class Judged:
    """Means over judgments of training candidate sets: calls, tokens, dollars (at the price then), seconds of the stage."""

    judgments: int
    unusable: int
    calls: float
    prompt_tokens: float
    completion_tokens: float
    cost_usd: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Loading:
    """What passed before the first units of a run's stages of sampling (seconds): ``load`` in the mean of its iterations,
    ``start`` so much more in its first stage, in which processes start; ``rate``: tokens a second of the rest."""

    load: float
    start: float
    rate: float


@dataclass(frozen=True, slots=True)
class Measured:
    """Everything measured, None where the run had none of it. Rates are tokens (teacher: answers) a second of the stage,
    the loading of models included."""

    source: str
    student: Answers | None = None
    teacher: Answers | None = None
    judged: Judged | None = None
    sampling_rate: float | None = None
    teacher_rate: float | None = None
    training_rate: float | None = None
    scoring_rate: float | None = None
    """Of log-probs under another policy: answers a second."""
    pairs_per_prompt: float | None = None
    times: Times | None = None
    """A calibration's, which say more than the rates."""
    loading: Loading | None = None
    """What of the sampling rate's seconds is loading, where records say so."""


def measure(run: Run, source: str) -> Measured:
    """The figures of a run's iterations that are trained on, as far as they are done."""
    facts: dict[str, Counter[str]] = {name: Counter() for name in STAGES}
    files: dict[str, list[Path]] = {"sample": [], "teacher": []}
    for t in run.iterations():
        for name, total in facts.items():
            stage = run.stage(t, name)
            if stage.file.exists():
                total.update(_figures(stage.record()))
                files.get(name, []).extend(stage.files())
        if run.stage(t, "train").file.exists():
            facts["train"].update({"seconds": reference_seconds(run, t)})
    sample, judge, train = facts["sample"], facts["judge"], facts["train"]
    return Measured(
        source=source,
        student=_answers(files["sample"]),
        teacher=_answers(files["teacher"]),
        judged=_judged(judge),
        sampling_rate=_ratio(sample["tokens"], sample["seconds"]),
        teacher_rate=_ratio(facts["teacher"]["responses"], facts["teacher"]["seconds"]),
        training_rate=_ratio(train["tokens"], train["seconds"]),
        scoring_rate=_ratio(facts["kl-sample"]["responses"], facts["kl-scores"]["seconds"]),
        pairs_per_prompt=_ratio(facts["pairs"]["pairs"], judge["judgments"]) if facts["pairs"]["stages"] else None,
        loading=_loading(run, sample),
    )


def reference_seconds(run: Run, iteration: int) -> float:
    """What the workers took for the reference log-probs of an iteration's training, which a plan counts as part of it."""
    stages = (run.stage(iteration, f"references-{name}") for name in references_of(run.recipe))
    return sum(stage.record()["seconds"] for stage in stages if stage.file.exists())


def references_of(recipe: Recipe) -> Sequence[str]:
    """Names of the policies that the recipe's objective refers to."""
    return tuple(recipe.objective.row.references(recipe.objective.settings))


def _loading(run: Run, sample: Counter[str]) -> Loading | None:
    """By the records' ``start_seconds``; None where a stage has none, as in a run of an earlier version."""
    stages = [stage for t in run.iterations() if (stage := run.stage(t, "sample")).file.exists()]
    told = [found for stage in stages if (found := stage.record()["facts"].get(STARTED)) is not None]
    first = [
        found
        for name in ("validate-sample", "validate-teacher-pool")
        if (stage := run.stage(0, name)).file.exists() and (found := stage.record()["facts"].get(STARTED)) is not None
    ]
    working = sample["seconds"] - sum(told)
    if not told or len(told) < len(stages) or not first or working <= 0:
        return None
    load = sum(told) / len(told)
    return Loading(load, max(0.0, max(first) - load), sample["tokens"] / working)


def earlier_run(recipe: Recipe, folder: Path) -> Measured | None:
    """What the recipe's own run folder has shown so far; None where it has sampled nothing, or with other settings."""
    if not (folder / "recipe.yaml").is_file():
        return None
    run = Run.read(folder)
    known, wanted = run.recipe.identity(), recipe.identity()
    if any(known[name] != wanted[name] for name in ("policy", "sampling", "teacher", "oracle")):
        return None
    found = measure(run, f"run folder {folder}")
    return found if found.student else None


def _figures(record: dict[str, Any]) -> dict[str, float]:
    facts = record["facts"]
    plain = {name: value for name, value in facts.items() if isinstance(value, int | float)}
    return {**plain, "seconds": record["seconds"], "stages": 1, "pairs": sum(facts.get("kinds", {}).values())}


def _answers(files: Sequence[Path]) -> Answers | None:
    found = list(islice(tables.stream(Response, files), READ_RESPONSES))
    if not found:
        return None
    tokens, characters = sum(len(r.token_ids) for r in found), sum(len(r.text) for r in found)
    return Answers(len(found), tokens / len(found), characters / len(found))


def _judged(facts: Counter[str]) -> Judged | None:
    count = facts["judgments"]
    if not count:
        return None
    return Judged(
        judgments=count,
        unusable=facts["unusable"],
        calls=facts["calls"] / count,
        prompt_tokens=facts["prompt_tokens"] / count,
        completion_tokens=facts["completion_tokens"] / count,
        cost_usd=facts["cost_usd"] / count if "cost_usd" in facts else None,
        seconds=facts["seconds"] / count,
    )


def _ratio(amount: float, by: float) -> float | None:
    return amount / by if amount and by else None
