"""Arena-Hard's figures for one model: win rates overall and by category, as published and with intervals by prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nashtune.errors import EvaluationError
from nashtune.evaluate.winrate import score_interval
from nashtune.records import Interval
from nashtune.suites.arena_hard.battles import Battles, battles_of
from nashtune.suites.arena_hard.bradley_terry import Bootstrapped, StyleControlled, style_controlled
from nashtune.suites.arena_hard.style import Style
from nashtune.suites.arena_hard.verdicts import DECISIVE, Game, is_decisive

DEGREES = ("significantly worse", "slightly worse", "tie", "slightly better", "significantly better")
ROUNDS = 100


@dataclass(frozen=True, slots=True)
class Figure:
    """A model against its baseline, on some prompts. Both win rates are the mean over the verdicts of both orders, a tie half
    a win, a significant verdict counted three times; None where no game is usable."""

    win_rate: Interval | None
    """With an interval clustered by prompt."""
    published: Bootstrapped | None
    """As upstream shows it: mean, 5th and 95th percentile of bootstrap samples of the verdicts."""
    style_controlled: StyleControlled | None
    style_reason: str
    """Why there is no style-controlled figure."""
    verdicts: Mapping[str, int]
    """How often each of the five degrees was said of the model, in usable games of two orders."""
    flipped: int
    """Games whose two orders named different winners."""
    games: int
    unusable: int
    """Games left out, as the reply to one or both orders was unusable."""


@dataclass(frozen=True, slots=True)
class Scores:
    """``overall`` takes categories together, though each has its own baseline; what is published is by category."""

    model: str
    judges: tuple[str, ...]
    baselines: tuple[str, ...]
    overall: Figure
    categories: Mapping[str, Figure]


def arena_hard_scores(
    games: Sequence[Game],
    styles: Mapping[str, Mapping[str, Style]] | None = None,
    confidence: float = 0.95,
    weight: int = DECISIVE,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> Scores:
    """Scores of one model's games, by one judge or several together. ``styles`` of its and its baselines' answers, by model and
    question, give the style-controlled figures.

    Raises EvaluationError for games of several models, and where none is usable.
    """
    models = sorted({game.model for game in games})
    if len(models) != 1:
        raise EvaluationError(f"arena_hard: games of {len(models)} models ({', '.join(models)}); accepted: one")
    battles_of(games, weight)  # refused where none is usable

    def figure(some: Sequence[Game]) -> Figure:
        return _figure(some, styles, confidence, weight, rounds, seed)

    categories = dict.fromkeys(game.category for game in games)
    return Scores(
        model=models[0],
        judges=tuple(sorted({game.judge for game in games})),
        baselines=tuple(sorted({game.baseline for game in games})),
        overall=figure(games),
        categories={name: figure([game for game in games if game.category == name]) for name in categories},
    )


def _figure(
    games: Sequence[Game],
    styles: Mapping[str, Mapping[str, Style]] | None,
    confidence: float,
    weight: int,
    rounds: int,
    seed: int,
) -> Figure:
    usable = [game for game in games if game.usable]
    degrees = Counter(degree for game in usable for degree in _degrees(game))
    win_rate = published = controlled = None
    reason = "" if usable else "no usable game"
    if usable:
        battles = battles_of(usable, weight)
        win_rate = clustered_win_rate(battles, confidence)
        published = published_win_rate(battles, rounds, seed)
        if styles is None:
            reason = "no styles given"
        else:
            try:
                controlled = style_controlled(battles, styles, confidence=confidence, seed=seed)
            except EvaluationError as error:
                reason = str(error)
    return Figure(
        win_rate=win_rate,
        published=published,
        style_controlled=controlled,
        style_reason=reason,
        verdicts={name: degrees[name] for name in DEGREES},
        flipped=sum(set(game.scores()) == {0.0, 1.0} for game in usable),
        games=len(games),
        unusable=len(games) - len(usable),
    )


def _degrees(game: Game) -> list[str]:
    found = []
    for verdict, score in zip(game.verdicts, game.scores(), strict=True):
        if verdict is not None and score is not None:
            away = 0 if score == 0.5 else 2 if is_decisive(verdict) else 1
            found.append(DEGREES[2 + (away if score > 0.5 else -away)])
    return found


def clustered_win_rate(battles: Battles, confidence: float) -> Interval:
    """The weighted mean of all verdicts; its error from the sums of weighted residuals within each prompt, as a ratio of two
    sums over prompts (Taylor linearisation)."""
    p = battles.mean()
    _, prompt = np.unique(battles.uid, return_inverse=True)
    residuals = np.bincount(prompt, battles.weight * (battles.score - p))
    n, total = len(residuals), float(battles.weight.sum())
    spread = n * n / (n - 1) * float(residuals @ residuals) / total**2 if n > 1 else 0.0
    return score_interval(p, spread, n, confidence)


def published_win_rate(battles: Battles, rounds: int = ROUNDS, seed: int = 0) -> Bootstrapped:
    """Mean and 5th to 95th percentile of the means of ``rounds`` samples of battles."""
    means = [battles.mean(weight) for weight in battles.drawn("battles", rounds, seed)]
    low, high = np.percentile(means, (5, 95))
    return Bootstrapped(float(np.mean(means)), float(low), float(high), rounds)
