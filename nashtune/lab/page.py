"""The lab's page: its tables, and win rates by iteration drawn as in the paper's Figure 2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import yaml
from markupsafe import Markup

from nashtune.lab.settings import Lab
from nashtune.lab.show import markdown, results, shown, shown_dynamics
from nashtune.lab.table import MethodRow
from nashtune.report import charts
from nashtune.report.templates import template
from nashtune.store.files import write_atomic


@dataclass(frozen=True, slots=True)
class Drawing:
    """One figure of the page."""

    title: str
    legend: Markup
    drawing: Markup


def write_lab(lab: Lab, rows: Sequence[MethodRow], wanted: int) -> Path:
    """Write LAB/lab.html and LAB/lab.md -> the page's path."""
    target = lab.place / "lab.html"
    write_atomic(target, page(lab, rows, wanted))
    write_atomic(lab.place / "lab.md", markdown(lab, rows, wanted))
    return target


def page(lab: Lab, rows: Sequence[MethodRow], wanted: int) -> str:
    """One HTML document that loads nothing."""
    result_heads, *result_lines = shown(results(lab), rows)
    heads, *lines = shown_dynamics(rows)
    return template("lab.html.j2").render(
        lab=lab,
        created=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        finished=sum(len(row.seeds) for row in rows),
        wanted=wanted,
        result_heads=result_heads,
        result_lines=result_lines,
        heads=heads,
        lines=lines,
        figures=list(_figures(rows)),
        settings={name: yaml.safe_dump(own, sort_keys=False) for name, own in lab.methods.items()},
    )


def _figures(rows: Sequence[MethodRow]) -> Sequence[Drawing]:
    """Win rates by iteration, all methods in one drawing: against the initial policy, and against the teacher."""
    drawings = []
    for rival, title in (("vs_initial", "Against the initial policy"), ("vs_teacher", "Against the teacher")):
        series = {row.method: [getattr(f, rival) for f in row.figures] for row in rows}
        if not any(any(rates) for rates in series.values()):
            continue
        names = ["initial" if t == 0 else str(t) for t in range(max(map(len, series.values())))]
        padded = {name: [*rates, *[None] * (len(names) - len(rates))] for name, rates in series.items()}
        label = f"{title}: win rate per iteration and method, with intervals"
        drawings.append(
            Drawing(title, charts.legend(list(padded), markers=True), charts.win_rate_chart(label, names, padded))
        )
    return drawings
