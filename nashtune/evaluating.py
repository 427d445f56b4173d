"""``nashtune eval``: from a command's words to evaluations of a run's policies, a model, or files of others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nashtune.errors import EvaluationError, RecipeError
from nashtune.evaluated import Scores
from nashtune.recipe import EvaluationFile, Recipe, SuiteSection, load_recipe, parse_evaluation
from nashtune.recipe.loading import apply_override, read_yaml
from nashtune.run import Run
from nashtune.stages.evaluation import evaluate, scores_record
from nashtune.stages.subject import of_model, of_run, plain_name
from nashtune.store.files import write_json
from nashtune.suites.registry import SUITES, open_suite
from nashtune.suites.suite import ReadsVerdicts
from nashtune.summaries import AVERAGE

OWN = frozenset(EvaluationFile.model_fields) - {"evaluate"}
"""Settings of an evaluation file that are no suite's."""


def settings_for(
    file: Path | None, base: Recipe | None, suites: Sequence[str], overrides: Sequence[str]
) -> EvaluationFile:
    """The evaluations that a command asks for: those of an evaluation file, or of the run's recipe ``base``; ``suites``
    chooses among them, or names others; ``overrides`` (key=value, or NAME.key=value for one) replace settings.

    Raises RecipeError and EvaluationError naming what is wrong and what is accepted.
    """
    raw = _written(file) if file else {"evaluate": [_written_suite(suite) for suite in base.evaluate] if base else []}
    raw["evaluate"] = _chosen(raw.get("evaluate", []), suites)
    for text in overrides:
        _override(raw, text, in_run=base is not None)
    if base is not None and (taken := sorted(raw.keys() & OWN)):
        raise RecipeError(
            f"{file}: {', '.join(taken)}: a run's policies are sampled as its recipe says; accepted: evaluate"
        )
    return parse_evaluation(raw, str(file) if file else "evaluate")


def _written(file: Path) -> dict[str, Any]:
    """An evaluation file's settings, or what a recipe says of them."""
    raw = read_yaml(file, "evaluation")
    if not raw.keys() & {"policy", "oracle", "prompts"}:
        return raw
    recipe = load_recipe(file)
    return {"evaluate": [_written_suite(suite) for suite in recipe.evaluate]}


def _written_suite(suite: SuiteSection) -> dict[str, Any]:
    return suite.model_dump(mode="json", exclude_unset=True) | {"suite": suite.suite_name}


def _chosen(written: Any, suites: Sequence[str]) -> list[dict[str, Any]]:
    if not isinstance(written, list) or not all(isinstance(one, dict) for one in written):
        raise RecipeError(f"evaluate is {written!r:.100}; accepted: a list of suites with their settings")
    by_name = {str(one.get("name") or one.get("suite")): one for one in written}
    if not suites:
        if not written:
            raise EvaluationError(
                f"nothing to evaluate by: no --suite, and no `evaluate` section; accepted: {', '.join(SUITES)}"
            )
        return [dict(one) for one in written]
    found = []
    for name in suites:
        if name not in by_name and name not in SUITES:
            accepted = ", ".join(dict.fromkeys([*by_name, *SUITES]))
            raise EvaluationError(f"--suite {name!r}; accepted: {accepted} (`nashtune suites`)")
        found.append(dict(by_name.get(name, {"suite": name})))
    return found


def _override(raw: dict[str, Any], text: str, *, in_run: bool) -> None:
    """To one evaluation where the key begins with its name, to the file where it is the file's, else to all evaluations."""
    head, _, rest = text.partition("=")[0].partition(".")
    named = [one for one in raw["evaluate"] if rest and head in (one.get("name"), one["suite"])]
    if named:
        for one in named:
            apply_override(one, text[len(head) + 1 :])
    elif head in OWN:
        if in_run:
            raise RecipeError(
                f"-o {text}: a run's policies are sampled as its recipe says; accepted: a suite's settings"
            )
        apply_override(raw, text)
    else:
        for one in raw["evaluate"]:
            apply_override(one, text)


# ---- what is evaluated ---------------------------------------------------------------------------------------------------


def evaluate_run(folder: Path, iteration: str, settings: EvaluationFile) -> Iterator[Scores]:
    """A run's policies: ``iteration`` is a number, "best", "average" or "all". Raises EvaluationError where there is
    none such."""
    with Run.open(Run.read(folder).recipe, folder) as run:
        for t in _iterations(run, iteration):
            for section in settings.evaluate:
                yield evaluate(of_run(run, t), section)


def _iterations(run: Run, wanted: str) -> list[int]:
    finished = [summary.iteration for summary in run.summaries()]
    if wanted == "all":
        return finished
    if wanted == "average" and run.averaged() is not None:
        return [AVERAGE]
    if wanted == "best":
        best = run.held_in_best()
        if best is None and (row := run.best()) is not None:
            best = row.iteration
        if best is None:
            raise EvaluationError(
                f"{run.folder}: no iteration is the best yet; accepted: --iteration with one of {finished}"
            )
        return [best]
    if not wanted.isdigit() or int(wanted) not in finished:
        raise EvaluationError(
            f"--iteration {wanted}: {run.folder} has {finished}; accepted: one of them, best, all, or average where there is one"
        )
    return [int(wanted)]


def evaluate_model(model: str, out: Path | None, settings: EvaluationFile) -> Iterator[Scores]:
    """Any model, or a file of answers, in a folder of its own."""
    if model.endswith((".json", ".jsonl")) and not Path(model).expanduser().is_file():
        raise EvaluationError(f"{model}: no such file of answers")
    with ExitStack() as stack:
        subject = of_model(stack, out or Path("evaluations") / plain_name(model), model, settings)
        for section in settings.evaluate:
            yield evaluate(subject, section)


def evaluate_verdicts(file: Path, out: Path | None, settings: EvaluationFile) -> Scores:
    """Figures from verdicts that others have published; nobody is asked. Raises EvaluationError for a suite
    without such files."""
    if len(settings.evaluate) != 1:
        raise EvaluationError(f"--annotations with {len(settings.evaluate)} suites; accepted: one --suite")
    section = settings.evaluate[0]
    suite = open_suite(section)
    if not isinstance(suite, ReadsVerdicts):
        raise EvaluationError(
            f"--annotations: {section.suite_name} has no published format of verdicts; accepted: alpaca_eval, arena_hard"
        )
    generator, rows, answers = suite.read_verdicts(file)
    scores = suite.scores(rows, answers, settings.confidence)
    record = {**scores_record(section, scores), "iteration": None, "generator": generator, "cost_usd": None}
    if out is not None:
        write_json(out / section.called / plain_name(generator) / "scores.json", record)
    return record


def suites_facts() -> list[Mapping[str, Any]]:
    """The suites for `nashtune suites`."""
    from nashtune.recipe import SUITE_SECTIONS

    return [
        {
            "name": name,
            "summary": listed.summary,
            "needs": listed.needs,
            "source": listed.source,
            "metrics": {f"{name}_{end}" if end else name: unit for end, unit in SUITE_SECTIONS[name].metrics.items()},
        }
        for name, listed in SUITES.items()
    ]
