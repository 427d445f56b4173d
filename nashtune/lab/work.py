"""Running a lab: every method with every seed, each an ordinary run; sharing, resuming, and keeping score."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import yaml

from nashtune.lab.outcomes import Outcome, measure, read_outcome, write_outcome
from nashtune.lab.settings import Lab
from nashtune.loop import improve
from nashtune.planning.plan import refuse_over_budget
from nashtune.recipe import Recipe
from nashtune.run import Run
from nashtune.store.files import exclusive, write_atomic

Recipes = Mapping[tuple[int, str], Recipe]


def run_lab(
    lab: Lab, recipes: Recipes, tell: Callable[[str], None], on_run: Callable[[list[Outcome]], object]
) -> list[Outcome]:
    """Run what is not finished, seed by seed, and return all outcomes; ``on_run`` hears of those so far after each run.

    What one run sampled or had judged is not made again by another: units made from the same inputs are shared, and paid
    calls have one ledger. Killed and started again, it goes on where it stopped. Raises BudgetError before a run that would
    go over its own budget, DriftError where the lab file changed what a finished part was made with, and
    RunLockedError where another process works on the lab.
    """
    with exclusive(lab.place / "lock"):
        write_atomic(lab.place / "lab.yaml", yaml.safe_dump(lab.model_dump(mode="json"), sort_keys=False))
        for number, ((seed, method), recipe) in enumerate(recipes.items(), 1):
            if read_outcome(_outcome_file(lab, seed, method), recipe) is None:
                tell(f"{lab.name}: run {number} of {len(recipes)}: {method}, seed {seed}")
                _one(lab, seed, method, recipe, tell)
                on_run(outcomes(lab, recipes))
        return outcomes(lab, recipes)


def outcomes(lab: Lab, recipes: Recipes) -> list[Outcome]:
    """The outcomes of all finished runs."""
    found = (read_outcome(_outcome_file(lab, seed, method), recipe) for (seed, method), recipe in recipes.items())
    return [outcome for outcome in found if outcome is not None]


def _one(lab: Lab, seed: int, method: str, recipe: Recipe, tell: Callable[[str], None]) -> None:
    folder = Path(recipe.folder) / recipe.name
    refuse_over_budget(recipe, folder if (folder / "recipe.yaml").is_file() else None, tell=tell)
    improve(recipe)
    with Run.open(recipe) as run:
        write_outcome(_outcome_file(lab, seed, method), measure(run, seed, method), recipe)
        if lab.keep == "best":
            _drop_policies(run)


def _outcome_file(lab: Lab, seed: int, method: str) -> Path:
    return lab.place / f"seed-{seed}" / f"{method}.json"


def _drop_policies(run: Run) -> None:
    """Remove a finished run's trained policies; ``best/`` stays."""
    for iteration in run.iterations():
        shutil.rmtree(run.iteration_folder(iteration) / "policy", ignore_errors=True)
