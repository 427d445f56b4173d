"""What theory says of a run's steps and policies, next to what was measured: the tables of one section of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nashtune.records import Interval, IterationSummary, Payoffs
from nashtune.report.tables import Cell, Row, interval_range, percent
from nashtune.summaries import AVERAGE, column_name

STEP_COLUMNS = (
    "KL from the previous (nats)",
    "bound of eq. (9)",
    "wins against the previous",
    "exploitability",
)
NAMES = {"last": "the last policy", "best": "the best", "uniform": "the uniform mixture of all"}


@dataclass(frozen=True, slots=True)
class Theory:
    """``steps``: a row per trained policy, by STEP_COLUMNS. ``head`` and ``matrix``: the payoff matrix of all policies, None
    where there are no two. ``remarks``: what the figures mean, one sentence each."""

    steps: Sequence[Row]
    head: Sequence[str]
    matrix: Sequence[Row]
    remarks: Sequence[str]
    columns: Sequence[str] = STEP_COLUMNS


def theory(
    summaries: Sequence[IterationSummary], average: IterationSummary | None, recipe: Mapping[str, Any]
) -> Theory:
    """From the rows of all iterations, in order, and the averaged policy's, if there is one."""
    trained = [s for s in summaries if s.iteration > 0] + ([average] if average else [])
    steps = [row for row in map(_step, trained) if row.known]
    found = next((s.payoffs for s in reversed(trained) if s.payoffs), None)
    remarks = _bound_remarks(trained, recipe) if steps else []
    if found is None:
        return Theory(steps, (), (), remarks)
    head = [*map(column_name, found.policies), *(["teacher"] if any(found.teacher) else [])]
    return Theory(steps, head, list(_matrix(found)), [*remarks, *_game_remarks(found)])


def _step(summary: IterationSummary) -> Row:
    bound, exploited = summary.improvement_bound, summary.exploitability
    cells = (
        Cell() if (kl := summary.kl_from_previous) is None else Cell(f"{kl.value:.2f}", f"{kl.low:.2f}–{kl.high:.2f}"),
        Cell() if bound is None else Cell(percent(bound.value), interval_range(bound)),
        _rate(summary.win_rate_vs_previous),
        Cell() if exploited is None else Cell(f"{exploited.value:.3f}", f"{exploited.low:.3f}–{exploited.high:.3f}"),
    )
    return Row(column_name(summary.iteration), cells)


def _matrix(found: Payoffs) -> Sequence[Row]:
    rows = []
    for place, policy in enumerate(found.policies):
        cells = [Cell("·") if place == other else _rate(cell) for other, cell in enumerate(found.matrix[place])]
        if any(found.teacher):
            cells.append(_rate(found.teacher[place]))
        rows.append(Row(column_name(policy), tuple(cells)))
    if found.equilibrium is not None:
        weights = [Cell(percent(abs(weight))) for weight in found.equilibrium]
        rows.append(
            Row("weight in the equilibrium", (*weights, *([Cell("·")] if any(found.teacher) else [])), minor=True)
        )
    return rows


def _rate(interval: Interval | None) -> Cell:
    return Cell("unknown") if interval is None else Cell(percent(interval.value), interval_range(interval))


def _bound_remarks(trained: Sequence[IterationSummary], recipe: Mapping[str, Any]) -> list[str]:
    if not any(s.improvement_bound for s in trained):
        return (
            [
                "No bound is shown: eq. (9) is about steps of the objectives dno and dno-prct "
                "from the policy that sampled the answers."
            ]
            if any(s.kl_from_previous for s in trained)
            else []
        )
    beta = recipe["objective"]["beta"]
    longest = 0.5 / beta
    said = [
        f"The bound, 1/2 + eta KL with eta = beta = {beta:g}, is promised to the exact minimiser of eq. (8) over all policies. "
        "A trained policy is not that: it takes a few gradient steps on some pairs, of training prompts, chosen by margin "
        "(with targets of 1 under dno-prct), and is measured at the sampling "
        "temperature. So this is a comparison, not a guarantee."
    ]
    far = [s.iteration for s in trained if s.kl_from_previous and s.kl_from_previous.value > longest]
    if far:
        said.append(
            f"No exact step with this eta is longer than 1/(2 eta) = {longest:g} nats, as none wins more than always; further "
            f"than that moved: iteration {', '.join(map(str, far))}."
        )
    return said


def _game_remarks(found: Payoffs) -> list[str]:
    names = NAMES | ({"last": "the average"} if found.policies[-1] == AVERAGE else {})
    parts = [
        f"{names[name]} {value.value:.3f} ({value.low:.3f}–{value.high:.3f})"
        for name, value in found.exploitability.items()
        if not (name == "best" and found.best == found.policies[-1])
    ]
    said = []
    if parts:
        said.append(
            f"Exploitability, the most that any policy of the run wins above one half: {', '.join(parts)}. A maximum over noisy "
            "figures is biased upwards; its interval is a bootstrap over prompts."
        )
    if found.unknown:
        pairs = "pair of policies was" if found.unknown == 1 else "pairs of policies were"
        said.append(
            f"{found.unknown} {pairs} never in one candidate set, so the figures are lower bounds and no equilibrium is "
            "known; validate.payoffs: true compares all."
        )
    return said
