"""A check's figures as tables of text, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nashtune.checks.result import CheckResult
from nashtune.judging.judge_quality import Quality
from nashtune.judging.rater_agreement import RatersAgreement
from nashtune.records import Interval

WIDE = 150
"""Columns of a table that is not shown on a terminal."""
NOTES = (
    "Intervals are at 95 %, over prompts. accuracy: of verdicts, a tie half right; decided: of those that name a side; strict: "
    "of all asked, ties and none not right; balanced: mean over the sides. kappa: with the label, ties a class of their own.",
    "consistent: the same verdict in both orders; first shown: share won by the answer shown first (even: 50 %). longer right, "
    "shorter right: accuracy where that answer is the right one; takes the longer, beside how often the label does.",
)


@dataclass(frozen=True, slots=True)
class Shown:
    """One table: ``rows`` begin with their label."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables_of(found: CheckResult) -> Iterator[Shown]:
    """Tables in the order they are shown; a column that is known of no judge is left out."""
    if found.judges:
        yield _known(Shown("judges", *_rows(found.judges, MAIN)))
        yield _known(Shown("place and length", *_rows(found.judges, BIASES)))
        if any(judge.certainty for judge in found.judges):
            yield _known(Shown("certainty", *_rows([j for j in found.judges if j.certainty], CERTAINTY)))
    for judge in found.judges:
        if judge.subsets:
            head, rows = _rows(list(judge.subsets.values()), MAIN)
            named = [[name, *row[1:]] for name, row in zip(judge.subsets, rows, strict=True)]
            mean = ["mean of subsets", *[percent(judge.subset_mean) if h == "accuracy" else "" for h in head[1:]]]
            yield _known(Shown(f"{judge.name}, by subset", ["subset", *head[1:]], [*named, mean]))
    if found.people:
        yield from _people(found.people)
    if found.bill:
        usage = found.bill.usage
        cost = "-" if usage.cost_usd is None else f"${usage.cost_usd:.4f}"
        counts = [found.bill.judgments, usage.calls, usage.prompt_tokens, usage.completion_tokens, found.bill.unusable]
        head = ["", "judgments", "calls", "tokens in", "tokens out", "unusable", "cost"]
        yield Shown("asking", head, [["", *(f"{count:,}" for count in counts), cost]])


def percent(interval: Interval | None) -> str:
    """ "81.3 % (79-84)" """
    if interval is None:
        return "-"
    return f"{100 * interval.value:.1f} % ({100 * interval.low:.0f}-{100 * interval.high:.0f})"


def decimal(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval.value:.3f} ({interval.low:.2f}-{interval.high:.2f})"


Column = tuple[str, Callable[[Quality], str]]
MAIN: Sequence[Column] = (
    ("pairs", lambda q: f"{q.comparisons:,}"),
    ("accuracy", lambda q: percent(q.accuracy)),
    ("decided", lambda q: percent(q.decided_accuracy)),
    ("strict", lambda q: percent(q.strict_accuracy)),
    ("balanced", lambda q: percent(q.balanced_accuracy)),
    ("kappa", lambda q: decimal(q.label.kappa)),
    (
        "right/wrong/tie/none",
        lambda q: "/".join(map(str, (q.counted.right, q.counted.wrong, q.counted.tie, q.counted.none))),
    ),
    ("label ties", lambda q: str(q.label_ties) if q.label_ties else "-"),
    ("unlabelled", lambda q: str(q.unlabelled) if q.unlabelled else "-"),
)
BIASES: Sequence[Column] = (
    ("consistent", lambda q: percent(q.orders.consistency) if q.orders else "-"),
    ("right both times", lambda q: percent(q.orders.both_right) if q.orders else "-"),
    ("first shown", lambda q: percent(q.place.first_shown) if q.place else "-"),
    ("longer right", lambda q: percent(q.length.longer_right)),
    ("shorter right", lambda q: percent(q.length.shorter_right)),
    ("takes the longer", lambda q: percent(q.length.longer_preferred)),
    ("the label does", lambda q: percent(q.length.longer_labelled)),
)
CERTAINTY: Sequence[Column] = (
    ("of", lambda q: q.certainty.of if q.certainty else "-"),
    ("AUC", lambda q: decimal(q.certainty.auc) if q.certainty else "-"),
    ("log loss", lambda q: decimal(q.certainty.log_loss) if q.certainty else "-"),
    ("Brier", lambda q: decimal(q.certainty.brier) if q.certainty else "-"),
    ("calibration error", lambda q: _plain(q.certainty.calibration_error) if q.certainty else "-"),
)


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _rows(judges: Sequence[Quality], columns: Sequence[Column]) -> tuple[list[str], list[list[str]]]:
    rows = [[judge.name, *(show(judge) for _, show in columns)] for judge in judges]
    return ["judge", *(name for name, _ in columns)], rows


def _known(table: Shown) -> Shown:
    keep = [0, *(n for n in range(1, len(table.head)) if any(row[n] not in ("-", "") for row in table.rows))]
    return Shown(table.title, [table.head[n] for n in keep], [[row[n] for n in keep] for row in table.rows])


def _people(people: RatersAgreement) -> Iterator[Shown]:
    title = f"people: alpha {decimal(people.alpha)}, unanimous {percent(people.unanimous)}"
    rows = [[" and ".join(p.raters), f"{p.comparisons:,}", percent(p.same), decimal(p.kappa)] for p in people.pairs]
    rows += [
        [f"{a.rater} and the majority of the others", f"{a.comparisons:,}", percent(a.same), decimal(a.kappa)]
        for a in people.against_others
    ]
    yield Shown(title, ["", "pairs", "same verdict", "kappa"], rows)


def heading(found: CheckResult) -> str:
    left_out = "".join(f"; left out, {reason}: {count:,}" for reason, count in found.left_out.items())
    return f"{found.source}: {found.comparisons:,} comparisons of {found.prompts:,} prompts{left_out}"


def print_check(found: CheckResult) -> None:
    """Tables, what they mean, and what is cause for alarm."""
    console = Console()
    console = Console(width=max(console.width, WIDE)) if not console.is_terminal else console
    console.print(Text(heading(found)), soft_wrap=True)
    for shown in tables_of(found):
        table = Table(title=Text(shown.title))
        for number, name in enumerate(shown.head):
            table.add_column(Text(name), justify="right" if number else "left")
        for row in shown.rows:
            table.add_row(*map(Text, row))
        console.print(table)
    for note in NOTES if found.judges else ():
        console.print(Text(note), style="dim", soft_wrap=True)
    for reason, count in (found.bill.reasons if found.bill else {}).items():
        console.print(Text(f"unusable, {count}: {reason}"), soft_wrap=True)
    for alarm in found.alarms:
        console.print(Text(f"alarm: {alarm.message}", style="yellow"), soft_wrap=True)


def markdown(found: CheckResult) -> str:
    """The same as a Markdown page."""
    parts = [f"# Judge check\n\n{_escaped(heading(found))}\n"]
    for shown in tables_of(found):
        lines = [shown.head, ["---"] * len(shown.head), *shown.rows]
        body = "\n".join("| " + " | ".join(map(_escaped, line)) + " |" for line in lines)
        parts.append(f"## {_escaped(shown.title)}\n\n{body}\n")
    if found.judges:
        parts.append("\n".join(NOTES) + "\n")
    if found.alarms:
        parts.append("\n".join(f"- alarm: {_escaped(alarm.message)}" for alarm in found.alarms) + "\n")
    return "\n".join(parts)


def _escaped(text: str) -> str:
    """A name out of the data must not open a cell, a line or a tag."""
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())
