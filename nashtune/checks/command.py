"""The command `nashtune judge-check`: parse, call, print. Heavy imports stay inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from nashtune.checks.ask import Check
    from nashtune.judging.pairwise_set import Reading
    from nashtune.recipe import HealthSection

NAMES = "separated by commas"


def judge_check(
    data: Annotated[
        str,
        typer.Argument(metavar="RUN|DATA", help="A run folder; or a file, folder or hub name of labelled comparisons."),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to replace in --oracle or --recipe.")
    ] = None,
    oracle: Annotated[
        Path | None, typer.Option(help="DATA: a file that holds a recipe's oracle section alone.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="DATA: a recipe, whose oracle, policy and budget are used.")
    ] = None,
    verdicts: Annotated[
        list[str] | None,
        typer.Option(help="DATA: column of stored verdicts, as COLUMN or COLUMN,COLUMN_ASKED_SWAPPED; repeatable."),
    ] = None,
    verdicts_file: Annotated[str | None, typer.Option(help="DATA: a file of its own that holds the verdicts.")] = None,
    key: Annotated[str, typer.Option(help=f"Columns, {NAMES}, that join --verdicts-file to DATA.")] = "",
    judges: Annotated[str, typer.Option(help=f"Columns, {NAMES}, of --verdicts-file that name the judge.")] = "",
    annotators: Annotated[str, typer.Option(help=f"DATA: columns, {NAMES}, of people's verdicts.")] = "",
    label: Annotated[str | None, typer.Option(help="DATA: column that says which answer is better.")] = None,
    answers: Annotated[str, typer.Option(help="DATA: the two columns of the answers, by a comma.")] = "",
    prompt_column: Annotated[str | None, typer.Option(help="DATA: column of the prompts.")] = None,
    subset: Annotated[str | None, typer.Option(help="DATA: column of the subsets; `subset` if there is one.")] = None,
    code: Annotated[
        list[str] | None,
        typer.Option(
            help="DATA: what a label or verdict is written as: first=A, second=B, tie=C, none=garbage; repeatable."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="DATA: split of a hub or saved data set.")] = "train",
    limit: Annotated[int | None, typer.Option(min=1, help="DATA: only the first so many comparisons.")] = None,
    orders: Annotated[
        int | None, typer.Option(min=1, max=2, help="Orders a listwise judge is shown each comparison in; 2.")
    ] = None,
    budget_usd: Annotated[float | None, typer.Option(min=0, help="Most that asking may cost (dollars).")] = None,
    ledger: Annotated[Path | None, typer.Option(help="A ledger shared with runs or other checks.")] = None,
    seed: Annotated[int, typer.Option(help="Decides orders and bootstrap.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the check: judgments, ledger, check.json, check.md.")
    ] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(min=0, max=1, help="Exit code 1 where a judge's accuracy is surely below it.")
    ] = None,
    iteration: Annotated[int | None, typer.Option(help="RUN: one iteration; all of them if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 1 where there is an alarm.")] = False,
) -> None:
    """Whether a judge can be trusted. RUN: its judgments looked at (place, length, ties, cycles, drift). DATA: any oracle, and
    stored verdicts, against labels: accuracy, agreement, consistency, biases, calibration, cost."""
    nobody = not (oracle or recipe or verdicts or annotators)
    # A name without anybody to measure, and no file: a run's, perhaps mistyped, which no hub should be asked for.
    if (Path(data) / "recipe.yaml").is_file() or (nobody and not Path(data).is_file()):
        given = (
            oracle,
            recipe,
            verdicts,
            verdicts_file,
            key,
            judges,
            annotators,
            label,
            answers,
            prompt_column,
            subset,
        )
        _refuse(
            data, any((*given, overrides, code, limit, orders, budget_usd, ledger, out, min_accuracy)), "a run folder"
        )
        _run_health(Path(data), iteration, as_json, strict)
        return
    _refuse(data, iteration is not None, "a data set")
    from nashtune.checks.result import check_pairs
    from nashtune.checks.tables import markdown, print_check
    from nashtune.store.files import write_atomic, write_json

    reading = _reading(
        answers,
        annotators,
        label,
        prompt_column,
        subset,
        code or [],
        split,
        limit,
        verdicts or [],
        verdicts_file,
        key,
        judges,
    )
    check, health = _check(oracle, recipe, overrides or [], out, seed, orders, budget_usd, ledger)
    found = check_pairs(data, reading, check, health, seed)
    if folder := out or (Path(found.folder) if found.folder else None):
        write_json(folder / "check.json", found.to_dict())
        write_atomic(folder / "check.md", markdown(found))
    if as_json:
        print(json.dumps(found.to_dict(), allow_nan=False))
    else:
        print_check(found)
        print(f"kept in {folder}" if folder else "nothing kept (--out FOLDER keeps it)")
    low = [j.name for j in found.judges if min_accuracy is not None and j.accuracy and j.accuracy.high < min_accuracy]
    if low:
        typer.secho(f"nashtune: accuracy surely below {min_accuracy:g}: {', '.join(low)}", fg="red", err=True)
    if low or (strict and found.alarms):
        raise typer.Exit(1)


def _refuse(data: str, given: bool, kind: str) -> None:
    from nashtune.errors import OracleError

    if given:
        raise OracleError(
            f"{data} is {kind}, for which an option or setting that was given is not read; accepted for a run folder: "
            "--iteration, --json, --strict; for a data set: all but --iteration"
        )


def _run_health(folder: Path, iteration: int | None, as_json: bool, strict: bool) -> None:
    from dataclasses import asdict

    from nashtune.run import Run
    from nashtune.show import print_health
    from nashtune.stages.health import run_health

    found = run_health(Run.read(folder), iteration)
    if as_json:
        print(json.dumps([asdict(stage) for stage in found], allow_nan=False))
    elif found:
        print_health(found)
    else:
        print("no judgments yet")
    if strict and any(stage.health.alarms for stage in found):
        raise typer.Exit(1)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _reading(
    answers: str,
    annotators: str,
    label: str | None,
    prompt: str | None,
    subset: str | None,
    code: list[str],
    split: str,
    limit: int | None,
    verdicts: list[str],
    file: str | None,
    key: str,
    judges: str,
) -> Reading:
    from nashtune.errors import PromptError
    from nashtune.judging.pairwise_set import Reading, Stored, VerdictFile
    from nashtune.judging.preference_rows import Columns, with_codes

    pair = _names(answers)
    if len(pair) not in (0, 2):
        raise PromptError(f"--answers {answers!r}; accepted: two columns, as --answers good,bad")
    if file is not None and not key:
        raise PromptError(f"--verdicts-file {file!r} without --key; accepted: the columns that join it to the data")
    if file is None and (key or judges):
        raise PromptError("--key and --judges are read with --verdicts-file only; remove them")
    columns = Columns(prompt, (pair[0], pair[1]) if pair else None, label, _names(annotators), with_codes(code))
    stored = tuple(Stored.parse(text) for text in verdicts)
    return Reading(
        columns,
        subset,
        split,
        limit,
        stored,
        VerdictFile(file, _names(key), _names(judges)) if file is not None else None,
    )


def _check(
    oracle: Path | None,
    recipe: Path | None,
    overrides: list[str],
    out: Path | None,
    seed: int,
    orders: int | None,
    budget_usd: float | None,
    ledger: Path | None,
) -> tuple[Check | None, HealthSection | None]:
    """Whom to ask, None for nobody; a recipe gives the budget and the ledger that no option gives."""
    from nashtune.errors import OracleError

    if oracle is not None and recipe is not None:
        raise OracleError(f"--oracle {oracle} and --recipe {recipe}; accepted: one of them")
    if oracle is None and recipe is None:
        if overrides or orders or budget_usd is not None or ledger:
            raise OracleError(
                "settings of an oracle, but no oracle; accepted: --oracle FILE or --recipe FILE beside them"
            )
        return None, None
    from nashtune.checks.ask import Check
    from nashtune.recipe import load_oracle, load_recipe
    from nashtune.run import recipe_file

    if oracle is not None:
        return Check(load_oracle(oracle, overrides), out, seed, orders, budget_usd, ledger), None
    assert recipe is not None
    settings = load_recipe(recipe_file(recipe), overrides)
    cap = settings.budget.usd if budget_usd is None else budget_usd
    shared = ledger or (Path(settings.ledger) if settings.ledger else None)
    return Check(settings.oracle, out, seed, orders, cap, shared, settings.policy), settings.health
