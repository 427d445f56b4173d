"""MT-Bench's table: means by turn and category with intervals, and the win rate of paired games."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from nashtune.errors import EvaluationError
from nashtune.evaluate.winrate import student_t_quantile, win_rate
from nashtune.records import Interval
from nashtune.suites.mt_bench.judge import Game, Grade

UNUSABLE = -1.0
"""What FastChat's files hold for a reply without a rating."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Means of ratings from 1 to 10. ``average`` is over all rated turns, as FastChat shows it; its interval is clustered by
    question. ``unusable`` replies count nowhere but in ``average_as_stored``, where each counts as the -1 that FastChat
    stores for it: some published means are of that kind."""

    average: Interval
    average_as_stored: float
    first_turn: float | None
    second_turn: float | None
    categories: Mapping[str, float]
    rated: int
    unusable: int


def mt_bench_scores(grades: Sequence[Grade], confidence: float = 0.95) -> Scores:
    """Raises EvaluationError where no reply was usable."""
    rated = [(grade, grade.score) for grade in grades if grade.score is not None]
    if not rated:
        raise EvaluationError(f"mt_bench: none of the {len(grades)} replies holds a rating")

    def mean_of(wanted: Callable[[Grade], bool]) -> float | None:
        values = [score for grade, score in rated if wanted(grade)]
        return fmean(values) if values else None

    categories = dict.fromkeys(grade.category for grade, _ in rated)
    return Scores(
        average=_clustered_mean([(grade.question, score) for grade, score in rated], confidence),
        average_as_stored=fmean(UNUSABLE if grade.score is None else grade.score for grade in grades),
        first_turn=mean_of(lambda grade: grade.turn == 1),
        second_turn=mean_of(lambda grade: grade.turn == 2),
        categories={name: mean_of(lambda grade, name=name: grade.category == name) or 0.0 for name in categories},
        rated=len(rated),
        unusable=len(grades) - len(rated),
    )


def _clustered_mean(values: Iterable[tuple[int, float]], confidence: float) -> Interval:
    """The mean of all values; its error from the sums of residuals within each question (the turns of one depend)."""
    by_question: dict[int, list[float]] = defaultdict(list)
    for question, value in values:
        by_question[question].append(value)
    count = sum(map(len, by_question.values()))
    mean = math.fsum(v for vs in by_question.values() for v in vs) / count
    clusters = len(by_question)
    if clusters < 2:
        return Interval(mean, -math.inf, math.inf, clusters)
    residuals = [math.fsum(v - mean for v in vs) for vs in by_question.values()]
    error = stdev(residuals, 0.0) * math.sqrt(clusters) / count
    half = student_t_quantile(confidence, clusters - 1) * error
    return Interval(mean, mean - half, mean + half, clusters)


@dataclass(frozen=True, slots=True)
class PairScores:
    """The first model against the second. A game is won where both orders say so, else it is a tie; ``win_rate`` counts a
    tie as half a win (FastChat's adjusted win rate), its interval is clustered by question."""

    wins: int
    losses: int
    ties: int
    unusable: int
    win_rate: Interval
    flipped: int
    """Games whose two orders named different winners."""


def won(game: Game) -> float:
    """1 where both orders say that the first model won, 0 the second, else 1/2."""
    first, second = game.winners
    return {"1": 1.0, "2": 0.0}.get(str(first), 0.5) if first == second else 0.5


def pair_scores(games: Sequence[Game], confidence: float = 0.95) -> PairScores:
    """Raises EvaluationError where no game was usable in both orders."""
    values: dict[int, list[float]] = defaultdict(list)
    flipped = 0
    usable = [game for game in games if None not in game.winners]
    if not usable:
        raise EvaluationError(f"mt_bench: none of the {len(games)} games has a verdict in both orders")
    for game in usable:
        flipped += set(game.winners) == {"1", "2"}
        values[game.question].append(won(game))
    every = [value for found in values.values() for value in found]
    return PairScores(
        wins=every.count(1.0),
        losses=every.count(0.0),
        ties=every.count(0.5),
        unusable=len(games) - len(usable),
        win_rate=win_rate([fmean(found) for found in values.values()], confidence),
        flipped=flipped,
    )
