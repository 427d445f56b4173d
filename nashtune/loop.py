"""Direct Nash Optimization, Algorithm 2 of arXiv 2404.03715. This file is the project's table of contents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nashtune.planning.ready import refuse_unready
from nashtune.recipe import Recipe, load_recipe
from nashtune.records import IterationSummary
from nashtune.run import Run, recipe_file
from nashtune.stages.averaging import conclude
from nashtune.stages.evaluations import evaluate_end, evaluate_iteration
from nashtune.stages.judging import judge
from nashtune.stages.pairing import make_pairs
from nashtune.stages.teacher import sample
from nashtune.stages.training import train
from nashtune.stages.validation import validate
from nashtune.stages.work import warm_up

__all__ = ["improve", "judge", "make_pairs", "sample", "train", "validate"]


def improve(
    recipe: Recipe | str | Path,
    folder: str | Path | None = None,
    on_iteration: Callable[[Run, IterationSummary], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> IterationSummary | None:
    """Improve the recipe's policy; returns the row of the policy in ``best/``: the best iteration's, unless the recipe's
    ``average`` says otherwise. Resumes where an earlier call ended, however it did.

    Every stage finds for itself what is already done, so this reads as if nothing ever stopped. Raises BudgetError or
    OracleError before anything is made, where the run is expected to go over its budget or cannot reach its judge;
    ``tell`` hears what it is expected to cost, where it has a budget.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe_file(recipe))
    refuse_unready(recipe, Path(folder) if folder else None, tell)
    with Run.open(recipe, folder) as run:
        warm_up(run)
        if not run.finished(0):
            validate(run, 0)  # line 1: pi_0 as it is
        evaluate_iteration(run, 0)
        for t in run.iterations():  # line 2
            if not run.finished(t):
                candidates = sample(run, t)  # lines 3-4: K answers of pi_t-1 and the teacher's
                judgments = judge(run, candidates)  # line 5: P ranks them
                pairs = make_pairs(run, judgments)  # line 6: large-margin pairs
                train(run, t, pairs)  # line 7: pi_t, against pi_t-1 as reference
                summary = validate(run, t)
                if on_iteration:
                    on_iteration(run, summary)
            evaluate_iteration(run, t)  # by published suites, where the recipe names some
        best = conclude(run)  # line 9: the best of pi_0 ... pi_T (or the last, or their average)
        evaluate_end(run, best)
        return best
