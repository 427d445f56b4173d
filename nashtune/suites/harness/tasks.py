"""The tasks of the Open LLM leaderboard (its first version, which method.md's paper reports), with its shots and metrics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HarnessTask:
    """A task or a group of tasks by lm-evaluation-harness's name. ``shots`` None: as the task says. ``filter`` is how its
    answers are read, "none" where there is one way only."""

    task: str
    shots: int | None
    metric: str
    filter: str = "none"


OPEN_LLM = (
    HarnessTask("arc_challenge", 25, "acc_norm"),
    HarnessTask("gsm8k", 5, "exact_match", "strict-match"),
    HarnessTask("hellaswag", 10, "acc_norm"),
    HarnessTask("mmlu", 5, "acc"),
    HarnessTask("truthfulqa_mc2", 0, "acc"),  # its acc is the leaderboard's mc2: the true answers' share of probability
    HarnessTask("winogrande", 5, "acc"),
)
