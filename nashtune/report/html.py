"""The report: one self-contained HTML file that says what a run achieved, what it cost and where it may be wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from markupsafe import Markup

from nashtune.errors import StoreError
from nashtune.records import Finish, IterationSummary
from nashtune.report import charts, tables
from nashtune.report.evaluations import shown_evaluations
from nashtune.report.health import JudgedStage, health_alarms, health_table
from nashtune.report.tables import PAIR_KINDS, interval_range, percent, union
from nashtune.report.templates import template
from nashtune.report.theory import theory
from nashtune.summaries import AVERAGE, column_name

CURVES = (
    ("loss", None),
    ("accuracy", 0.5),
    ("margin", 0.0),
    ("nll", None),
    ("grad_norm", None),
    ("learning_rate", None),
)
"""Training metrics drawn, in order, with the value a policy that has learnt nothing would show."""


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """One answer in a side-by-side sample. ``label`` says whose: "initial policy", "iteration 2", "teacher"."""

    label: str
    text: str
    score: float | None = None
    measures: Mapping[str, float | None] = field(default_factory=dict)
    finish: Finish = "unknown"
    defects: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class SideBySide:
    """One held-out prompt and the answers to it."""

    prompt: str
    system: str | None
    answers: Sequence[ShownAnswer]


@dataclass(frozen=True, slots=True)
class ReportInput:
    """Everything the report shows. Mappings keyed by int are keyed by iteration.

    ``recipe`` is resolved; ``best`` is the selected iteration, None while unknown; ``state`` is the run's state or stop
    reason in words ("running", "finished"). ``train_curves`` rows hold "step" (optimizer step within the iteration) and
    any of loss, margin, accuracy, grad_norm, learning_rate, nll. ``pair_margins``: score (or win-rate) differences of
    new pairs by kind. ``lengths``: words of each validation answer. ``prompt_report``: how prompts were read, by name.
    ``health``: the judge's, per judging stage; its alarms are shown with ``alarms``. ``average``: the row of the averaged policy;
    ``exported``: which policy lies in best/, in words. ``evaluations``: what each recorded, by name and iteration;
    ``passed_over``: iterations that cannot be the best, and why.
    """

    name: str
    created: str
    recipe: Mapping[str, Any]
    environment: Mapping[str, Any]
    summaries: Sequence[IterationSummary]
    best: int | None
    state: str
    train_curves: Mapping[int, Sequence[Mapping[str, float]]] = field(default_factory=dict)
    pair_margins: Mapping[int, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    lengths: Mapping[int, Sequence[int]] = field(default_factory=dict)
    contests: Sequence[SideBySide] = ()
    prompt_report: Mapping[str, Any] = field(default_factory=dict)
    alarms: Sequence[str] = ()
    health: Sequence[JudgedStage] = ()
    average: IterationSummary | None = None
    exported: str = ""
    evaluations: Mapping[str, Mapping[int, Mapping[str, Any]]] = field(default_factory=dict)
    passed_over: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing with its heading and, where it needs one, a legend."""

    title: str
    drawing: Markup
    legend: Markup = field(default_factory=Markup)


def length_alarms(summaries: Sequence[IterationSummary]) -> list[str]:
    """A sentence per iteration whose mean words at least doubled or halved against the initial policy or the previous
    iteration: judges reward length, and the paper reports it exploding after iteration 1 (Table 2)."""
    words = {s.iteration: s.mean_words for s in summaries}
    found = []
    for t, now in sorted(words.items()):
        references = {"the initial policy": 0} if t == 1 else {"the initial policy": 0, f"iteration {t - 1}": t - 1}
        reasons = []
        for name, earlier in references.items() if t > 0 else ():
            before = words.get(earlier)
            if now is None or before is None or now == before:
                continue
            if now >= 2 * before or now <= before / 2:
                change = "at least doubled" if now > before else "at least halved"
                reasons.append(f"{change} against {name} ({before:,.1f})")
        if reasons:
            found.append(f"Iteration {t}: mean words per answer {now:,.1f}, " + " and ".join(reasons) + ".")
    return found


def _passed_over(data: ReportInput) -> list[str]:
    return [
        f"{column_name(t).capitalize()} cannot be the best by {selection(data.recipe)}: {reason}"
        for t, reason in data.passed_over.items()
    ]


def confidence_label(recipe: Mapping[str, Any]) -> str:
    """ "95 % interval", from the recipe's ``validate.confidence``."""
    level = recipe.get("validate", {}).get("confidence")
    return "interval" if level is None else f"{100 * level:g}{tables.SPACE}% interval"


def result_sentence(summaries: Sequence[IterationSummary], best: int | None, recipe: Mapping[str, Any]) -> str:
    """The result of the best (or, while unknown, latest) iteration in one sentence; says so where the interval does not
    settle it."""
    trained = [s for s in summaries if s.iteration != 0]
    if not summaries:
        return "Nothing has been validated yet."
    if not trained:
        return "The initial policy has been validated; no iteration is finished yet."
    if best == 0:
        return "No iteration does better than the initial policy."
    chosen = next((s for s in trained if s.iteration == best), max(trained, key=lambda s: s.iteration))
    name, rate = f"Iteration {chosen.iteration}", chosen.win_rate_vs_initial
    if chosen.iteration == AVERAGE:
        name = "The average of all iterations"
    if rate is None:
        return f"{name} is the latest." if best is None else f"{name} is the best by {selection(recipe)}."
    share, within = percent(rate.value), f"({confidence_label(recipe)} {interval_range(rate)})"
    if rate.low > 0.5:
        return f"{name} beats the initial policy in {share} of held-out contests {within}."
    if rate.high < 0.5:
        return f"{name} loses to the initial policy: it wins {share} of held-out contests {within}."
    return f"{name} is not clearly better than the initial policy: it wins {share} of held-out contests {within}."


def selection(recipe: Mapping[str, Any]) -> str:
    """What the best iteration is chosen by, in words."""
    rule = str(recipe.get("validate", {}).get("select", "validation"))
    return tables.words(rule.replace("_vs_initial", " against the initial policy"))


def details_sentence(data: ReportInput) -> str:
    """Teacher, prompts and length of the best (or latest) iteration, as far as known."""
    trained = [s for s in data.summaries if s.iteration > 0]
    chosen = next((s for s in data.summaries if s.iteration == data.best), trained[-1] if trained else None)
    if chosen is None:
        return ""
    said, start = [], next((s for s in data.summaries if s.iteration == 0), None)
    whose = f"Iteration {chosen.iteration}" if chosen.iteration else "The initial policy"
    if teacher := chosen.win_rate_vs_teacher:
        p = "" if chosen.p_beats_teacher is None else f"; one-sided p {tables.p_value(chosen.p_beats_teacher)}"
        said.append(
            f"{whose} wins {percent(teacher.value)} of contests against the teacher ({interval_range(teacher)}{p})."
        )
    if chosen.satisfied_and_good is not None and start and start.satisfied_and_good is not None and chosen.iteration:
        now, before = percent(chosen.satisfied_and_good), percent(start.satisfied_and_good)
        said.append(f"Answers that are satisfied and good went from {before} to {now}.")
    if chosen.mean_words is not None and start and start.mean_words is not None and chosen.iteration:
        said.append(f"Mean words per answer went from {start.mean_words:,.1f} to {chosen.mean_words:,.1f}.")
    rate = chosen.win_rate_vs_initial or chosen.win_rate_vs_teacher
    if rate:
        said.append(f"Measured on {rate.n:,} held-out prompts.")
    return " ".join(said)


def _win_rate_figure(summaries: Sequence[IterationSummary]) -> Iterator[Figure]:
    series = {
        "against the initial policy": [s.win_rate_vs_initial for s in summaries],
        "against the previous iteration": [s.win_rate_vs_previous for s in summaries],
        "against the teacher": [s.win_rate_vs_teacher for s in summaries],
    }
    series = {name: rates for name, rates in series.items() if any(rates)}
    if series:
        names = [column_name(s.iteration) for s in summaries]
        drawing = charts.win_rate_chart("Win rate per iteration with intervals", names, series)
        yield Figure("Win rate on held-out prompts", drawing, charts.legend(list(series), markers=True))


def _length_figure(data: ReportInput) -> Iterator[Figure]:
    lengths = {column_name(t): words for t, words in sorted(data.lengths.items()) if words}
    if lengths:
        yield Figure("", charts.length_chart("Distribution of answer length per iteration", lengths))


def _margin_figures(data: ReportInput) -> Iterator[Figure]:
    found = {t: kinds for t, kinds in sorted(data.pair_margins.items()) if any(kinds.values())}
    if not found:
        return
    names = union(found.values(), PAIR_KINDS)
    edges = charts.histogram_edges([m for kinds in found.values() for values in kinds.values() for m in values])
    tallest = max(
        max(charts.histogram_counts([m for values in kinds.values() for m in values], edges))
        for kinds in found.values()
    )
    for t, kinds in found.items():
        by_kind = {kind: kinds.get(kind, ()) for kind in names}
        drawing = charts.margin_histogram(f"Margins of the new pairs of iteration {t}", by_kind, edges, tallest)
        yield Figure(f"Iteration {t}", drawing)


def _curve_figures(data: ReportInput) -> Iterator[Figure]:
    for metric, even in CURVES:
        curves = {
            str(t): [(row["step"], row[metric]) for row in rows if metric in row]
            for t, rows in sorted(data.train_curves.items())
        }
        name = {"nll": "NLL of chosen", "grad_norm": "gradient norm"}.get(metric, tables.words(metric))
        drawing = charts.training_curve(f"Training {name} per optimizer step", curves, even)
        if drawing:
            yield Figure(name.capitalize() if name.islower() else name, drawing)


def _spending_figures(summaries: Sequence[IterationSummary]) -> Iterator[Figure]:
    seconds = {column_name(s.iteration): s.seconds for s in summaries if any(s.seconds.values())}
    tokens = {column_name(s.iteration): s.tokens for s in summaries if any(s.tokens.values())}
    for title, rows, units in (("Time by stage", seconds, charts.DURATIONS), ("Tokens", tokens, charts.COUNTS)):
        if rows:
            parts = union(rows.values())
            yield Figure(
                title,
                charts.stacked_bars(f"{title} per iteration", rows, parts, units),
                charts.legend([*map(tables.words, parts)]),
            )


def _margin_legend(data: ReportInput) -> Markup:
    return charts.legend(union((kinds for _, kinds in sorted(data.pair_margins.items())), PAIR_KINDS))


def _header_facts(data: ReportInput) -> dict[str, str]:
    """What the run is, in a few words each; sections the recipe lacks are left out."""
    sections = {"Initial policy": ("policy", "model"), "Oracle": ("oracle", "kind"), "Teacher": ("teacher", "kind")}
    sections["Objective"] = ("objective", "name")
    known = {name: str(data.recipe[s][key]) for name, (s, key) in sections.items() if s in data.recipe}
    if "Teacher" in known:
        known["Teacher"] = tables.words(known["Teacher"])
    exported = {"Exported": data.exported} if data.exported else {}
    return {"State": data.state, **exported, "Report made": data.created} | known


def _plain_facts(report: Mapping[str, Any]) -> dict[str, str]:
    """Values of a free-form mapping as text: numbers with separators, nested values as JSON."""
    return {
        tables.words(key): f"{value:,}"
        if isinstance(value, (int, float)) and not isinstance(value, bool)
        else (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
        for key, value in report.items()
    }


def as_yaml(value: Mapping[str, Any]) -> str:
    return yaml.safe_dump(json.loads(json.dumps(value, default=str)), sort_keys=False, allow_unicode=True, width=10_000)


def render_report(data: ReportInput) -> str:
    """The whole report as one HTML document that loads nothing. Everything from ``data`` is escaped.

    Raises StoreError where ``best`` is not among the iterations of ``summaries``.
    """
    summaries = sorted(data.summaries, key=lambda s: s.iteration)
    iterations = [s.iteration for s in summaries]
    if data.best is not None and data.best not in iterations:
        raise StoreError(f"report: best is iteration {data.best}, but the summaries hold {iterations or 'none'}")
    shown = [*summaries, data.average] if data.average else summaries
    groups = tables.iteration_groups(shown)
    dropped = tables.counts_group("Prompts and candidates that gave no pair", [s.dropped for s in shown])
    defects = tables.counts_group("Defects of samples", [s.defects for s in shown])
    page = template("report.html.j2").render(
        data=data,
        headline=result_sentence(summaries, data.best, data.recipe),
        details=details_sentence(data),
        header_facts=_header_facts(data),
        confidence=confidence_label(data.recipe),
        selection=selection(data.recipe),
        alarms=list(
            dict.fromkeys([*data.alarms, *_passed_over(data), *length_alarms(summaries), *health_alarms(data.health)])
        ),
        columns=[(s.iteration, column_name(s.iteration)) for s in shown],
        groups=groups,
        unmeasured=[row.full_label for group in groups for row in group.rows if not row.known],
        win_rates=list(_win_rate_figure(summaries)),
        dynamics_columns=[name for name, _ in tables.DYNAMICS],
        dynamics=tables.dynamics_rows(summaries),
        evaluations=shown_evaluations(data.evaluations),
        theory=theory(summaries, data.average, data.recipe),
        health=health_table(data.health),
        lengths=list(_length_figure(data)),
        margins=list(_margin_figures(data)),
        margin_legend=_margin_legend(data),
        curves=list(_curve_figures(data)),
        spending=list(_spending_figures(summaries)),
        reasons=[group for group in (dropped, defects) if group.rows],
        prompt_facts=_plain_facts(data.prompt_report),
        recipe=as_yaml(data.recipe),
        environment=_plain_facts(data.environment),
    )
    # Lone surrogates (from broken JSON escapes in prompts) cannot be written as UTF-8.
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", page)
