"""The whole recipe, and which settings contradict each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, model_validator

from nashtune.recipe.base import NEUTRAL, Section, identity
from nashtune.recipe.oracles import Oracle
from nashtune.recipe.sections import (
    BudgetSection,
    HealthSection,
    ObjectiveSection,
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
    policy: PolicySection
    prompts: PromptsSection
    teacher: Teacher = NoTeacher()
    sampling: SamplingSection = SamplingSection()
    oracle: Oracle
    pairs: PairsSection = PairsSection()
    replay: ReplaySection = ReplaySection()
    objective: ObjectiveSection = ObjectiveSection()
    train: TrainSection = TrainSection()
    validate_: ValidateSection = Field(default=ValidateSection(), alias="validate")
    budget: BudgetSection = BudgetSection()
    ledger: str | None = Field(default=None, json_schema_extra=NEUTRAL)
    """A ledger file shared by several runs, so that none pays for what another bought; null keeps one in the run folder."""
    health: HealthSection = Field(default=HealthSection(), json_schema_extra=NEUTRAL)
    scale: ScaleSection = ScaleSection()

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

    def resolved(self) -> dict[str, Any]:
        """The complete recipe as JSON values, defaults filled in."""
        return self.model_dump(mode="json", by_alias=True)

    def written(self) -> dict[str, Any]:
        """The recipe as short as it was written, overrides applied."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def identity(self) -> dict[str, Any]:
        """The resolved recipe without neutral fields: what decides results."""
        return identity(self)

    def identity_hash(self) -> str:
        return content_hash(self.identity())


def _contradictions(recipe: Recipe) -> Sequence[str]:
    """Settings that fight each other or that nothing would read, each as one sentence."""
    found = []
    teacher, prompts, fields = recipe.teacher, recipe.prompts, recipe.model_fields_set
    if teacher.kind == "column" and not prompts.teacher_column:
        found.append("teacher.kind is 'column' but prompts.teacher_column is not set; name the column")
    if teacher.kind != "column" and prompts.teacher_column:
        found.append(
            f"prompts.teacher_column is {prompts.teacher_column!r} but teacher.kind is {teacher.kind!r}, "
            "so nothing would read it; set teacher.kind: column or remove it"
        )
    if isinstance(teacher, RemoteTeacher) and teacher.engine.batch:
        found.append("teacher.engine.batch is true, but only judges buy in batches so far; accepted: false")
    if recipe.pairs.rule == "restrictive" and teacher.kind == "none":
        found.append("pairs.rule 'restrictive' takes the teacher's answers as positives but teacher.kind is 'none'")
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
    if recipe.objective.name == "sft" and "beta" in recipe.objective.model_fields_set:
        found.append("objective.beta is set but objective.name 'sft' has no margin; remove it")
    if recipe.objective.name == "sft" and "alpha" in recipe.objective.model_fields_set:
        found.append("objective.alpha is set but objective.name 'sft' is the likelihood term alone; remove it")
    rates = recipe.train.learning_rate
    found += [
        f"train.learning_rate is {rate}; accepted: a number between 0 and 1, or a list of them"
        for rate in (rates if isinstance(rates, tuple) else (rates,))
        if not 0 < rate < 1
    ]
    if "replay" in fields and recipe.replay.fraction == 0 and "decay" in recipe.replay.model_fields_set:
        found.append("replay.fraction is 0, so replay.decay would not be read; remove it")
    if recipe.oracle.kind == "rules" and recipe.oracle.guard.min_words > recipe.oracle.guard.max_words:
        found.append("oracle.guard.min_words is above oracle.guard.max_words")
    if recipe.validate_.select == "satisfied_and_good" and recipe.oracle.kind != "rules":
        found.append("validate.select 'satisfied_and_good' needs oracle.kind 'rules'")
    return found
