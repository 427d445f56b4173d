"""Games as battles: one row for each order's verdict, with its weight; and how they are drawn again for intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nashtune.errors import EvaluationError
from nashtune.suites.arena_hard.style import Floats
from nashtune.suites.arena_hard.verdicts import DECISIVE, Game, is_decisive

Unit = Literal["prompts", "battles"]
"""What is drawn with replacement. prompts: a prompt's verdicts together, as they depend on one another; battles: each by
itself, as upstream does."""


@dataclass(frozen=True, slots=True, eq=False)
class Battles:
    """N verdicts. ``score`` [N] is the model's (1 a win, 0.5 a tie), ``weight`` [N] how often it counts."""

    uid: NDArray[np.str_]
    model: NDArray[np.str_]
    baseline: NDArray[np.str_]
    score: Floats
    weight: Floats

    def mean(self, weight: Floats | None = None) -> float:
        """The win rate: the weighted mean of the scores."""
        weight = self.weight if weight is None else weight
        return float(weight @ self.score / weight.sum())

    def drawn(self, unit: Unit, rounds: int, seed: int) -> Iterator[Floats]:
        """Weights [N] of ``rounds`` bootstrap samples. By battles, a decisive verdict is as many rows as its weight, each
        drawn by itself."""
        rng = np.random.default_rng(seed)
        if unit == "battles":
            total = round(float(self.weight.sum()))
            for _ in range(rounds):
                yield rng.multinomial(total, self.weight / self.weight.sum()).astype(float)
            return
        _, prompt = np.unique(self.uid, return_inverse=True)
        count = int(prompt.max()) + 1
        for _ in range(rounds):
            yield self.weight * rng.multinomial(count, np.full(count, 1 / count))[prompt]


def battles_of(games: Sequence[Game], weight: int = DECISIVE, whole: bool = True) -> Battles:
    """Two battles of each game. ``whole``: a game with an unusable order is left out, as for v2.0; else only that order is, as
    for v0.1. Raises EvaluationError where none is usable."""
    rows = []
    for game in games:
        if whole and not game.usable:
            continue
        for verdict, score in zip(game.verdicts, game.scores(), strict=True):
            if verdict is not None and score is not None:
                rows.append((game.uid, game.model, game.baseline, score, weight if is_decisive(verdict) else 1))
    if not rows:
        raise EvaluationError(f"arena_hard: none of the {len(games)} games has usable verdicts")
    uid, model, baseline, score, weights = zip(*rows, strict=True)
    return Battles(
        np.array(uid), np.array(model), np.array(baseline), np.array(score, dtype=float), np.array(weights, dtype=float)
    )
