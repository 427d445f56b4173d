"""Is a policy worse at a task than the initial one, beyond what chance explains?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

Result = Mapping[str, Any]
"""What process.run_tasks gives for a task."""


@dataclass(frozen=True, slots=True)
class Change:
    """A task's metric before and after. ``stderr`` is that of the difference: paired by document where both were asked the
    same ones (``documents`` of them), else from the two independent errors; None where not known."""

    task: str
    metric: str
    before: float
    after: float
    stderr: float | None
    documents: int
    higher_is_better: bool

    @property
    def paired(self) -> bool:
        return self.documents > 0

    @property
    def difference(self) -> float:
        """After less before."""
        return self.after - self.before

    @property
    def gain(self) -> float:
        """The difference, positive where it is better."""
        return self.difference if self.higher_is_better else -self.difference

    def regressed(self, errors: float = 1.0) -> bool:
        """Worse by more than so many standard errors of the difference; never where that is not known."""
        return self.stderr is not None and -self.gain > errors * self.stderr

    def said(self) -> str:
        """One line for people."""
        error = "error not known" if self.stderr is None else f"standard error {self.stderr:.4f}"
        how = f"paired over {self.documents} documents" if self.paired else "independent errors"
        return (
            f"{self.task} {self.metric}: {self.before:.4f} -> {self.after:.4f} ({self.difference:+.4f}, {error}, {how})"
        )


def changes(before: Sequence[Result], after: Sequence[Result]) -> list[Change]:
    """Of each task that both have by the same metric."""
    earlier = {_name(result): result for result in before}
    return [_change(earlier[_name(result)], result) for result in after if _name(result) in earlier]


def regressions(before: Sequence[Result], after: Sequence[Result], errors: float = 1.0) -> list[Change]:
    """Those changes that are regressions beyond so many standard errors."""
    return [change for change in changes(before, after) if change.regressed(errors)]


def _name(result: Result) -> tuple[str, str, str]:
    return result["task"], result["metric"], result["filter"]


def _change(before: Result, after: Result) -> Change:
    differences = _paired(before, after)
    if len(differences) > 1:
        error: float | None = stdev(differences) / math.sqrt(len(differences))
    else:
        both = (before["stderr"], after["stderr"])
        error = None if None in both else math.hypot(*both)
    return Change(
        task=after["task"],
        metric=after["metric"],
        before=before["value"],
        after=after["value"],
        stderr=error,
        documents=len(differences) if len(differences) > 1 else 0,
        higher_is_better=_higher_is_better(after),
    )


def items(result: Result) -> dict[str, float]:
    """Document -> value, of all the tasks in a group; empty where the metric is no mean over documents."""
    found = {f"{task}/{doc}": value for task, docs in result["samples"].items() for doc, value in docs.items()}
    mean = fmean(found.values()) if found else math.nan
    return found if math.isclose(mean, result["value"], rel_tol=1e-9, abs_tol=1e-9) else {}


def _paired(before: Result, after: Result) -> list[float]:
    """After less before by document; empty unless both were asked the very same, in which case the tasks' hashes agree."""
    if before["task_hashes"] != after["task_hashes"]:
        return []
    first, second = items(before), items(after)
    return [second[doc] - first[doc] for doc in second] if first.keys() == second.keys() else []


def _higher_is_better(result: Result) -> bool:
    """As the task says; of a group, as its first task does."""
    tasks = [result["task"], *result["samples"]]
    found = (result["higher_is_better"].get(task, {}).get(result["metric"]) for task in tasks)
    return next((bool(value) for value in found if value is not None), True)
