"""The command line: parse, call, print. Heavy imports stay inside commands, so that --help and status start at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nashtune.checks.command import judge_check
from nashtune.commands import evaluation, launching
from nashtune.commands.plan import plan
from nashtune.commands.told import told

if TYPE_CHECKING:
    from nashtune.lab.outcomes import Outcome
    from nashtune.lab.table import MethodRow

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=__doc__ and ("Improve a chat model by preference feedback: Direct Nash Optimization (arXiv 2404.03715)."),
)

evaluation.add_to(app)
launching.add_to(app)

RunFolder = Annotated[Path, typer.Argument(help="A run folder, as runs/quickstart.")]


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe file, or a run folder to go on with.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to replace, as train.batch_size=32.")
    ] = None,
) -> None:
    """Run a recipe, or go on with it where it stopped."""
    with told():
        from nashtune.recipe import load_recipe
        from nashtune.run import recipe_file

        settings = load_recipe(recipe_file(recipe), overrides or [])
        folder = recipe if (recipe / "recipe.yaml").is_file() else None
        from nashtune.loop import improve
        from nashtune.show import print_summary

        best = improve(settings, folder, on_iteration=lambda r, s: print_summary(r, s), tell=print)
        from nashtune.evaluated import all_scores
        from nashtune.report.assemble import write_report
        from nashtune.run import Run
        from nashtune.show import print_table
        from nashtune.show_evaluations import print_run_evaluations
        from nashtune.summaries import AVERAGE

        done = Run.read(folder or Path(settings.folder) / settings.name)
        print_table(done)
        print_run_evaluations(all_scores(done.folder), done.passed_over())
        print(f"report  {write_report(done)}")
        if best is not None:
            name = "the average of all iterations" if best.iteration == AVERAGE else f"iteration {best.iteration}"
            print(f"{settings.average:<7} {name}: {done.folder / 'best'}")


app.command("plan")(told()(plan))


@app.command()
def lab(
    file: Annotated[Path, typer.Argument(help="A lab file, as recipes/lab-claims.yaml.")],
    look: Annotated[bool, typer.Option("--look", help="Run nothing; show what is finished.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object at the end.")] = False,
) -> None:
    """Compare methods: each from one initial policy, on the same prompts, sharing samples and judgments where they coincide."""
    with told():
        from nashtune.lab.page import write_lab
        from nashtune.lab.settings import load_lab
        from nashtune.lab.show import lab_json, print_lab
        from nashtune.lab.table import make_table
        from nashtune.lab.work import outcomes, run_lab

        settings, recipes = load_lab(file)

        def keep(found: list[Outcome]) -> list[MethodRow]:
            rows = make_table(found, settings.methods, settings.baseline, settings.confidence)
            write_lab(settings, rows, len(recipes))
            return rows

        found = outcomes(settings, recipes) if look else run_lab(settings, recipes, tell=_tell, on_run=keep)
        rows = keep(found)
        if as_json:
            print(json.dumps(lab_json(settings, rows, len(recipes)), allow_nan=False))
        else:
            print_lab(settings, rows, len(recipes))
            print(f"page    {settings.place / 'lab.html'}\ntables  {settings.place / 'lab.md'}")


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="Where to write the recipe.")] = Path("recipe.yaml"),
    model: Annotated[str, typer.Option(help="Hub name, folder or .gguf file of the policy.")] = "Qwen/Qwen3-0.6B",
    prompts: Annotated[str, typer.Option(help="File, folder or Hugging Face data set.")] = "prompts.jsonl",
    judge: Annotated[str, typer.Option(help="Model name of the judge; with --judge-url its server.")] = "gpt-4o",
    judge_url: Annotated[
        str, typer.Option(help="OpenAI-compatible address of the judge.")
    ] = "https://api.openai.com/v1",
    force: Annotated[bool, typer.Option(help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented recipe for your own model, prompts and judge."""
    with told():
        from nashtune.starter import write_starter

        write_starter(file, model=model, prompts=prompts, judge=judge, judge_url=judge_url, force=force)
        print(f"wrote {file}\nnext: edit it, then  nashtune run {file}")


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="One method in full.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, or a list of them.")] = False,
) -> None:
    """The methods a recipe may name, what each needs and where it comes from; for one, its preset and its objective."""
    with told():
        from nashtune.catalog import method_facts, print_method, print_methods
        from nashtune.recipe import METHODS

        if as_json:
            print(json.dumps(method_facts(name) if name else [method_facts(each) for each in METHODS], allow_nan=False))
        elif name:
            print_method(method_facts(name))
        else:
            print_methods()


@app.command()
def objectives(
    name: Annotated[str | None, typer.Argument(help="One objective in full.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, or a list of them.")] = False,
) -> None:
    """The objectives a recipe may name: formula, source, settings, references."""
    with told():
        from nashtune.catalog import objective_facts, print_objective, print_objectives
        from nashtune.objectives import OBJECTIVES

        if as_json:
            found = objective_facts(name) if name else [objective_facts(each) for each in OBJECTIVES]
            print(json.dumps(found, allow_nan=False))
        elif name:
            print_objective(objective_facts(name))
        else:
            print_objectives()


@app.command()
def contamination(
    prompts: Annotated[str, typer.Argument(help="A source of prompts, as a recipe names it.")],
    against: Annotated[list[str], typer.Option(help="A source of an evaluation's prompts; repeatable.")],
    words: Annotated[int, typer.Option(min=3, help="Length of a run of words that counts.")] = 10,
    prompt_column: Annotated[
        str | None, typer.Option(help="Column of the prompts, where it has no usual name.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Which prompts share a run of words with evaluations' prompts (prompts.contamination leaves them out of training)."""
    with told():
        from nashtune.contamination import check
        from nashtune.recipe import ContaminationSection, PromptsSection

        source = PromptsSection(source=prompts, prompt_column=prompt_column)
        found = check(source, ContaminationSection(against=tuple(against), words=words))
        if as_json:
            print(json.dumps(found.facts(), ensure_ascii=False))
            return
        print(f"{found.contaminated} of {found.prompts} prompts share {words} words in a row with an evaluation")
        print("\n".join(f"  {count:>6}  {name}" for name, count in found.by_set.items()))
        print("\n".join(f"{one.where}: {one.text!r} shares {one.overlap.words!r}" for one in found.first))


@app.command()
def engines(as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False) -> None:
    """The engines that can sample, and what each needs."""
    with told():
        from nashtune import catalog

        if as_json:
            print(json.dumps(catalog.ENGINES))
        else:
            catalog.print_engines()


@app.command()
def status(
    folder: RunFolder,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """What a run has done so far, and what comes next."""
    with told():
        from nashtune.run import Run
        from nashtune.show import print_status, status_json

        found = Run.read(folder)
        if as_json:
            print(json.dumps(status_json(found), allow_nan=False))
        else:
            print_status(found)


@app.command()
def report(folder: RunFolder) -> None:
    """Write the HTML report of a run, finished or not."""
    with told():
        from nashtune.report.assemble import write_report
        from nashtune.run import Run

        print(write_report(Run.read(folder)))


@app.command()
def chat(
    folder: RunFolder,
    iteration: Annotated[int | None, typer.Option(help="Policy to talk to; the best one if not given.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    temperature: Annotated[float, typer.Option(help="0 answers the same every time.")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer (tokens).")] = 512,
) -> None:
    """Talk to a policy of a run. An empty line or Ctrl-D ends it."""
    with told():
        from nashtune.chat import talk
        from nashtune.run import Run

        talk(Run.read(folder), iteration, system, temperature, max_new_tokens, sys.stdin)


@app.command()
def rollback(folder: RunFolder, iteration: Annotated[int, typer.Argument(help="The last iteration to keep.")]) -> None:
    """Go back to the state after an iteration; what came later is moved aside, not deleted."""
    with told():
        from nashtune.run import Run
        from nashtune.store.files import exclusive

        found = Run.read(folder)
        with exclusive(folder / "lock"):
            moved = found.rollback(iteration)
        print("\n".join(f"moved {place}" for place in moved) or "nothing came later")


@app.command()
def fork(
    folder: RunFolder,
    target: Annotated[Path, typer.Argument(help="Folder of the new run.")],
    iteration: Annotated[int, typer.Option(help="The last iteration to take over.")] = 0,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
) -> None:
    """Start a second run from an iteration of this one, with other settings; samples and judgments kept cost nothing."""
    with told():
        from nashtune.run import Run

        Run.read(folder).fork(target, iteration, tuple(overrides or ())).close()
        print(f"forked after iteration {iteration}; next:  nashtune run {target}")


@app.command("fit-judge")
def fit_judge(
    out: Annotated[Path, typer.Argument(help="Folder to write the preference model to.")],
    sources: Annotated[
        list[str], typer.Option("--from", help="A run folder, or a .jsonl, .parquet or .csv file; may be repeated.")
    ],
    backbone: Annotated[
        str | None, typer.Option(help="Causal model that reads the answers; the first run's policy if not given.")
    ] = None,
    head: Annotated[str, typer.Option(help="general (can express cycles), bradley-terry, or auto.")] = "auto",
    seed: Annotated[int, typer.Option(help="Decides the held-out prompts.")] = 0,
    min_accuracy: Annotated[
        float, typer.Option(min=0, max=1, help="Exit with an error where the held-out accuracy's lower bound is below.")
    ] = 0.6,
) -> None:
    """Fit a preference model to judgments already paid for, or to a preference data set; for oracle preference_model."""
    with told():
        from nashtune.judging.fit import fit_judge as fit
        from nashtune.judging.preference_model import check_gate
        from nashtune.show import print_judge

        print_judge(fit(out, sources, backbone, head, seed))
        print(f"wrote {out}")
        check_gate(out, min_accuracy)


@app.command()
def games(
    matrix: Annotated[
        Path | None, typer.Option(help='JSON file: rows of P(i beats j), or {"prompts": [{"weight", "matrix"}]}.')
    ] = None,
    game: Annotated[
        str | None,
        typer.Option(help="Built-in game: rps, cyclic, random-intransitive, condorcet, ties; cyclic-7 has 7 actions."),
    ] = None,
    prompts: Annotated[int | None, typer.Option(min=1, help="Several built-in matrices at once.")] = None,
    algorithm: Annotated[str, typer.Option(help="An objective's name, or population (eq. 9 itself).")] = "dno",
    eta: Annotated[
        float | None, typer.Option(help="The objective's eta (dno: its beta, which is eq. 8's eta).")
    ] = None,
    tau: Annotated[float | None, typer.Option(help="Strength of the regularisation, for objectives with one.")] = None,
    option: Annotated[str | None, typer.Option(help="I or II, of dno-regularized.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another setting of the objective; repeatable."),
    ] = None,
    iterations: Annotated[int, typer.Option(help="Updates of the policy.")] = 200,
    samples: Annotated[
        int | None, typer.Option(help="Train on that many sampled actions per iteration, not on all pairs exactly.")
    ] = None,
    noise: Annotated[float | None, typer.Option(help="Share of verdicts turned, with --samples.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps per iteration, with --samples; 50.")] = None,
    seed: Annotated[int, typer.Option(help="Decides built-in matrices and samples.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Draw the play into a .svg or .html file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Play a preference matrix: an algorithm's iterates against the exact equilibrium."""
    with told():
        from nashtune.games import command
        from nashtune.games.plot import check_plot, write_plot
        from nashtune.games.show import print_play, to_dict

        if plot is not None:
            check_plot(plot)
        how = command.algorithm(algorithm, eta, tau, option, command.settings(changes or []))
        sampling = command.sampling(samples, noise, steps)
        found = command.play(command.game(matrix, game, prompts, seed), how, iterations, sampling, seed)
        if plot is not None:
            write_plot(found, plot)
        if as_json:
            print(json.dumps(to_dict(found), allow_nan=False))
        else:
            print_play(found)


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False) -> None:
    """What this machine offers: devices, memory, engines, caches."""
    with told():
        from nashtune.doctor import examine
        from nashtune.show import print_facts

        facts = examine()
        if as_json:
            print(json.dumps(facts))
        else:
            print_facts(facts)


app.command("judge-check")(told()(judge_check))


if __name__ == "__main__":
    app()
