"""What would stop a run later, said before it begins: a missing key, an unknown price, a judge below its gate, a budget."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nashtune.planning.plan import refuse_over_budget, run_folder
from nashtune.planning.probe import paid_engines
from nashtune.recipe import Recipe
from nashtune.run import Run


def refuse_unready(recipe: Recipe, folder: Path | None = None, tell: Callable[[str], None] | None = None) -> None:
    """Before a run makes its folder or anything is sampled. Nothing is looked at where the run is finished: looking at it
    again needs neither key nor money.

    Raises OracleError where a served model's key or price is not known or a fitted judge is below its gate, EvaluationError
    where a suite's data are not there, and
    BudgetError where the expected cost, with what is spent, goes over a cap. ``tell`` hears the expected cost otherwise.
    """
    folder = folder or run_folder(recipe)
    if Run(folder, recipe).finished(recipe.iterations):
        return
    if engines := paid_engines(recipe):
        from nashtune.judging.endpoint import Endpoint
        from nashtune.judging.prices import find_price

        for engine in engines:
            Endpoint(engine)
            find_price(engine)
    from nashtune.judging.registry import check_gates

    for oracle in recipe.oracles:
        check_gates(oracle)
    if recipe.evaluate:
        from nashtune.stages.evaluation import check_engine
        from nashtune.suites.registry import open_suite

        for section in recipe.evaluate:
            open_suite(section).check()
            for engine in section.judges:
                check_engine(engine)
    refuse_over_budget(recipe, folder, tell)
