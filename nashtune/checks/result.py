"""What a check of a pairwise set found, as JSON values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from nashtune import recipe
from nashtune.checks.alarms import quality_alarms
from nashtune.checks.ask import Check, ask
from nashtune.checks.verdicts import Bill, annotator_verdicts, asked_verdicts, bill_of, labels_of, stored_verdicts
from nashtune.errors import OracleError
from nashtune.judging.health import Alarm
from nashtune.judging.judge_quality import Quality, Verdicts, quality
from nashtune.judging.pairwise_set import Reading, read_pairwise
from nashtune.judging.rater_agreement import RatersAgreement, raters_agreement
from nashtune.recipe import HealthSection


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Figures of every judge, of the people, and what asking took. ``folder``: where the asking is kept."""

    source: str
    comparisons: int
    prompts: int
    left_out: dict[str, int]
    judges: tuple[Quality, ...]
    people: RatersAgreement | None
    """Of the data's annotators, where there are two or more."""
    bill: Bill | None
    alarms: tuple[Alarm, ...]
    """What a recipe's health section (or its defaults) calls cause for alarm."""
    folder: str | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_pairs(
    source: str, reading: Reading, check: Check | None, health: HealthSection | None = None, seed: int = 0
) -> CheckResult:
    """Read a pairwise set, ask the oracle of ``check`` where there is one, and measure it and the verdicts that came along.

    Raises PromptError for bad data, and OracleError where there is nobody to measure."""
    data = read_pairwise(source, reading, seed)
    labels, judges = labels_of(data), stored_verdicts(data)
    people = annotator_verdicts(data)
    if check is None and not judges and len(people) < 2:
        raise OracleError(
            f"{source}: nobody to measure; accepted: --oracle or --recipe, --verdicts, or data with two annotators or more"
        )
    bill, folder = None, None
    if check is not None:
        asked = ask(source, data.pairs, check)
        judges = [_named_apart(asked_verdicts(_name(check), data.pairs, asked, check.places), judges), *judges]
        bill, folder = bill_of(asked), str(asked.folder)
    found = tuple(quality(labels, verdicts, seed) for verdicts in judges)
    return CheckResult(
        source=source,
        comparisons=len(data.pairs),
        prompts=len(set(labels.cluster.tolist())),
        left_out=dict(data.left_out),
        judges=found,
        people=raters_agreement(people, labels.cluster, seed) if len(people) > 1 else None,
        bill=bill,
        alarms=tuple(alarm for judge in found for alarm in quality_alarms(judge, health or HealthSection())),
        folder=folder,
    )


def _name(check: Check) -> str:
    oracle = check.oracle
    return f"{oracle.kind} {oracle.asked.model}" if isinstance(oracle, recipe.Asking) else oracle.kind


def _named_apart(verdicts: Verdicts, others: list[Verdicts]) -> Verdicts:
    """The oracle's kind and model, or another name where a stored judge goes by it."""
    taken = any(other.name == verdicts.name for other in others)
    name = f"{verdicts.name} (asked now)" if taken else verdicts.name
    return Verdicts(name, verdicts.said, verdicts.asked, verdicts.margin, verdicts.places)
