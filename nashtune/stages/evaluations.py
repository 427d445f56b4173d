"""The recipe's suites in the loop: after each iteration's validation, or at the end."""

from __future__ import annotations

from collections.abc import Iterator

from nashtune.evaluated import Scores
from nashtune.recipe import SuiteSection
from nashtune.records import IterationSummary
from nashtune.run import Run
from nashtune.stages.evaluation import evaluate
from nashtune.stages.export import export
from nashtune.stages.subject import of_run


def evaluate_iteration(run: Run, iteration: int) -> list[Scores]:
    """The figures of an iteration by the suites that look at each; where the best is chosen by one, export it anew."""
    sections = [section for section in run.recipe.evaluate if section.when == "each"]
    found = [_once(run, section, iteration) for section in sections]
    if run.recipe.evaluation(run.recipe.validate_.select) is not None:
        export(run)
    return found


def evaluate_end(run: Run, exported: IterationSummary | None) -> list[Scores]:
    """The initial and the exported policy, by all suites."""
    ends = [0] if exported is None else sorted({0, exported.iteration})
    return [_once(run, section, iteration) for section in run.recipe.evaluate for iteration in ends]


def _once(run: Run, section: SuiteSection, iteration: int) -> Scores:
    return evaluate(of_run(run, iteration), section)


def pending_evaluations(run: Run) -> Iterator[tuple[SuiteSection, int]]:
    """What is to be evaluated yet, as far as the run knows now."""
    for section in run.recipe.evaluate:
        for t in (0, *run.iterations()) if section.when == "each" else (0,):
            if not (run.folder / "evaluations" / section.called / f"iteration-{t}" / "scores.json").exists():
                yield section, t
