"""The lab's table as text: for the terminal, as Markdown, as JSON values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nashtune.lab.settings import Lab
from nashtune.lab.table import Figures, MethodRow, Spread
from nashtune.records import Interval
from nashtune.report.tables import PAIR_KINDS, UNKNOWN

Column = tuple[str, Callable[[MethodRow], str]]


def results(lab: Lab) -> tuple[Column, ...]:
    """Columns like the paper's Table 1: each method after its last iteration."""
    return (
        ("method", lambda row: row.method),
        ("vs initial", lambda row: _rate(row.last.vs_initial)),
        ("by seed", lambda row: _seeds(row.last.vs_initial_by_seed)),
        ("vs teacher", lambda row: _rate(row.last.vs_teacher)),
        ("by seed", lambda row: _seeds(row.last.vs_teacher_by_seed)),
        (f"vs initial, less {lab.baseline}'s", lambda row: _difference(row, lab.baseline)),
        ("satisfied & good", lambda row: _share(row.last.measures.get("satisfied_and_good"))),
        ("good", lambda row: _share(row.last.measures.get("good"))),
        ("score", lambda row: _number(row.last.measures.get("mean_score"), ".2f")),
        ("words", lambda row: _number(row.last.measures.get("mean_words"), ".0f")),
        ("best iteration", lambda row: ", ".join(UNKNOWN if t is None else str(t) for t in row.best)),
        ("minutes", lambda row: f"{row.seconds / 60:.0f}"),
        ("dollars", lambda row: UNKNOWN if row.paid_usd is None else f"{row.paid_usd:.2f}"),
    )


def dynamics() -> tuple[tuple[str, Callable[[Figures], str]], ...]:
    """Columns like the paper's Table 2: what each iteration sampled and learned from, means over seeds."""
    return (
        ("iteration", lambda f: str(f.iteration)),
        ("best-of-n beats teacher", lambda f: _percent(f.dynamics.get("best_of_n_beats_teacher"))),
        ("student wins per prompt", lambda f: _plain(f.dynamics.get("student_wins_per_prompt"), ".2f")),
        ("student score", lambda f: _plain(f.dynamics.get("student_score"), ".2f")),
        ("teacher score", lambda f: _plain(f.dynamics.get("teacher_score"), ".2f")),
        *((f"pairs {kind}", lambda f, kind=kind: _plain(f.pairs.get(kind), ",.0f")) for kind in PAIR_KINDS[:3]),
        ("words", lambda f: _number(f.measures.get("mean_words"), ".0f")),
        ("vs initial", lambda f: _rate(f.vs_initial)),
        ("vs teacher", lambda f: _rate(f.vs_teacher)),
    )


def shown(columns: Sequence[Column], rows: Sequence[MethodRow]) -> list[list[str]]:
    """The table's cells; columns that no row knows are left out, heads are the first row."""
    cells = [[read(row) for _, read in columns] for row in rows]
    known = [i for i in range(len(columns)) if any(line[i] != UNKNOWN for line in cells)]
    return [[columns[i][0] for i in known], *([line[i] for i in known] for line in cells)]


def shown_dynamics(rows: Sequence[MethodRow]) -> list[list[str]]:
    """Every method's iterations under one another."""
    columns = dynamics()
    lines = [[row.method, *(read(f) for _, read in columns)] for row in rows for f in row.figures if f.iteration]
    return [["method", *(name for name, _ in columns)], *lines]


def print_lab(lab: Lab, rows: Sequence[MethodRow], wanted: int) -> None:
    """The table of results, and how much of the lab it rests on."""
    heads, *lines = shown(results(lab), rows)
    table = Table(
        title=f"{lab.name}: after the last iteration [{lab.confidence:.0%} interval]", caption=_finished(rows, wanted)
    )
    for head in heads:
        table.add_column(head, justify="left" if head == "method" else "right")
    for line in lines:
        table.add_row(*map(Text, line), style="bold" if line[0] == lab.baseline else None)
    console = Console()
    console = Console(width=max(console.width, 170)) if not console.is_terminal else console
    console.print(table)


def _finished(rows: Sequence[MethodRow], wanted: int) -> str:
    done = sum(len(row.seeds) for row in rows)
    return f"{done} of {wanted} runs finished"


def markdown(lab: Lab, rows: Sequence[MethodRow], wanted: int) -> str:
    """Both tables as Markdown."""
    parts = [
        f"# {lab.name}",
        f"{_finished(rows, wanted)}; seeds {', '.join(map(str, lab.seeds))}; "
        f"{lab.confidence:.0%} intervals, clustered by prompt.",
        "## After the last iteration",
        _markdown_table(shown(results(lab), rows)),
        "## By iteration (means over seeds)",
        _markdown_table(shown_dynamics(rows)),
    ]
    return "\n\n".join(parts) + "\n"


def _markdown_table(cells: Sequence[Sequence[str]]) -> str:
    heads, *lines = ([cell.replace("|", "\\|") for cell in line] for line in cells)
    rule = ["---"] * len(heads)
    return "\n".join("| " + " | ".join(line) + " |" for line in (heads, rule, *lines))


def lab_json(lab: Lab, rows: Sequence[MethodRow], wanted: int) -> dict[str, Any]:
    """The lab for scripts."""
    return {
        "name": lab.name,
        "folder": str(lab.place),
        "baseline": lab.baseline,
        "seeds": list(lab.seeds),
        "runs": wanted,
        "finished": sum(len(row.seeds) for row in rows),
        "methods": [asdict(row) for row in rows],
    }


# ---- cells -------------------------------------------------------------------------------------------------------------


def _rate(rate: Interval | None) -> str:
    return UNKNOWN if rate is None else f"{rate.value:.0%} ({100 * rate.low:.0f}-{100 * rate.high:.0f})"


def _difference(row: MethodRow, baseline: str) -> str:
    gap = row.last.difference
    if gap is None or row.method == baseline:
        return UNKNOWN
    return f"{100 * gap.value:+.0f} ({100 * gap.low:+.0f} to {100 * gap.high:+.0f})"


def _seeds(spread: Spread | None) -> str:
    return UNKNOWN if spread is None else ", ".join(f"{100 * value:.0f}" for value in spread.values)


def _share(spread: Spread | None) -> str:
    return UNKNOWN if spread is None else f"{spread.mean:.0%}"


def _number(spread: Spread | None, form: str) -> str:
    return UNKNOWN if spread is None else f"{spread.mean:{form}}"


def _percent(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.0%}"


def _plain(value: float | None, form: str) -> str:
    return UNKNOWN if value is None else f"{value:{form}}"
