"""``nashtune eval``, ``nashtune suites`` and ``nashtune compare``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from nashtune.commands.told import told

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object.")]


def add_to(app: typer.Typer) -> None:
    """Put the commands on the command line."""
    app.command("eval")(evaluate)
    app.command()(suites)
    app.command()(compare)


def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN|MODEL]", help="A run folder; or a model: folder, hub name, .gguf or answers file."
        ),
    ] = None,
    suite: Annotated[str | None, typer.Option(help="Suites by name, with commas; else those of the recipe.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("-o", metavar="KEY=VALUE", help="A setting, as judge.model=gpt-4o or mt_bench.data=FOLDER."),
    ] = None,
    iteration: Annotated[str, typer.Option(help="Of a run: a number, best, or all.")] = "best",
    recipe: Annotated[Path | None, typer.Option(help="A file with an `evaluate` section.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of a model's evaluations; evaluations/MODEL.")] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Verdicts of others: compute their figures, ask nobody.")
    ] = None,
    model_outputs: Annotated[Path | None, typer.Option(help="Answers of any model: judge them.")] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a run's policies or any model by published suites; goes on where it stopped."""
    with told():
        from nashtune.errors import EvaluationError

        given = {"RUN or MODEL": model, "--annotations": annotations, "--model-outputs": model_outputs}
        if len(named := [name for name, value in given.items() if value is not None]) != 1:
            raise EvaluationError(
                f"got {' and '.join(named) or 'nothing to evaluate'}; accepted: one of {', '.join(given)}"
            )
        from nashtune import evaluating
        from nashtune.run import Run
        from nashtune.show_evaluations import print_scores

        wanted = [name for name in (suite or "").split(",") if name]
        run = Path(model) if model is not None and (Path(model) / "recipe.yaml").is_file() else None
        base = None if run is None else Run.read(run).recipe
        settings = evaluating.settings_for(recipe, base, wanted, changes or [])
        if annotations is not None:
            found = [evaluating.evaluate_verdicts(annotations, out, settings)]
        elif run is not None:
            if out is not None:
                raise EvaluationError(f"--out {out}: a run's evaluations lie in {run / 'evaluations'}; accepted: none")
            found = list(evaluating.evaluate_run(run, iteration, settings))
        else:
            found = list(evaluating.evaluate_model(model or str(model_outputs), out, settings))
        if as_json:
            print(json.dumps({"evaluations": found}, allow_nan=False))
        else:
            print_scores(found)


def suites(as_json: Annotated[bool, typer.Option("--json", help="One JSON list.")] = False) -> None:
    """The suites that `evaluate` and `nashtune eval` may name: what they need, and their metrics."""
    with told():
        from nashtune.evaluating import suites_facts
        from nashtune.show_evaluations import print_suites

        facts = suites_facts()
        if as_json:
            print(json.dumps(facts))
        else:
            print_suites(facts)


def compare(
    a: Annotated[Path, typer.Argument(help="A run folder.")],
    b: Annotated[Path, typer.Argument(help="Another.")],
    as_json: AsJson = False,
) -> None:
    """Two runs: what differs in their recipes, and their figures on the same prompts."""
    with told():
        from nashtune.comparing import compare_runs
        from nashtune.run import Run
        from nashtune.show_evaluations import print_comparison

        found = compare_runs(Run.read(a), Run.read(b))
        if as_json:
            print(json.dumps(found, allow_nan=False))
        else:
            print_comparison(found)
