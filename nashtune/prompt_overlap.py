"""Which prompts share a run of words with an evaluation's prompts (contamination)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
"""Words are compared in lower case and without punctuation, so that a changed comma hides nothing; where a script writes no
spaces (Chinese, Japanese, Korean here), each character is one."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """What a text shares: the evaluations by name, and the words."""

    sets: tuple[str, ...]
    words: str


class OverlapIndex:
    """The n-word runs of evaluations' prompts. A prompt shorter than n words counts as a whole: a text overlaps with it where
    it holds all its words in a row, if those are at least ``shortest``."""

    def __init__(self, sets: Mapping[str, Iterable[str]], n: int, shortest: int = 5) -> None:
        self._n = n
        self._runs: dict[int, dict[str, int]] = {}
        """Length of run -> its words -> bits of the sets that have it."""
        self._names = tuple(sets)
        for bit, texts in enumerate(sets.values()):
            for text in texts:
                self._add(words_of(text), 1 << bit, shortest)

    def _add(self, words: Sequence[str], bit: int, shortest: int) -> None:
        size = min(self._n, len(words))
        if size < min(shortest, self._n):
            return
        runs = self._runs.setdefault(size, {})
        for run in runs_of(words, size):
            runs[run] = runs.get(run, 0) | bit

    def overlap(self, text: str) -> Overlap | None:
        """What ``text`` shares with the evaluations, None where nothing."""
        words = words_of(text)
        bits, first = 0, ""
        for size, runs in self._runs.items():
            for run in runs_of(words, size):
                if found := runs.get(run, 0):
                    bits, first = bits | found, first or run
        return Overlap(tuple(name for i, name in enumerate(self._names) if bits >> i & 1), first) if bits else None


def words_of(text: str) -> list[str]:
    """A text's words, folded."""
    return WORD.findall(text.lower())


def runs_of(words: Sequence[str], size: int) -> list[str]:
    """All runs of ``size`` words in a row."""
    return [" ".join(words[i : i + size]) for i in range(len(words) - size + 1)]
