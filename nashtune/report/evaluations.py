"""The report's sections of evaluations by suites, from what they recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nashtune.report.tables import Cell, Row
from nashtune.summaries import column_name

Scores = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Shown:
    """One evaluation: a table of metrics and counts by policy, tables of categories, and what to know before believing them."""

    name: str
    about: str
    head: tuple[str, ...]
    rows: tuple[Row, ...]
    categories: tuple[Categories, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Categories:
    """A figure by category (rows) and policy (columns)."""

    title: str
    rows: tuple[Row, ...]


def shown_evaluations(evaluations: Mapping[str, Mapping[int, Scores]]) -> list[Shown]:
    """A section for each evaluation; ``evaluations`` are the contents of scores.json by name and iteration."""
    return [_section(name, by_iteration) for name, by_iteration in evaluations.items() if by_iteration]


def _section(name: str, by_iteration: Mapping[int, Scores]) -> Shown:
    found = list(by_iteration.values())
    metrics = dict.fromkeys(metric for scores in found for metric in scores["metrics"])
    counts = dict.fromkeys(count for scores in found for count in scores["counts"])
    facts = dict.fromkeys(
        fact for scores in found for fact, value in scores["facts"].items() if isinstance(value, int | float)
    )
    rows = [Row(metric, tuple(_metric(scores["metrics"].get(metric)) for scores in found)) for metric in metrics]
    rows += [
        Row(fact.replace("_", " "), tuple(_number(s["facts"].get(fact)) for s in found), minor=True) for fact in facts
    ]
    rows += [Row(count, tuple(_number(s["counts"].get(count)) for s in found), minor=True) for count in counts]
    return Shown(
        name=name,
        about=_about(found[-1]),
        head=tuple(column_name(t) for t in by_iteration),
        rows=tuple(rows),
        categories=tuple(_categories(found)),
        warnings=tuple(
            f"{column_name(t)}: {warning}" for t, scores in by_iteration.items() for warning in scores["warnings"]
        ),
    )


def _about(scores: Scores) -> str:
    """Judge, baseline and the like, in a few words."""
    settings, facts = scores.get("settings", {}), scores["facts"]
    judge = settings.get("judge")
    said = [f"judged by {judge['model']}"] if judge else []
    said += [f"{name.replace('_', ' ')}: {value}" for name, value in facts.items() if isinstance(value, str)]
    drawn = [
        f"{name.replace('_', ' ')} {settings[name]}"
        for name in ("temperature", "top_p", "max_new_tokens")
        if settings.get(name) is not None
    ]
    return "; ".join([*said, *([f"answers drawn with {', '.join(drawn)}"] if drawn else [])])


def _categories(found: Sequence[Scores]) -> list[Categories]:
    """Each table's first figure, by policy."""
    titles = dict.fromkeys((table["title"], table["columns"][0]) for scores in found for table in scores["tables"])
    shown = []
    for title, column in titles:
        by_policy = [_figures(scores, title) for scores in found]
        labels = dict.fromkeys(label for figures in by_policy for label in figures)
        rows = tuple(Row(label, tuple(_number(figures.get(label)) for figures in by_policy)) for label in labels)
        shown.append(Categories(f"{column} {title}", rows))
    return shown


def _figures(scores: Scores, title: str) -> dict[str, float | None]:
    return {label: row[0] for table in scores["tables"] if table["title"] == title for label, row in table["rows"]}


def _metric(metric: Mapping[str, Any] | None) -> Cell:
    if metric is None or metric["value"] is None:
        return Cell()
    digits = 1 if metric["unit"] == "%" else 2
    low, high = metric["low"], metric["high"]
    within = "" if low is None or high is None else f"{low:.{digits}f}–{high:.{digits}f}"
    return Cell(f"{metric['value']:.{digits}f}" + (" %" if metric["unit"] == "%" else ""), within)


def _number(value: float | None) -> Cell:
    if value is None:
        return Cell()
    return Cell(f"{value:,.2f}" if isinstance(value, float) else f"{value:,}")
