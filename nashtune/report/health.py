"""The judge's health as text: one row per judging stage, and a sentence per alarm. Reads what a stage recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nashtune.records import Interval
from nashtune.report.tables import SPACE, UNKNOWN, Cell, Row, count, interval_range, percent

SETS = {"judge": "training", "validate-judge": "held-out"}
"""What a judging stage judges, in a word."""


@dataclass(frozen=True, slots=True)
class JudgedStage:
    """A judging stage's health as it is recorded (JudgeHealth.to_dict)."""

    iteration: int
    stage: str
    health: Mapping[str, Any]

    @property
    def label(self) -> str:
        return f"{self.iteration}, {SETS.get(self.stage, self.stage)}"


@dataclass(frozen=True, slots=True)
class HealthTable:
    """One row per judging stage; ``columns`` are the measures known in any of them, ``unmeasured`` the others."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    unmeasured: tuple[str, ...]


def health_table(stages: Sequence[JudgedStage]) -> HealthTable:
    """The stages in their order."""
    known = [(name, cell) for name, cell in COLUMNS if any(cell(s.health).text != UNKNOWN for s in stages)]
    shown = tuple(name for name, _ in known)
    rows = tuple(Row(s.label, tuple(cell(s.health) for _, cell in known)) for s in stages)
    return HealthTable(shown, rows, tuple(name for name, _ in COLUMNS if name not in shown))


def health_alarms(stages: Sequence[JudgedStage]) -> list[str]:
    """A sentence per alarm."""
    return [
        f"Iteration {s.iteration}, judge on {SETS.get(s.stage, s.stage)} prompts: {alarm['message']} "
        f"(threshold {alarm['threshold']:g})."
        for s in stages
        for alarm in s.health.get("alarms", ())
    ]


def _part(health: Mapping[str, Any], *path: str) -> Any:
    """A nested value, None where it or what holds it is unknown."""
    value: Any = health
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _share(*path: str) -> Callable[[Mapping[str, Any]], Cell]:
    def cell(health: Mapping[str, Any]) -> Cell:
        value = _part(health, *path)
        return Cell() if value is None else Cell(percent(value))

    return cell


def _interval(*path: str) -> Callable[[Mapping[str, Any]], Cell]:
    def cell(health: Mapping[str, Any]) -> Cell:
        value = _part(health, *path)
        if value is None:
            return Cell()
        interval = Interval(**value)
        return Cell(percent(interval.value), interval_range(interval))

    return cell


def _tested(value: str, p: str, *path: str) -> Callable[[Mapping[str, Any]], Cell]:
    """A number with its p-value below."""

    def cell(health: Mapping[str, Any]) -> Cell:
        part = _part(health, *path)
        if part is None or part[value] is None:
            return Cell()
        return Cell(f"{part[value]:.2f}", "" if part[p] is None else f"p{SPACE}{part[p]:.2g}")

    return cell


def _drift(health: Mapping[str, Any]) -> Cell:
    change, flips = _part(health, "drift", "mean_change"), _part(health, "drift", "flips")
    again = _part(health, "drift", "rejudged")
    turned = "" if flips is None else f"{percent(flips)} flipped"
    turned += "" if again is None else f"; {again:.2f} judged at once"
    return Cell(turned) if change is None and turned else Cell() if change is None else Cell(f"{change:.2f}", turned)


COLUMNS: tuple[tuple[str, Callable[[Mapping[str, Any]], Cell]], ...] = (
    ("judgements", lambda health: Cell(count(health["judgments"]))),
    ("usable", _share("usable")),
    ("place effect", _tested("effect", "p", "position")),
    ("longer wins", _interval("length", "preference")),
    ("length corr.", _tested("correlation", "p", "length")),
    ("student over teacher", _interval("favour", "student")),
    ("own model", _interval("favour", "own_model")),
    ("ties", _share("spread", "ties")),
    ("all equal", _share("spread", "equal_sets")),
    ("cycles", _share("cycles", "share")),
    ("flipped by order", _share("flipped")),
    ("panel agrees", _share("members")),
    ("repeats audit", _interval("audit", "balanced_accuracy")),
    ("drift", _drift),
)
"""Measures of a judge, in the order shown."""
