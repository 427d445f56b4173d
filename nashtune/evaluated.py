"""What evaluations by suites left in a folder.

    EVALUATIONS/NAME/PLACE/identity.json    what decides the figures; written first, and never changed
    EVALUATIONS/NAME/PLACE/answers-*/       committed units of answers
    EVALUATIONS/NAME/PLACE/verdicts.jsonl   a row a verdict
    EVALUATIONS/NAME/PLACE/items.json       the values that paired comparisons need, by metric and item
    EVALUATIONS/NAME/PLACE/scores.json      the figures; written last

In a run EVALUATIONS is RUN/evaluations, NAME the evaluation's (the suite's unless it has another), and PLACE iteration-T or
average.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nashtune.errors import StoreError
from nashtune.store.files import read_json
from nashtune.summaries import AVERAGE

Scores = dict[str, Any]
"""The contents of a scores.json."""


def place_of(iteration: int) -> str:
    """The folder of an iteration's policy inside an evaluation's."""
    return "average" if iteration == AVERAGE else f"iteration-{iteration}"


def iteration_of(place: str) -> int | None:
    """The iteration whose folder it is; None where it is none's."""
    if place == "average":
        return AVERAGE
    number = place.removeprefix("iteration-")
    return int(number) if number != place and number.isdigit() else None


def scores_of(run_folder: Path, name: str, iteration: int) -> Scores | None:
    """The figures of a run's policy; None where it is not evaluated (to the end)."""
    file = run_folder / "evaluations" / name / place_of(iteration) / "scores.json"
    return read_json(file) if file.exists() else None


def all_scores(run_folder: Path) -> dict[str, dict[int, Scores]]:
    """Of each evaluation of a run, the figures by iteration, in their order; the average last."""
    found: dict[str, dict[int, Scores]] = {}
    for file in sorted((run_folder / "evaluations").glob("*/*/scores.json")):
        if (iteration := iteration_of(file.parent.name)) is not None:
            found.setdefault(file.parent.parent.name, {})[iteration] = read_json(file)
    order = {AVERAGE: float("inf")}
    return {name: dict(sorted(by.items(), key=lambda one: order.get(one[0], one[0]))) for name, by in found.items()}


def selection(scores: Scores | None, metric: str) -> tuple[float | None, str]:
    """A metric's value, and why the policy may not be chosen by it ("" where it may)."""
    if scores is None or metric not in scores["metrics"]:
        return None, ""
    return scores["metrics"][metric]["value"], scores["unfit"].get(metric, "")


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Verdicts. Raises StoreError naming the file where it is damaged."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # texts hold other separators of lines
        return [json.loads(line) for line in lines if line]
    except ValueError as error:
        raise StoreError(f"{file}: damaged: {error}") from None


def read_items(run_folder: Path, name: str, iteration: int) -> Mapping[str, Mapping[str, float]]:
    """Metric -> item -> value."""
    file = run_folder / "evaluations" / name / place_of(iteration) / "items.json"
    return read_json(file) if file.exists() else {}
