"""Rows of a run's table: reading them back, choosing among them, and what they are called."""

from __future__ import annotations

from typing import Any

from nashtune.records import Interval, IterationSummary, Payoffs

AVERAGE = -1
"""Stands where an iteration's number does for the policy whose weights are the mean of all iterates'."""
INTERVALS = (
    "win_rate_vs_initial",
    "win_rate_vs_previous",
    "win_rate_vs_teacher",
    "kl_from_previous",
    "improvement_bound",
    "exploitability",
)


def called(iteration: int) -> str:
    """A policy's name in messages."""
    return "average" if iteration == AVERAGE else f"iteration {iteration}"


def column_name(iteration: int) -> str:
    """A policy's name at the head of a column or row."""
    return {0: "initial", AVERAGE: "average"}.get(iteration, str(iteration))


def exported_policy(record: dict[str, Any], iterations: int) -> str:
    """What a run's export.json says, in words; ``iterations`` is how many the average is of."""
    number, how = record["iteration"], record["average"]
    if number == AVERAGE:
        return f"the average of iterations 1 to {iterations}"
    name = "the initial policy" if number == 0 else f"iteration {number}"
    return f"{name} ({'the best, until the average is made' if how == 'weights' else how})"


def selection_value(summary: IterationSummary, name: str) -> float | None:
    """The figure that ``validate.select`` names; the initial policy wins half of its contests with itself."""
    if name == "win_rate_vs_initial":
        if summary.iteration == 0:
            return 0.5
        return summary.win_rate_vs_initial.value if summary.win_rate_vs_initial else None
    return getattr(summary, name)


def summary_from(row: dict[str, Any]) -> IterationSummary:
    """An iteration's row, as it was kept; rows of older versions lack what came later."""
    for name in INTERVALS:
        row[name] = _interval(row.get(name))
    row["words_by_quantile"] = tuple(row["words_by_quantile"])
    row["payoffs"] = payoffs_from(row["payoffs"]) if row.get("payoffs") else None
    return IterationSummary(**row)


def payoffs_from(row: dict[str, Any]) -> Payoffs:
    """A payoff matrix, as it was kept."""
    return Payoffs(
        policies=tuple(row["policies"]),
        matrix=tuple(tuple(map(_interval, cells)) for cells in row["matrix"]),
        teacher=tuple(map(_interval, row["teacher"])),
        equilibrium=None if row["equilibrium"] is None else tuple(row["equilibrium"]),
        best=row["best"],
        exploitability={name: Interval(**found) for name, found in row["exploitability"].items()},
    )


def _interval(found: dict[str, Any] | None) -> Interval | None:
    return Interval(**found) if found else None
