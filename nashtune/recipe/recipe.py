"""The whole recipe, and which settings contradict each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import Field, model_validator

from nashtune.recipe.base import NEUTRAL, Section, identity
from nashtune.recipe.methods import METHODS, with_method, without
from nashtune.recipe.objectives import DEFAULT_OBJECTIVE, Objective, objective_section
from nashtune.recipe.oracles import Oracle
from nashtune.recipe.sections import (
    BudgetSection,
    HealthSection,
    PairsSection,
    PolicySection,
    PromptsSection,
    ReplaySection,
    SamplingSection,
    ScaleSection,
    TrainSection,
    ValidateSection,
)
from nashtune.recipe.teachers import NoTeacher, RemoteTeacher, Teacher
from nashtune.seeds import content_hash


class Recipe(Section):
    """A whole run."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    """Name of the run: its folder under `folder`."""
    folder: str = Field(default="runs", json_schema_extra=NEUTRAL)
    """Where run folders live."""
    seed: int = 0
    """Decides samples, splits, order of candidates and of training."""
    iterations: int = Field(default=3, ge=1)
    """Iterations T of Algorithm 2. May be raised later if prompts.per_iteration is given."""
    method: str | None = None
    """A preset by name (`nashtune methods`) that fills in what is not written here; null is none, and the defaults are DNO's."""
    policy: PolicySection
    prompts: PromptsSection
    teacher: Teacher = NoTeacher()
    sampling: SamplingSection = SamplingSection()
    oracle: Oracle
    pairs: PairsSection = PairsSection()
    replay: ReplaySection = ReplaySection()
    objective: Objective = objective_section()
    train: TrainSection = TrainSection()
    validate_: ValidateSection = Field(default=ValidateSection(), alias="validate")
    budget: BudgetSection = BudgetSection()
    ledger: str | None = Field(default=None, json_schema_extra=NEUTRAL)
    """A ledger file shared by several runs, so that none pays for what another bought; null keeps one in the run folder."""
    health: HealthSection = Field(default=HealthSection(), json_schema_extra=NEUTRAL)
    scale: ScaleSection = ScaleSection()

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, raw: Any) -> Any:
        """The method's settings under those written, and the default objective's name."""
        if not isinstance(raw, dict):
            return raw
        filled = with_method(raw)
        if isinstance(objective := filled.get("objective"), dict) and "name" not in objective:
            filled["objective"] = {"name": DEFAULT_OBJECTIVE, **objective}
        return filled

    @model_validator(mode="after")
    def _no_unused_or_contradictory_settings(self) -> Recipe:
        problems = list(_contradictions(self))
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def learning_rate(self, iteration: int) -> float:
        """Peak learning rate of iteration t = 1, 2, ..."""
        rate = self.train.learning_rate
        return rate[min(iteration, len(rate)) - 1] if isinstance(rate, tuple) else rate

    @property
    def validation_oracle(self) -> Oracle:
        """Who judges the held-out contests."""
        return self.validate_.oracle or self.oracle

    def judge(self, *, validation: bool) -> Oracle | None:
        """Who judges the held-out sets, or those trained on; None where pairs.rule asks nobody."""
        if validation:
            return self.validation_oracle
        return None if self.pairs.rule == "teacher_wins" else self.oracle

    def rivals(self, iteration: int) -> list[int]:
        """The earlier iterations whose policies are in the held-out candidate sets of an iteration."""
        if self.validate_.against == "all":
            return list(range(iteration))
        return sorted({0, iteration - 1}) if iteration else []

    @property
    def oracles(self) -> tuple[Oracle, ...]:
        """Every oracle that a run of this recipe may ask: the recipe's, and validation's where it is another."""
        return (self.oracle,) if self.validate_.oracle is None else (self.oracle, self.validate_.oracle)

    def resolved(self) -> dict[str, Any]:
        """The complete recipe as JSON values, defaults filled in."""
        return self.model_dump(mode="json", by_alias=True)

    def written(self) -> dict[str, Any]:
        """The recipe as short as it was written, overrides applied."""
        values = self.model_dump(mode="json", by_alias=True, exclude_unset=True)
        return without(METHODS[self.method].settings, values) if self.method else values

    def identity(self) -> dict[str, Any]:
        """The resolved recipe without neutral fields: what decides results."""
        return identity(self)

    def identity_hash(self) -> str:
        return content_hash(self.identity())


def _contradictions(recipe: Recipe) -> Sequence[str]:
    """Settings that fight each other or that nothing would read, each as one sentence."""
    found = []
    teacher, prompts = recipe.teacher, recipe.prompts
    if teacher.kind == "column" and not prompts.teacher_column:
        found.append("teacher.kind is 'column' but prompts.teacher_column is not set; name the column")
    if teacher.kind != "column" and prompts.teacher_column:
        found.append(
            f"prompts.teacher_column is {prompts.teacher_column!r} but teacher.kind is {teacher.kind!r}, "
            "so nothing would read it; set teacher.kind: column or remove it"
        )
    if isinstance(teacher, RemoteTeacher) and teacher.engine.batch:
        found.append("teacher.engine.batch is true, but only judges buy in batches so far; accepted: false")
    if recipe.pairs.rule in ("restrictive", "teacher_wins") and teacher.kind == "none":
        found.append(
            f"pairs.rule {recipe.pairs.rule!r} takes the teacher's answers as positives but teacher.kind is 'none'"
        )
    if teacher.kind == "none" and recipe.sampling.k < 2:
        found.append(
            f"sampling.k is {recipe.sampling.k} and there is no teacher: no pair could be built; accepted: 2 or more"
        )
    if recipe.sampling.temperature == 0 and {"top_p", "top_k"} & recipe.sampling.model_fields_set:
        found.append(
            "sampling.temperature is 0 (greedy), so sampling.top_p and sampling.top_k would not be read; remove them"
        )
    if recipe.sampling.k > recipe.sampling.slots:
        found.append(
            f"sampling.k is {recipe.sampling.k} but sampling.slots is {recipe.sampling.slots}; accepted: slots >= k"
        )
    rates = recipe.train.learning_rate
    found += [
        f"train.learning_rate is {rate}; accepted: a number between 0 and 1, or a list of them"
        for rate in (rates if isinstance(rates, tuple) else (rates,))
        if not 0 < rate < 1
    ]
    if recipe.replay.fraction in (0, "all") and "decay" in recipe.replay.model_fields_set:
        found.append(f"replay.fraction is {recipe.replay.fraction!r}, so replay.decay would not be read; remove it")
    if recipe.oracle.kind == "rules" and recipe.oracle.guard.min_words > recipe.oracle.guard.max_words:
        found.append("oracle.guard.min_words is above oracle.guard.max_words")
    if recipe.validate_.select == "satisfied_and_good" and recipe.validation_oracle.kind != "rules":
        found.append("validate.select 'satisfied_and_good' needs oracle.kind (or validate.oracle.kind) 'rules'")
    return [*found, *_method_contradictions(recipe)]


THRESHOLDS = {
    "paper": ("positive_score", "margin", "student_margin", "positive_rate", "rate_margin", "student_rate_margin"),
    "restrictive": ("positive_score", "margin", "positive_rate", "rate_margin"),
}
"""The thresholds that each pair rule reads."""
COMPARING = ("pairwise", "preference_model", "people")
"""Oracles that compare and do not score."""


def _method_contradictions(recipe: Recipe) -> Iterator[str]:
    """What method, objective, pair rule and oracle ask of each other."""
    objective, rule = recipe.objective, recipe.pairs.rule
    if recipe.method is not None and recipe.method not in METHODS:
        yield f"method is {recipe.method!r}; accepted: {', '.join(METHODS)}"
    if problem := objective.row.problem(objective.settings):
        yield f"objective {objective.name!r}: {problem}"
    asked = () if rule == "teacher_wins" else (recipe.oracle.kind,)
    if "scores" in objective.row.needs and any(kind in COMPARING for kind in asked):
        yield (
            f"objective.name {objective.name!r} reads scores but oracle.kind {recipe.oracle.kind!r} only compares; "
            "accepted: an oracle that scores"
        )
    if objective.row.needs and rule == "teacher_wins":
        yield (
            f"objective.name {objective.name!r} reads the oracle's {', '.join(sorted(objective.row.needs))} but pairs.rule "
            "'teacher_wins' does not ask it; accepted: another rule, or objective spin, dno-prct, dpo, ..."
        )
    if "versus_policy" in objective.row.needs and recipe.sampling.k < 2:
        yield f"objective.name {objective.name!r} compares samples of the policy but sampling.k is 1; accepted: 2 or more"
    unread = [
        name
        for name in sorted(recipe.pairs.model_fields_set & set(THRESHOLDS["paper"]))
        if name not in THRESHOLDS.get(rule, ())
    ]
    if unread:
        yield f"pairs.rule {rule!r} does not read {', '.join(f'pairs.{name}' for name in unread)}; remove what is not read"
