"""What a run came to, held-out prompt by held-out prompt: what a comparison of methods is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nashtune.evaluate.winrate import contest
from nashtune.recipe import Recipe
from nashtune.records import IterationSummary
from nashtune.run import Run
from nashtune.stages.judging import judge
from nashtune.stages.validation import held_out
from nashtune.store.files import read_json, write_json
from nashtune.summaries import summary_from

ByPrompt = Mapping[str, float]
"""A prompt's mean over its verdicts, by prompt id; prompts without a usable verdict are left out."""
RIVALS = ("initial", "teacher")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One finished run of a lab. Lists hold an entry for each iteration, the initial policy's first."""

    seed: int
    method: str
    summaries: tuple[IterationSummary, ...]
    contests: tuple[Mapping[str, ByPrompt], ...]
    """P(policy beats rival) of each prompt, by rival."""
    best: int | None
    """The iteration that the run selected."""
    seconds: float
    """Of all stages; what another run had made and this one took over is counted there."""
    paid_usd: float | None
    """Dollars of this run's calls; None where it has none."""


def measure(run: Run, seed: int, method: str) -> Outcome:
    """Read a finished run's outcome from its folder."""
    summaries = run.summaries()
    best = run.best()
    return Outcome(
        seed=seed,
        method=method,
        summaries=tuple(summaries),
        contests=tuple(_contests(run, summary.iteration) for summary in summaries),
        best=best.iteration if best else None,
        seconds=sum(sum(summary.seconds.values()) for summary in summaries),
        paid_usd=_paid(run),
    )


def _contests(run: Run, iteration: int) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {rival: {} for rival in RIVALS}
    for prompt, _, judgment, labels in judge(run, held_out(run, iteration)).labelled():
        for rival in RIVALS:
            for value in contest([(judgment, labels)], "policy", rival).per_prompt:
                found[rival][prompt.id] = value
    return found


def _paid(run: Run) -> float | None:
    """From the ledger, which knows what this run bought; a judgment that it took over cost it nothing."""
    from nashtune.store.ledger import Ledger

    if not run.ledger_file.exists():
        return None
    with Ledger(run.ledger_file) as ledger:
        return ledger.totals(run.id)["cost_usd"]


def write_outcome(file: Path, outcome: Outcome, recipe: Recipe) -> None:
    """Keep an outcome, with what decided it."""
    write_json(file, {"recipe": recipe.identity_hash(), **asdict(outcome)})


def read_outcome(file: Path, recipe: Recipe) -> Outcome | None:
    """The outcome kept in ``file``; None where there is none, or of another recipe."""
    if not file.exists():
        return None
    values: dict[str, Any] = read_json(file)
    return outcome_from(values) if values["recipe"] == recipe.identity_hash() else None


def outcome_from(values: dict[str, Any]) -> Outcome:
    """An outcome as it was kept."""
    values = {key: value for key, value in values.items() if key != "recipe"}
    summaries = tuple(map(summary_from, values.pop("summaries")))
    return Outcome(**values | {"summaries": summaries, "contests": tuple(values["contests"])})
