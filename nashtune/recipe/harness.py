"""Tasks of lm-evaluation-harness, and the Open LLM leaderboard's choice of them."""

from __future__ import annotations

from pydantic import Field

from nashtune.recipe.base import Section

SHARES = frozenset(
    {"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "em", "f1", "mc1", "mc2", "pass@1"}
)
"""Metrics that lm-evaluation-harness gives as shares of 1, shown as percent; others are shown as they come."""


class HarnessTask(Section):
    """A task, or a group of tasks."""

    task: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """Its name in lm-evaluation-harness or in `include_path`."""
    shots: int | None = Field(default=None, ge=0)
    """Examples before each question; null as the task says."""
    metric: str = "acc"
    """Which of its metrics is read."""
    filter: str = "none"
    """How its answers are read, where the task has several ways; none where it has one."""

    @property
    def unit(self) -> str:
        return "%" if self.metric in SHARES else ""


OPEN_LLM = (
    HarnessTask(task="arc_challenge", shots=25, metric="acc_norm"),
    HarnessTask(task="gsm8k", shots=5, metric="exact_match", filter="strict-match"),
    HarnessTask(task="hellaswag", shots=10, metric="acc_norm"),
    HarnessTask(task="mmlu", shots=5, metric="acc"),
    HarnessTask(task="truthfulqa_mc2", shots=0, metric="acc"),  # its acc is the leaderboard's mc2
    HarnessTask(task="winogrande", shots=5, metric="acc"),
)
"""As the leaderboard's first version, which arXiv 2404.03715 reports, ran them."""
