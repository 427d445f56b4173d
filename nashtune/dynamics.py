"""How students do against their teachers as iterations pass: the columns of the paper's Table 2."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from nashtune.pairs import TOLERANCE, Item, candidates_of
from nashtune.records import Judgment, Prompt, Response, Source


@dataclass(slots=True)
class _Mean:
    """Running count, sum and sum of squares."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        self.count, self.total, self.squares = self.count + 1, self.total + value, self.squares + value * value

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None

    @property
    def sd(self) -> float | None:
        """Sample standard deviation (n - 1)."""
        if self.count < 2:
            return None
        return math.sqrt(max(0.0, self.squares - self.total**2 / self.count) / (self.count - 1))


@dataclass(slots=True)
class Dynamics:
    """Gathers the columns of the paper's Table 2 while items stream by.

    A student beats the teacher where its value (score, else r) is strictly higher, an automatic negative counting as
    lowest; the best teacher's answer stands for a prompt's teacher. Mean scores are the judge's own. Prompts without a
    usable judgment, a teacher of known value and a student of known value count in ``inputs`` and words alone.
    """

    inputs: int = 0
    words: _Mean = field(default_factory=_Mean)
    best_beats: _Mean = field(default_factory=_Mean)
    wins: _Mean = field(default_factory=_Mean)
    scores: dict[Source, _Mean] = field(default_factory=lambda: {"student": _Mean(), "teacher": _Mean()})

    def watch(self, items: Iterable[Item]) -> Iterator[Item]:
        """Pass ``items`` on, adding each."""
        for item in items:
            self.add(*item)
            yield item

    def add(self, prompt: Prompt, responses: Sequence[Response], judgment: Judgment) -> None:
        """Count one prompt. Raises PairError as build_pairs does."""
        candidates = candidates_of(prompt, responses, judgment)
        self.inputs += 1
        for response in responses:
            if response.source == "student":
                self.words.add(len(response.text.split()))
        if judgment.outcome != "ok":
            return
        own = dict(zip(judgment.response_ids, judgment.scores, strict=True)) if judgment.scores else {}
        for response in responses:
            if (score := own.get(response.id)) is not None:
                self.scores[response.source].add(score)
        teachers = [c.value for c in candidates if c.response.source == "teacher"]
        students = [c.value for c in candidates if c.response.source == "student"]
        if teachers and students:
            wins = sum(value > max(teachers) + TOLERANCE for value in students)
            self.wins.add(wins)
            self.best_beats.add(wins > 0)

    def columns(self) -> dict[str, float | None]:
        """Table 2's columns so far; words are whitespace-separated, None is "nothing to measure"."""
        return {
            "inputs": float(self.inputs),
            "student_words_mean": self.words.mean,
            "student_words_sd": self.words.sd,
            "best_of_n_beats_teacher": self.best_beats.mean,
            "student_wins_per_prompt": self.wins.mean,
            "student_score": self.scores["student"].mean,
            "teacher_score": self.scores["teacher"].mean,
        }


def dynamics(items: Iterable[Item]) -> dict[str, float | None]:
    """The columns of the paper's Table 2 for ``items`` (the arguments and errors of build_pairs)."""
    gathered = Dynamics()
    for item in items:
        gathered.add(*item)
    return gathered.columns()
