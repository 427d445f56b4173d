"""The plan of a recipe: its estimate, the alternatives, disk and budget in one record."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nashtune.judging.prices import FREE, find_price
from nashtune.planning.alternatives import Alternative, alternatives
from nashtune.planning.budget import Budget, budget_of, spending
from nashtune.planning.calibration import as_measured, calibrate
from nashtune.planning.disk import Disk, disk_of
from nashtune.planning.estimate import Estimator, Row
from nashtune.planning.lengths import count_parameters, local_lengths, local_policy
from nashtune.planning.measured import earlier_run
from nashtune.planning.probe import Probe, paid_engines, probe
from nashtune.planning.work import read_work
from nashtune.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Plan:
    """All of it. ``judging``: which engine the alternatives are computed for, or why there are none."""

    name: str
    folder: Path
    prompts: tuple[int, ...]
    validation: int
    rows: Sequence[Row]
    judging: str
    alternatives: Sequence[Alternative]
    prices: dict[str, str]
    assumptions: Sequence[str]
    rates: str
    disk: Disk
    budget: Budget
    probe: Probe | None

    def sum_of(self, figure: str, iteration: int | None = None) -> float:
        """A figure of the rows, over one iteration or all."""
        return math.fsum(getattr(r, figure) for r in self.rows if iteration in (None, r.iteration))

    def seconds(self) -> float | None:
        """Of the whole run, None where the rate of any stage is unknown."""
        known = [row.seconds for row in self.rows if row.seconds is not None]
        return math.fsum(known) if len(known) == len(self.rows) else None

    def to_dict(self) -> dict[str, Any]:
        """For scripts. Dollars, tokens, seconds and bytes; null where something is not known."""
        figures = ("calls", "prompt_tokens", "completion_tokens", "tokens", "usd", "usd_sync", "usd_batch", "usd_worst")
        iterations = sorted({row.iteration for row in self.rows}, key=lambda t: (t < 0, t))  # the average last
        return {
            "name": self.name,
            "folder": str(self.folder),
            "prompts": list(self.prompts),
            "validation_prompts": self.validation,
            "stages": [asdict(row) for row in self.rows],
            "iterations": [{"iteration": t, **{f: self.sum_of(f, t) for f in figures}} for t in iterations],
            "total": {**{f: self.sum_of(f) for f in figures}, "seconds": self.seconds()},
            "judging": self.judging,
            "alternatives": [asdict(other) for other in self.alternatives],
            "prices": self.prices,
            "assumptions": list(self.assumptions),
            "rates": self.rates,
            "disk": {**asdict(self.disk), "total": self.disk.total},
            "budget": {
                "usd": self.budget.usd,
                "usd_per_iteration": self.budget.usd_per_iteration,
                "spent": self.budget.spent,
                "projected": self.budget.total,
                "problem": self.budget.problem or None,
            },
            "probe": self.probe.to_dict() if self.probe else None,
        }


def make_plan(
    recipe: Recipe,
    folder: Path | None = None,
    *,
    probe_prompts: int = 0,
    answer_tokens: int | None = None,
    calibrated: bool = False,
) -> Plan:
    """Estimate a recipe's run; nothing is spent but on ``probe_prompts`` prompts, if any. ``calibrated``: with seconds from a
    calibration of this machine, made where there is none yet.

    Raises OracleError for an engine whose price is not known, PromptError for a source that cannot be read.
    """
    folder = folder or run_folder(recipe)
    for engine in paid_engines(recipe):
        find_price(engine)  # before anything slow
    policy = local_policy(recipe)
    lengths = local_lengths(recipe, policy)
    work = read_work(recipe, folder, lengths)
    probed = probe(recipe, folder, work, probe_prompts) if probe_prompts else None
    measured = probed.measured if probed else earlier_run(recipe, folder)
    if calibrated:
        times = calibrate(recipe, work)
        measured = replace(measured, times=times) if measured else as_measured(times)
    estimator = Estimator(recipe, work, lengths, measured, answer_tokens)
    rows = estimator.rows()
    paid = next((e for e in paid_engines(recipe) if find_price(e) != FREE and _judges(recipe, e)), None)
    return Plan(
        name=recipe.name,
        folder=folder,
        prompts=work.parts,
        validation=work.validation,
        rows=rows,
        judging=f"all judging of the run with {paid.model}"
        if paid
        else "judging is free: no oracle of this recipe has a price",
        alternatives=alternatives(estimator, paid) if paid else (),
        prices=_prices(recipe),
        assumptions=estimator.assumptions(),
        rates=f"seconds at the rates of the {measured.source}"
        if measured
        else "seconds: not measured (--calibrate and --probe measure)",
        disk=disk_of(recipe, count_parameters(policy) if policy else None, rows),
        budget=budget_of(recipe, rows, spending(recipe, folder)),
        probe=probed,
    )


def refuse_over_budget(recipe: Recipe, folder: Path | None = None, tell: Callable[[str], None] | None = None) -> None:
    """Before a run's first paid call: raises BudgetError where its expected cost, with what it has spent, goes over a cap.

    Costs nothing where the recipe has no cap or nothing to pay for.
    """
    caps = recipe.budget
    if caps.usd is None and caps.usd_per_iteration is None:
        return
    if all(find_price(engine) == FREE for engine in paid_engines(recipe)):
        return
    folder = folder or run_folder(recipe)
    lengths = local_lengths(recipe, local_policy(recipe))
    work = read_work(recipe, folder, lengths)
    rows = Estimator(recipe, work, lengths, earlier_run(recipe, folder)).rows()
    budget = budget_of(recipe, rows, spending(recipe, folder))
    if tell and not budget.problem:
        tell(f"expected to cost ${budget.total:.2f} (budget: `nashtune plan` shows how it comes about)")
    budget.refuse()


def run_folder(recipe: Recipe) -> Path:
    """Where the recipe's run lies, or will."""
    return Path(recipe.folder) / recipe.name


def _judges(recipe: Recipe, engine: object) -> bool:
    return engine is not getattr(recipe.teacher, "engine", None)


def _prices(recipe: Recipe) -> dict[str, str]:
    """Dollars per million tokens of each served model, and where they come from."""
    found: dict[str, str] = {}
    for engine in paid_engines(recipe):
        price = find_price(engine)
        mode = ", batch" if engine.batch else ""
        found[engine.model] = (
            f"${price.input * 1e6:g} in, ${price.output * 1e6:g} out per million tokens ({price.source}{mode})"
        )
    return found
