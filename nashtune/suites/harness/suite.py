"""lm-evaluation-harness as a suite that runs the policy itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist, fmean
from typing import TYPE_CHECKING, Any

from nashtune.errors import EvaluationError
from nashtune.recipe import EngineSection, HarnessSection
from nashtune.records import Interval, Prompt
from nashtune.store.files import write_json
from nashtune.suites.harness.compare import changes, items
from nashtune.suites.harness.process import check_installed, include_digest, run_tasks
from nashtune.suites.suite import Answers, Decoding, Given, Row, ScoreTable, SuiteScores

if TYPE_CHECKING:
    from nashtune.judging.dispatch import Dispatcher

RESULTS = "results.json"


class HarnessSuite:
    """One row a task, as process.run_tasks gives it."""

    turns = 0
    reads_logprobs = False
    calls = 0

    def __init__(self, section: HarnessSection) -> None:
        self.section = section

    @property
    def engine(self) -> EngineSection | None:
        return None

    def check(self) -> None:
        check_installed(self.section)

    def identity(self) -> dict[str, Any]:
        return {"tasks": include_digest(self.section)}

    def run(self, policy_folder: Path, work_folder: Path) -> list[Row]:
        """Evaluate the model in ``policy_folder``; tasks finished before are taken from ``work_folder``."""
        return run_tasks(policy_folder, work_folder, self.section)

    def scores(self, rows: Sequence[Row], answers: Answers, confidence: float) -> SuiteScores:
        quantile = NormalDist().inv_cdf((1 + confidence) / 2)
        found = {row["task"]: self._interval(row, quantile) for row in rows}
        average = {"": _average(list(found.values()))} if self.section.averages else {}
        return SuiteScores(
            metrics=average | found,
            items={row["task"]: {doc: self._scale(row) * value for doc, value in items(row).items()} for row in rows},
            counts={"tasks": len(rows), "verdicts": sum(_documents(row) for row in rows)},
            facts={
                "packages": rows[0]["packages"],
                "versions": {task: version for row in rows for task, version in row["versions"].items()},
                "task_hashes": {task: digest for row in rows for task, digest in row["task_hashes"].items()},
            },
            tables=(self._by_task(rows),),
            warnings=tuple(self._warnings()),
        )

    def with_initial(self, scores: SuiteScores, initial: Sequence[Row], rows: Sequence[Row]) -> SuiteScores:
        """With every task's change from the initial policy, and a warning for each regression."""
        found = changes(initial, rows)
        scale = {row["task"]: self._scale(row) for row in rows}
        shown = tuple(
            (
                one.task,
                (
                    scale[one.task] * one.difference,
                    None if one.stderr is None else scale[one.task] * one.stderr,
                    float(one.documents),
                    float(one.regressed(self.section.regression_errors)),
                ),
            )
            for one in found
        )
        columns = ("change", "standard error", "paired documents", "regression")
        lost = [one for one in found if one.regressed(self.section.regression_errors)]
        said = tuple(
            f"regression against the initial policy, beyond {self.section.regression_errors:g} standard errors: {one.said()}"
            for one in lost
        )
        table = ScoreTable("against the initial policy", columns, shown)
        return replace(scores, tables=(*scores.tables, table), warnings=(*scores.warnings, *said))

    def _scale(self, row: Row) -> float:
        return 100.0 if self.section.unit(row["task"]) == "%" else 1.0

    def _interval(self, row: Row, quantile: float) -> Interval:
        """Where lm-evaluation-harness knows no error, the ends are infinite (not known)."""
        scale = self._scale(row)
        half = math.inf if row["stderr"] is None else quantile * scale * row["stderr"]
        return Interval(scale * row["value"], scale * row["value"] - half, scale * row["value"] + half, _documents(row))

    def _by_task(self, rows: Sequence[Row]) -> ScoreTable:
        shown = tuple(
            (
                f"{row['task']} {row['metric']}",
                (
                    self._scale(row) * row["value"],
                    None if row["stderr"] is None else self._scale(row) * row["stderr"],
                    float(max(row["shots"].values(), default=0)),
                    float(_documents(row)),
                ),
            )
            for row in rows
        )
        return ScoreTable("by task", ("value", "standard error", "shots", "documents"), shown)

    def _warnings(self) -> list[str]:
        limit = self.section.limit
        return [] if limit is None else [f"limit is {limit}: figures of so few documents are for tries only"]

    def export(self, folder: Path, rows: Sequence[Row], answers: Answers, generator: str) -> list[Path]:
        """The results without the documents' values, which items.json has."""
        kept = [{name: value for name, value in row.items() if name != "samples"} for row in rows]
        write_json(folder / RESULTS, {"model": generator, "tasks": kept})
        return [folder / RESULTS]

    # ---- what only suites that sample have -----------------------------------------------------------------------------

    def prompts(self, turn: int, earlier: Answers) -> list[Prompt]:
        return []

    def decoding(self, item: int) -> Decoding:
        raise EvaluationError("harness: nothing is sampled here; lm-evaluation-harness asks the policy itself")

    async def judge(self, answers: Answers, dispatcher: Dispatcher | None) -> list[Row]:
        raise EvaluationError("harness: there are no answers to judge; lm-evaluation-harness scores the policy itself")

    def read_answers(self, file: Path) -> Given:
        raise EvaluationError(f"{file}: harness runs the policy itself; accepted: a model, no file of answers")


def _documents(row: Row) -> int:
    """How many documents the figure is over."""
    return sum(row["counts"][task]["effective"] for task in row["samples"])


def _average(intervals: Sequence[Interval]) -> Interval:
    """The tasks' plain mean, as the leaderboard's; its error from the tasks' independent ones. ``n`` counts tasks."""
    half = math.sqrt(math.fsum((one.high - one.value) ** 2 for one in intervals)) / len(intervals)
    mean = fmean(one.value for one in intervals)
    return Interval(mean, mean - half, mean + half, len(intervals))
