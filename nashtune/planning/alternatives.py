"""All judging of a run by other judges with the same engine, side by side."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nashtune import recipe as settings
from nashtune.planning.bills import Factors
from nashtune.planning.estimate import Estimator, Row
from nashtune.recipe import BestOfN


@dataclass(frozen=True, slots=True)
class Alternative:
    """All of the run's judging by another oracle with the same engine and model."""

    name: str
    calls: float
    prompt_tokens: float
    completion_tokens: float
    usd_sync: float
    usd_batch: float
    usd_worst: float


def judging_with(estimator: Estimator, name: str, oracle: settings.Oracle) -> Alternative:
    """All judging of the run by another oracle; what was measured of this recipe's judge corrects its own kind only."""
    same = oracle.kind == estimator.recipe.oracle.kind
    other = Estimator(
        estimator.recipe.model_copy(update={"oracle": oracle}), estimator.work, estimator.lengths, estimator.measured
    )
    other.student, other.teacher = estimator.student, estimator.teacher
    other.correction = estimator.correction if same else Factors(prompt=estimator.correction.prompt)
    rows = [row for row in other.rows() if row.model and (row.stage.endswith("judge") or _pools(estimator.recipe, row))]
    names = ("calls", "prompt_tokens", "completion_tokens", "usd_sync", "usd_batch", "usd_worst")
    return Alternative(name, *(sum(getattr(row, figure) for row in rows) for figure in names))


def _pools(recipe: settings.Recipe, row: Row) -> bool:
    return isinstance(recipe.teacher, BestOfN) and row.stage.endswith("teacher")


def alternatives(estimator: Estimator, engine: settings.EngineSection) -> list[Alternative]:
    """The usual judges with ``engine``: what the paper does, and cheaper ways."""
    rubric = settings.RubricOracle(kind="rubric", engine=engine)
    free = settings.ScriptedOracle(kind="scripted")
    cascade = settings.CascadeOracle(kind="cascade", cheap=free, strong=rubric, shown=3, audit=0.05)
    compact = settings.CompactOracle(kind="compact", engine=engine)
    unsure = {"strong": compact, "audit_oracle": rubric, "trust": 0.7, "shown": 1000}
    named: Iterable[tuple[str, settings.Oracle]] = [
        ("as in the recipe", estimator.recipe.oracle),
        ("rubric, the paper's", rubric),
        ("compact, 3 replies", compact),
        ("compact, log-probs", settings.CompactOracle(kind="compact", engine=engine, use="logprobs")),
        ("pairwise, both orders", settings.PairwiseOracle(kind="pairwise", engine=engine)),
        ("cascade: free judge, rubric on 3, 5 % audited", cascade),
        ("cascade: free judge, compact on 3, 5 % audited by rubric",
         cascade.model_copy(update={"strong": compact, "audit_oracle": rubric})),
        ("cascade: fitted judge, compact where it is unsure, 5 % audited by rubric", cascade.model_copy(update=unsure)),
    ]  # fmt: skip
    return [judging_with(estimator, name, oracle) for name, oracle in named]
