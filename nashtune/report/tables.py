"""The report's numbers as text: formats, and the tables of iterations and of their dynamics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from nashtune.records import Interval, IterationSummary

UNKNOWN = "–"
PAIR_KINDS = ("T>S", "S>T", "S>S", "T>T")
SPACE = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure and, smaller, what qualifies it."""

    text: str = UNKNOWN
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One measure; ``cells`` has one entry per iteration."""

    label: str
    cells: tuple[Cell, ...]
    minor: bool = False

    @property
    def full_label(self) -> str:
        """The label where it stands without its group's heading."""
        return f"contests {self.label}" if self.label.startswith("against") else self.label

    @property
    def known(self) -> bool:
        return any(cell.text != UNKNOWN for cell in self.cells)


@dataclass(frozen=True, slots=True)
class Group:
    """Rows under one heading."""

    label: str
    rows: tuple[Row, ...]


def percent(value: float) -> str:
    """0.813 -> "81 %"; values that would round to 0 or 100 without being it keep a decimal."""
    whole = round(100 * value)
    digits = 1 if (whole == 0 and value > 0) or (whole == 100 and value < 1) else 0
    return f"{100 * value:.{digits}f}{SPACE}%"


def interval_range(interval: Interval) -> str:
    """The bounds in whole percent: "72–88"."""
    return f"{round(100 * interval.low)}–{round(100 * interval.high)}"


def count(value: float) -> str:
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    """Two units at most: "42 s", "4 min 05 s", "40 min", "3 h 20 min"."""
    if seconds < 10:
        return f"{seconds:.1f}{SPACE}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{SPACE}s"
    if whole < 600:
        return f"{whole // 60}{SPACE}min {whole % 60:02d}{SPACE}s"
    minutes = round(whole / 60)
    if minutes < 60:
        return f"{minutes}{SPACE}min"
    return f"{minutes // 60}{SPACE}h {minutes % 60:02d}{SPACE}min"


def dollars(value: float) -> str:
    """Cents, and more digits for amounts below ten cents."""
    return f"${value:,.2f}" if value >= 0.1 or value == 0 else f"${value:.3g}"


def measured(value: float) -> str:
    """Three decimals, or three significant digits where those say little."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.3f}" if value == 0 or 0.01 <= abs(value) < 1e5 else f"{value:.3g}"


def p_value(value: float) -> str:
    """Three decimals; below 0.001 one significant digit."""
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def words(key: str) -> str:
    """A record's key as it is read: "judge_prompt" -> "judge prompt"."""
    return key.replace("_", " ")


def union(mappings: Iterable[Mapping[str, object]], first: Sequence[str] = ()) -> list[str]:
    """All keys, those of ``first`` that occur leading, the others in order of appearance."""
    seen = dict.fromkeys(key for mapping in mappings for key in mapping)
    return [key for key in first if key in seen] + [key for key in seen if key not in first]


def iteration_groups(summaries: Sequence[IterationSummary]) -> list[Group]:
    """The run's table: measures as rows, iterations as columns."""
    table = _Columns(summaries)
    contests = (
        table.row("against the initial policy", lambda s: _win_rate(s.win_rate_vs_initial)),
        table.row("against the previous iteration", lambda s: _win_rate(s.win_rate_vs_previous)),
        table.row("against the teacher", lambda s: _win_rate(s.win_rate_vs_teacher)),
        table.row("against the teacher: p of no better than half", _teacher_p),
    )
    answers = (
        table.row("satisfied", lambda s: _share(s.satisfied)),
        table.row("good", lambda s: _share(s.good)),
        table.row("satisfied and good", lambda s: _share(s.satisfied_and_good)),
        table.row("mean score", lambda s: _number(s.mean_score, ".2f")),
        table.row("mean words", lambda s: _number(s.mean_words, ",.1f")),
    )
    kinds = union((s.pairs for s in summaries), PAIR_KINDS)
    pairs = (
        table.row("new pairs", lambda s: Cell(count(sum(s.pairs.values()))) if s.pairs else Cell()),
        *(table.of_key(kind, lambda s: s.pairs, count) for kind in kinds),
        table.row("replayed pairs", lambda s: Cell(count(s.replayed_pairs)) if s.pairs or s.replayed_pairs else Cell()),
        table.row("unusable judgements", lambda s: Cell(count(s.unusable_judgments))),
    )
    training = tuple(table.of_key(key, lambda s: s.train, measured) for key in union(s.train for s in summaries))
    tokens = union(s.tokens for s in summaries)
    spent = (
        table.row("time", lambda s: Cell(duration(sum(s.seconds.values()))) if s.seconds else Cell()),
        table.row("cost", lambda s: Cell() if s.cost_usd is None else Cell(dollars(s.cost_usd))),
        table.row("tokens", lambda s: Cell(count(sum(s.tokens.values()))) if s.tokens else Cell()),
        *(table.of_key(key, lambda s: s.tokens, count) for key in tokens),
    )
    return [
        Group("Contests won", contests),
        Group("Answers", answers),
        Group("Training pairs", pairs),
        Group("Training", training),
        Group("Spent", spent),
    ]


def counts_group(label: str, counts: Sequence[Mapping[str, int]]) -> Group:
    """Counted reasons, one row per reason, most frequent first."""
    totals = {key: sum(c.get(key, 0) for c in counts) for key in union(counts)}
    order = sorted(totals, key=lambda key: -totals[key])
    rows = [Row(words(key), tuple(Cell(count(c.get(key, 0))) if c else Cell() for c in counts)) for key in order]
    return Group(label, tuple(rows))


@dataclass(frozen=True, slots=True)
class _Columns:
    """Makes rows: one cell per iteration."""

    summaries: Sequence[IterationSummary]

    def row(self, label: str, cell: Callable[[IterationSummary], Cell]) -> Row:
        return Row(label, tuple(cell(s) for s in self.summaries))

    def of_key(
        self, key: str, mapping: Callable[[IterationSummary], Mapping[str, float]], show: Callable[[float], str]
    ) -> Row:
        found = (mapping(s).get(key) for s in self.summaries)
        return Row(words(key), tuple(Cell() if value is None else Cell(show(value)) for value in found), minor=True)


def _win_rate(interval: Interval | None) -> Cell:
    return Cell() if interval is None else Cell(percent(interval.value), interval_range(interval))


def _teacher_p(summary: IterationSummary) -> Cell:
    return Cell() if summary.p_beats_teacher is None else Cell(p_value(summary.p_beats_teacher))


def _share(value: float | None) -> Cell:
    return Cell() if value is None else Cell(percent(value))


def _number(value: float | None, form: str) -> Cell:
    return Cell() if value is None else Cell(format(value, form))


DYNAMICS: tuple[tuple[str, Callable[[IterationSummary], Cell]], ...] = (
    ("inputs", lambda s: _number(s.dynamics.get("inputs"), ",.0f")),
    ("student words", lambda s: _spread(s.dynamics.get("student_words_mean"), s.dynamics.get("student_words_sd"))),
    ("best-of-n beats teacher", lambda s: _share(s.dynamics.get("best_of_n_beats_teacher"))),
    ("student wins per prompt", lambda s: _number(s.dynamics.get("student_wins_per_prompt"), ".2f")),
    ("student score", lambda s: _number(s.dynamics.get("student_score"), ".2f")),
    ("teacher score", lambda s: _number(s.dynamics.get("teacher_score"), ".2f")),
    *((f"pairs {kind}", lambda s, kind=kind: _number(s.pairs.get(kind), ",.0f")) for kind in PAIR_KINDS[:3]),
)
"""Columns of the paper's Table 2 (arXiv 2404.03715)."""


def _spread(mean: float | None, deviation: float | None) -> Cell:
    if mean is None:
        return Cell()
    return Cell(f"{mean:,.0f}", "" if deviation is None else f"±{SPACE}{deviation:,.0f}")


def dynamics_rows(summaries: Sequence[IterationSummary]) -> list[Row]:
    """Table 2 as printed: one row per iteration that sampled."""
    rows = (Row(str(s.iteration), tuple(cell(s) for _, cell in DYNAMICS)) for s in summaries)
    return [row for row in rows if row.known]
