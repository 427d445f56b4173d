"""A run's state as text and as JSON."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nashtune.evaluated import all_scores
from nashtune.records import Interval, IterationSummary
from nashtune.report.health import JudgedStage, health_alarms, health_table
from nashtune.report.tables import p_value
from nashtune.report.theory import theory
from nashtune.run import Run
from nashtune.scale.claims import FOLDER as CLAIMS
from nashtune.scale.claims import AtWork, at_work
from nashtune.show_evaluations import print_run_evaluations
from nashtune.store.files import read_json
from nashtune.summaries import AVERAGE, column_name

if TYPE_CHECKING:
    from nashtune.judging.preference_model import Record
    from nashtune.stages.health import StageHealth

COLUMNS = (
    "iteration",
    "vs initial",
    "vs previous",
    "vs teacher",
    "p > teacher",
    "satisfied",
    "sat. & good",
    "score",
    "words",
)
MORE_COLUMNS = ("T>S", "S>T", "S>S", "tokens", "seconds")


def print_summary(run: Run, summary: IterationSummary) -> None:
    """One iteration's result, as soon as it is known."""
    won = f"wins {_rate(summary.win_rate_vs_initial)} against the initial policy"
    words = f"{summary.mean_words:.0f} words" if summary.mean_words is not None else ""
    Console().print(f"iteration {summary.iteration} of {run.recipe.iterations}: {won}, {words}", highlight=False)


def print_table(run: Run) -> None:
    """The table of iterations; the best is marked."""
    best = run.best()
    table = Table(title=f"{run.recipe.name}: win rates on held-out prompts [95 % interval]".replace("95", _level(run)))
    for name in (*COLUMNS, *MORE_COLUMNS):
        table.add_column(name, justify="right", no_wrap=True)
    for summary in run.summaries():
        marked = best is not None and summary.iteration == best.iteration
        table.add_row(*_row(summary, marked), style="bold" if marked else None)
    if average := run.averaged():
        table.add_row(*_row(average, False))
    console = Console()
    console = Console(width=max(console.width, 150)) if not console.is_terminal else console
    console.print(table)


def print_status(run: Run) -> None:
    """The table, and what comes next."""
    print(f"{run.folder}: {run.state()}")
    print_work(run)
    if run.summaries():
        print_table(run)
        print_theory(run)
    print_run_evaluations(all_scores(run.folder), run.passed_over())
    if found := run.exported():
        print(f"best/   {found}")


def print_work(run: Run) -> None:
    """Units of the stages under way, and who is at work on them."""
    for name, work in work_of(run).items():
        print(f"{name}: {work.done} of {work.units} units done, {work.running} running, {work.redone} redone")
        table = Table()
        for column in ("worker", "host", "done", "at work on", "for", "lost"):
            table.add_column(column, justify="right" if column in ("done", "for", "lost") else "left", no_wrap=True)
        for worker in work.workers:
            since = f"{max(0.0, time.time() - worker.started):.0f} s" if worker.unit else ""
            table.add_row(worker.name, worker.host, str(worker.done), worker.unit, since, str(worker.lost or ""))
        console = Console()
        (Console(width=max(console.width, 150)) if not console.is_terminal else console).print(table, highlight=False)


def work_of(run: Run) -> dict[str, AtWork]:
    """The stages under way whose workers say what they do, by folder in the run."""
    current = next((t for t in (*range(run.recipe.iterations + 1), AVERAGE) if not run.finished(t)), AVERAGE)
    found = {}
    for folder in sorted(run.iteration_folder(current).glob(f"*/{CLAIMS}")):
        if (work := at_work(folder.parent, run.stage(current, folder.parent.name).names())) is not None:
            found[f"{run.iteration_folder(current).name}/{folder.parent.name}"] = work
    return found


def print_theory(run: Run) -> None:
    """How far each iteration moved, the bound of eq. (9), and the payoff matrix."""
    found = theory(run.summaries(), run.averaged(), run.recipe.resolved())
    for title, head, rows in (("steps", found.columns, found.steps), ("policy beats", found.head, found.matrix)):
        if rows:
            table = Table(title=title)
            for name in ("", *head):
                table.add_column(name, justify="right")
            for row in rows:
                table.add_row(row.label, *(Text(f"{cell.text} {cell.detail}".rstrip()) for cell in row.cells))
            console = Console()
            (Console(width=max(console.width, 150)) if not console.is_terminal else console).print(table)


def print_health(stages: Sequence[StageHealth]) -> None:
    """The judge's health per judging stage, and its alarms."""
    found = [JudgedStage(s.iteration, s.stage, s.health.to_dict()) for s in stages]
    shown = health_table(found)
    table = Table(title="the judge", caption=f"not known: {', '.join(shown.unmeasured)}" if shown.unmeasured else None)
    for name in ("iteration", *shown.columns):
        table.add_column(name, justify="right")
    for row in shown.rows:
        table.add_row(row.label, *(Text(f"{cell.text}\n{cell.detail}".rstrip()) for cell in row.cells))
    console = Console()
    console = Console(width=max(console.width, 150)) if not console.is_terminal else console
    console.print(table)
    for alarm in health_alarms(found):
        console.print(Text(f"alarm: {alarm}", style="yellow"), soft_wrap=True)


def print_facts(facts: Mapping[str, Any]) -> None:
    """Names and values, one a line; nested ones indented."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            print(f"{name}")
            for inner, detail in value.items():
                print(f"  {inner:<22} {detail}")
        else:
            print(f"{name:<24} {value}")


def print_judge(record: Record) -> None:
    """What is known of a fitted preference model, by its held-out comparisons."""
    found = record.held_out
    decided = f"{found.comparisons - found.ties} of {found.comparisons} comparisons, {found.prompts} prompts"
    table = Table(title=f"{record.kind} on {record.backbone.model}: held out, {decided}")
    table.add_column("figure")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_row("balanced accuracy \\[95 % interval]", _rate(found.balanced_accuracy))
    table.add_row("of preferring the longer", _rate(found.length_baseline))
    table.add_row("log loss (nats)", _number(found.log_loss, 3))
    table.add_row("Brier score", _number(found.brier, 3))
    table.add_row("expected calibration error", _number(found.calibration_error, 3))
    table.add_row(f"cyclic triples, of {found.triples}", _share(found.cyclic_triples))
    table.add_row("temperature", _number(record.calibration["temperature"], 2))
    Console().print(table)
    for reason, count in record.data["left_out"].items():
        if count:
            print(f"left out, {reason}: {count}")


def status_json(run: Run) -> dict[str, Any]:
    """A run for scripts: per iteration every figure of its row."""
    best = run.best()
    return {
        "name": run.recipe.name,
        "folder": str(run.folder),
        "state": run.state(),
        "finished": run.state() == "finished",
        "best": best.iteration if best else None,
        "iterations": [asdict(summary) for summary in run.summaries()],
        "average": _average_json(run),
        "evaluations": {
            name: {column_name(t): scores for t, scores in by_iteration.items()}
            for name, by_iteration in all_scores(run.folder).items()
        },
        "passed_over": {str(t): reason for t, reason in run.passed_over().items()},
        "exported": read_json(file) if (file := run.folder / "export.json").exists() else None,
        "pending": pending_units(run),
        "work": {name: asdict(work) for name, work in work_of(run).items()},
    }


def _average_json(run: Run) -> dict[str, Any] | None:
    """The averaged policy's row; which iterations it is of, instead of a number of its own."""
    if (summary := run.averaged()) is None:
        return None
    row = asdict(summary)
    del row["iteration"]
    return {"iterations": list(run.iterations()), **row}


def pending_units(run: Run) -> dict[str, dict[str, int]]:
    """Units committed so far by the stages of the iteration in progress."""
    current = next((t for t in range(run.recipe.iterations + 1) if not run.finished(t)), None)
    if current is None:
        return {}
    return {f"iteration-{current}": {name: run.stage(current, name).count() for name in run.begun_stages(current)}}


def _row(summary: IterationSummary, best: bool) -> list[str]:
    number = ("average" if summary.iteration == AVERAGE else str(summary.iteration)) + (" best" if best else "")
    contests = (summary.win_rate_vs_initial, summary.win_rate_vs_previous, summary.win_rate_vs_teacher)
    shares = [_share(summary.satisfied), _share(summary.satisfied_and_good)]
    plain = [_number(summary.mean_score, 2), _number(summary.mean_words, 0)]
    kinds = [str(summary.pairs.get(kind, 0)) if summary.iteration > 0 else "-" for kind in ("T>S", "S>T", "S>S")]
    totals = [f"{sum(summary.tokens.values()):,}", f"{sum(summary.seconds.values()):.0f}"]
    p = "-" if summary.p_beats_teacher is None else p_value(summary.p_beats_teacher)
    return [number, *map(_rate, contests), p, *shares, *plain, *kinds, *totals]


def _rate(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    return f"{100 * interval.value:.0f} % [{100 * interval.low:.0f}-{100 * interval.high:.0f}]".replace("[", "\\[")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _level(run: Run) -> str:
    return f"{100 * run.recipe.validate_.confidence:g}"
