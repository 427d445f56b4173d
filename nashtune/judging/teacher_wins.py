"""SPIN's oracle: nobody is asked, the teacher's answer beats every answer of the student's (arXiv 2401.01335)."""

from __future__ import annotations

from collections.abc import Sequence

from nashtune.records import Judgment, Prompt, Response


class TeacherWins:
    """Scores 1 for a teacher's answer and 0 for a student's. A set without a teacher's answer is unusable."""

    name = "teacher_wins"
    needs_logprobs: frozenset[str] = frozenset()

    async def judge(self, prompt: Prompt, candidates: Sequence[Response], seed: int) -> Judgment:
        ids = tuple(c.id for c in candidates)
        scores = tuple(float(c.source == "teacher") for c in candidates)
        if not any(scores):
            return Judgment(prompt.id, ids, self.name, outcome="unusable", reason="no teacher's answer")
        return Judgment(prompt.id, ids, self.name, scores=scores)

    async def aclose(self) -> None: ...
