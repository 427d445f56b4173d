"""Whether the expected cost fits the recipe's budget, what the run has already spent included."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nashtune.errors import BudgetError
from nashtune.planning.estimate import Row
from nashtune.recipe import Recipe
from nashtune.run import Run
from nashtune.summaries import AVERAGE


@dataclass(frozen=True, slots=True)
class Spending:
    """Dollars that a run's ledger holds for each iteration, replies that never came included, and the iterations finished."""

    by_iteration: Mapping[int, float]
    finished: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Budget:
    """Dollars. ``projected`` of each iteration: spent, where it is finished; else the larger of spent and expected.
    ``problem``: why the run is refused, "" where it fits."""

    usd: float | None
    usd_per_iteration: float | None
    spent: float
    projected: Mapping[int, float]
    problem: str

    @property
    def total(self) -> float:
        return math.fsum(self.projected.values())

    def refuse(self) -> None:
        """Raises BudgetError where the expected cost goes over a cap."""
        if self.problem:
            raise BudgetError(self.problem)


def spending(recipe: Recipe, folder: Path) -> Spending:
    """What the run in ``folder`` has spent so far; nothing where it has not begun."""
    run = Run(folder, recipe)
    if not (folder / "id").is_file() or not run.ledger_file.is_file():
        return Spending({})
    from nashtune.store.ledger import Ledger

    iterations = [*range(recipe.iterations + 1), AVERAGE]
    with Ledger(run.ledger_file) as ledger:
        totals = {t: ledger.totals(run.id, t) for t in iterations}
    spent = {t: found["cost_usd"] + found["exposure_usd"] for t, found in totals.items()}
    return Spending(spent, frozenset(t for t in iterations if run.finished(t)))


def budget_of(recipe: Recipe, rows: Sequence[Row], spent: Spending) -> Budget:
    """The projection of ``rows`` against the recipe's caps."""
    expected = {
        t: math.fsum(row.usd for row in rows if row.iteration == t) for t in sorted({row.iteration for row in rows})
    }
    projected = {
        t: spent.by_iteration.get(t, 0.0) if t in spent.finished else max(usd, spent.by_iteration.get(t, 0.0))
        for t, usd in expected.items()
    }
    caps, already = recipe.budget, math.fsum(spent.by_iteration.values())
    left = any(t not in spent.finished for t in projected)
    problem = _problem(caps.usd, caps.usd_per_iteration, projected, already, spent.finished) if left else ""
    return Budget(caps.usd, caps.usd_per_iteration, already, projected, problem)


def _problem(
    usd: float | None,
    usd_per_iteration: float | None,
    projected: Mapping[int, float],
    spent: float,
    finished: frozenset[int],
) -> str:
    accepted = "accepted: a higher cap, fewer prompts or iterations, or a cheaper judge (`nashtune plan` compares them)"
    total = math.fsum(projected.values())
    if usd is not None and total > usd:
        return (
            f"budget.usd: the run is expected to cost ${total:.2f} ({spent:.2f} of it spent already), the cap is ${usd:.2f}; "
            + accepted
        )
    over = [t for t, cost in projected.items() if usd_per_iteration is not None and cost > usd_per_iteration]
    over = [t for t in over if t not in finished]
    if over:
        return (
            f"budget.usd_per_iteration: iteration {over[0]} is expected to cost ${projected[over[0]]:.2f}, the cap is "
            f"${usd_per_iteration:.2f}; {accepted}"
        )
    return ""
