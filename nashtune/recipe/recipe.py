"""The whole recipe."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from nashtune.recipe.base import NEUTRAL, Section, identity
from nashtune.recipe.contradictions import contradictions
from nashtune.recipe.evaluation import SuiteSettings
from nashtune.recipe.methods import METHODS, with_method, without
from nashtune.recipe.objectives import DEFAULT_OBJECTIVE, Objective, objective_section
from nashtune.recipe.oracles import Oracle
from nashtune.recipe.prompts import PromptsSection
from nashtune.recipe.sections import (
    BudgetSection,
    HealthSection,
    PairsSection,
    PolicySection,
    ReplaySection,
    SamplingSection,
    ScaleSection,
    TrainSection,
    ValidateSection,
)
from nashtune.recipe.teachers import NoTeacher, Teacher
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
    evaluate: tuple[SuiteSettings, ...] = Field(default=(), json_schema_extra=NEUTRAL)
    """Published suites that policies of the run are evaluated by (`nashtune suites`), besides the held-out contest. May be
    added to a run at any time; changed settings of one need another `name`."""
    average: Literal["best", "last", "weights"] = Field(default="best", json_schema_extra=NEUTRAL)
    """Which policy the run exports: the best iteration by validate.select, the last one, or the mean of the weights of all
    iterations (not of the initial policy), which is then validated like them. May be changed on a finished run."""
    budget: BudgetSection = BudgetSection()
    ledger: str | None = Field(default=None, json_schema_extra=NEUTRAL)
    """A ledger file shared by several runs, so that none pays for what another bought; null keeps one in the run folder."""
    shared: str | None = Field(default=None, json_schema_extra=NEUTRAL)
    """A folder in which several runs leave their samples and judgments for each other, so that what one made from the same
    inputs is not made again; null shares nothing."""
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
        problems = list(contradictions(self))
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
        """The earlier iterations whose policies are in the held-out candidate sets of an iteration: the first and the last, or
        all of them under validate.payoffs."""
        if self.validate_.payoffs:
            return list(range(iteration))
        return sorted({0, iteration - 1}) if iteration else []

    def evaluation(self, metric: str) -> tuple[SuiteSettings, str] | None:
        """The evaluation that gives a metric, and what the suite itself calls it; None where none of the recipe's does."""
        for suite in self.evaluate:
            if metric in (names := suite.metric_names()):
                return suite, names[metric]
        return None

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
