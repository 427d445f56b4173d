"""Evaluations by suites as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nashtune.evaluated import Scores
from nashtune.report.tables import p_value
from nashtune.summaries import column_name


def metric_text(metric: Mapping[str, Any]) -> str:
    """ "24.3 % [21.5-27.2]"; ratings with two decimals."""
    digits = 1 if metric["unit"] == "%" else 2
    text = f"{metric['value']:.{digits}f}" + (" %" if metric["unit"] == "%" else "")
    low, high = metric["low"], metric["high"]
    return text if low is None or high is None else f"{text} [{low:.{digits}f}-{high:.{digits}f}]"


def print_scores(found: Sequence[Scores]) -> None:
    """A table for each evaluation, a row for each policy; then categories, counts and warnings."""
    for name in dict.fromkeys(scores["name"] for scores in found):
        of_one = [scores for scores in found if scores["name"] == name]
        _print_metrics(name, of_one)
        for scores in of_one:
            _print_details(scores)


def _print_metrics(name: str, found: Sequence[Scores]) -> None:
    metrics = list(dict.fromkeys(metric for scores in found for metric in scores["metrics"]))
    table = Table(title=f"{name} (intervals by prompt)")
    for column in ("policy", *metrics, "verdicts", "cost"):
        table.add_column(column, justify="right" if column != "policy" else "left", no_wrap=True)
    for scores in found:
        cells = [metric_text(scores["metrics"][m]) if m in scores["metrics"] else "-" for m in metrics]
        cost = scores["cost_usd"]
        shown = [*cells, str(scores["counts"].get("verdicts", "-")), "-" if cost is None else f"${cost:.2f}"]
        table.add_row(Text(whose(scores)), *(Text(cell) for cell in shown))
    _wide().print(table)


def whose(scores: Scores) -> str:
    """The policy that figures are of, in a few words."""
    return scores["generator"] if scores["iteration"] is None else column_name(scores["iteration"])


def _print_details(scores: Scores) -> None:
    console = _wide()
    for one in scores["tables"]:
        table = Table(title=f"{whose(scores)}: {one['title']}")
        for column in ("", *one["columns"]):
            table.add_column(column, justify="right" if column else "left")
        for label, figures in one["rows"]:
            table.add_row(Text(label), *("-" if figure is None else f"{figure:.2f}" for figure in figures))
        console.print(table)
    facts = {**scores["counts"], **{k: v for k, v in scores["facts"].items() if not isinstance(v, Mapping)}}
    shown = (
        f"{name.replace('_', ' ')} {value:.2f}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"
        for name, value in facts.items()
        if value is not None
    )
    console.print(Text(f"{whose(scores)}: {', '.join(shown)}"), soft_wrap=True)
    for warning in scores["warnings"]:
        console.print(Text(f"warning: {whose(scores)}: {warning}", style="yellow"), soft_wrap=True)


def print_run_evaluations(evaluations: Mapping[str, Mapping[int, Scores]], passed_over: Mapping[int, str]) -> None:
    """For `nashtune status`: each evaluation's metrics by iteration, and their warnings."""
    for name, by_iteration in evaluations.items():
        _print_metrics(name, list(by_iteration.values()))
        for scores in by_iteration.values():
            for warning in scores["warnings"]:
                _wide().print(Text(f"warning: {name}, {whose(scores)}: {warning}", style="yellow"), soft_wrap=True)
    for iteration, reason in passed_over.items():
        text = f"{column_name(iteration)} cannot be the best: {reason}"
        _wide().print(Text(text, style="yellow"), soft_wrap=True)


def print_suites(facts: Iterable[Mapping[str, Any]]) -> None:
    """All suites, one a row."""
    table = Table(caption="recipe.yaml:  evaluate: [{suite: NAME, ...}]    or:  nashtune eval MODEL --suite NAME")
    for column in ("suite", "what it is", "needs", "metrics", "source"):
        table.add_column(column, no_wrap=column == "suite")
    for one in facts:
        table.add_row(one["name"], one["summary"], Text(one["needs"]), ", ".join(one["metrics"]), one["source"])
    _wide().print(table)


def print_comparison(found: Mapping[str, Any]) -> None:
    """Two runs: settings that differ, figures side by side, paired differences."""
    a, b = (f"{found[key]['name']} ({key})" for key in ("a", "b"))
    _print_rows(
        "settings that differ",
        ("setting", a, b),
        [(row["setting"], str(row["a"]), str(row["b"])) for row in found["recipe"]],
    )
    _print_rows("held-out prompts", ("iteration", "figure", a, b), list(_figures(found["iterations"])))
    paired = [_paired(row) for row in (*found["suites"], *found["held_out"])]
    _print_rows(
        "a less b, on the same prompts", ("metric", "a's", "b's", "difference", "p (two-sided)", "prompts"), paired
    )
    for remark in found["remarks"]:
        _wide().print(Text(remark), soft_wrap=True)


def _figures(iterations: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for row in iterations:
        ours, theirs = row["a"] or {}, row["b"] or {}
        for name in dict.fromkeys([*map(str, ours), *map(str, theirs)]):
            yield column_name(row["iteration"]), name, _figure(ours, name), _figure(theirs, name)


def _paired(row: Mapping[str, Any]) -> tuple[str, ...]:
    policies = column_name(row["iteration_a"]), column_name(row["iteration_b"])
    found = row["difference"]
    return row["metric"], *policies, _difference(found, row["unit"]), p_value(row["p"]), str(found["n"])


def _print_rows(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not rows:
        _wide().print(f"{title}: none", highlight=False)
        return
    table = Table(title=title)
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    _wide().print(table)


def _figure(figures: Mapping[str, Any], name: str) -> str:
    value = figures.get(name)
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return f"{100 * value['value']:.1f} % [{100 * value['low']:.1f}-{100 * value['high']:.1f}]"
    return p_value(value) if name.startswith("p_") else f"{value:.3g}"


def _difference(difference: Mapping[str, Any], unit: str) -> str:
    digits = 1 if unit == "%" else 2
    value, low, high = (f"{difference[name]:+.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} [{low} to {high}]"


def _wide() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, 150))
