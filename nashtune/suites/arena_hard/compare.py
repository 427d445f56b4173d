"""Two models on the prompts that both have usable games on: differences of their win rates, with p-values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nashtune.errors import EvaluationError
from nashtune.evaluate.significance import sign_flip
from nashtune.records import Interval
from nashtune.suites.arena_hard.battles import Battles, battles_of
from nashtune.suites.arena_hard.bradley_terry import style_controlled
from nashtune.suites.arena_hard.style import Floats, Style
from nashtune.suites.arena_hard.verdicts import Game

RESAMPLES = 400


@dataclass(frozen=True, slots=True)
class Paired:
    """Two models' battles on the same prompts, and weights for both in each resample of these prompts."""

    prompts: tuple[str, ...]
    a: Battles
    b: Battles
    draws: tuple[np.ndarray, ...]

    def weights(self, battles: Battles) -> list[Floats]:
        """As given, then by draw."""
        place = np.searchsorted(self.prompts, battles.uid)
        return [battles.weight, *(battles.weight * draw[place] for draw in self.draws)]


def paired(a: Sequence[Game], b: Sequence[Game], seed: int = 0) -> Paired:
    """Raises EvaluationError where no prompt has usable games of both."""
    prompts = sorted({game.uid for game in a if game.usable} & {game.uid for game in b if game.usable})
    if not prompts:
        raise EvaluationError("arena_hard: no prompt has usable games of both")
    rng, n = np.random.default_rng(seed), len(prompts)
    draws = tuple(rng.multinomial(n, np.full(n, 1 / n)) for _ in range(RESAMPLES))
    common = set(prompts)
    sides = [battles_of([game for game in games if game.uid in common]) for games in (a, b)]
    return Paired(tuple(prompts), sides[0], sides[1], draws)


def win_rate_difference(pair: Paired, confidence: float) -> tuple[Interval, float]:
    """a less b in points of percent. The p-value is of swapping the two models' verdicts on a prompt, at random: what a prompt
    adds is its weighted scores less what the win rate of both together (which no swap changes) would give."""
    a, b = pair.a, pair.b
    both = float(a.weight @ a.score + b.weight @ b.score) / float(a.weight.sum() + b.weight.sum())
    adds = np.zeros(len(pair.prompts))
    for side, sign in ((a, 1.0), (b, -1.0)):
        np.add.at(adds, np.searchsorted(pair.prompts, side.uid), sign * side.weight * (side.score - both))
    ours, theirs = (np.array([side.mean(weight) for weight in pair.weights(side)]) for side in (a, b))
    return _interval(100 * (ours - theirs), confidence, len(pair.prompts)), sign_flip(adds.tolist(), two_sided=True)


def style_controlled_difference(
    pair: Paired, styles: tuple[dict[str, dict[str, Style]], dict[str, dict[str, Style]]], confidence: float
) -> tuple[Interval, float]:
    """The same of style-controlled win rates; the p-value is twice the smaller share of resamples on one side of 0. ``styles``
    as style_controlled takes them, for a and b. Raises EvaluationError as it does."""
    rates = []
    for side, known in zip((pair.a, pair.b), styles, strict=True):
        (drawn,) = style_controlled(side, known, resamples=pair.weights(side)).drawn.values()
        rates.append(drawn)
    values = 100 * (rates[0] - rates[1])
    beyond = 1 + min(int((values[1:] <= 0).sum()), int((values[1:] >= 0).sum()))
    return _interval(values, confidence, len(pair.prompts)), min(1.0, 2 * beyond / (1 + RESAMPLES))


def _interval(values: Floats, confidence: float, prompts: int) -> Interval:
    """``values``: of all prompts, then of each resample."""
    low, high = np.quantile(values[1:], [(1 - confidence) / 2, (1 + confidence) / 2])
    value = float(values[0])
    return Interval(value, float(min(low, value)), float(max(high, value)), prompts)
