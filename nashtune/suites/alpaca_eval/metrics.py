"""Win rates of a judged run of AlpacaEval, as its leaderboard defines them, and what it leaves out: their uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nashtune.errors import EvaluationError
from nashtune.evaluate.winrate import win_rate
from nashtune.records import Interval

if TYPE_CHECKING:
    from collections.abc import Callable

Floats = NDArray[np.float64]
TIE = 1.5
"""A preference between 1 (the baseline's answer) and 2 (the model's)."""


@dataclass(frozen=True, slots=True, eq=False)
class JudgedRun:
    """One model's N judged answers, in the order of the published file. ``index`` [N] is each prompt's place in the set of
    prompts; ``preferences`` [N] are 1..2, NaN where the judge gave none, 0 an old way of writing a tie; ``lengths`` [N] and
    ``baseline_lengths`` [N] are in characters."""

    model: str
    index: NDArray[np.int64]
    preferences: Floats
    lengths: Floats
    baseline_lengths: Floats

    def __post_init__(self) -> None:
        sizes = {len(self.index), len(self.preferences), len(self.lengths), len(self.baseline_lengths)}
        if len(sizes) > 1 or sizes == {0}:
            raise EvaluationError(
                f"{self.model}: columns of {sorted(sizes)} rows; accepted: one row for each answer, and at least one"
            )
        if len(set(self.index.tolist())) < len(self.index):
            raise EvaluationError(f"{self.model}: a prompt is judged twice; accepted: one judgment for each prompt")
        known = self.preferences[~np.isnan(self.preferences)]
        if wrong := [p for p in known.tolist() if p != 0 and not 1 <= p <= 2]:
            raise EvaluationError(f"{self.model}: preference {wrong[0]}; accepted: 1 to 2, 0 (a tie), or missing")

    @property
    def wins(self) -> Floats:
        """y [N]: probability that the judge prefers the model's answer; NaN where it said nothing."""
        return np.where(self.preferences == 0, TIE, self.preferences) - 1

    def rows(self, chosen: NDArray[np.int64]) -> JudgedRun:
        """These rows only, which may repeat (a resample)."""
        drawn = object.__new__(JudgedRun)  # a resample repeats prompts, which a run may not
        for name, values in (
            ("model", self.model),
            ("index", self.index[chosen]),
            ("preferences", self.preferences[chosen]),
            ("lengths", self.lengths[chosen]),
            ("baseline_lengths", self.baseline_lengths[chosen]),
        ):
            object.__setattr__(drawn, name, values)
        return drawn


@dataclass(frozen=True, slots=True)
class RawMetrics:
    """The leaderboard's raw columns, in percent where they are rates."""

    win_rate: float
    standard_error: float
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_total: int
    discrete_win_rate: float
    avg_length: int
    interval: Interval
    """Ours: of the win rate, as a share of 1."""
    unjudged: int
    """Answers without a usable verdict; they count nowhere above."""


def raw_metrics(run: JudgedRun, empty: int = 0, confidence: float = 0.95) -> RawMetrics:
    """The raw columns; ``empty`` is the number of empty answers that have no row (they count as length 0).

    Raises EvaluationError where no answer has a verdict.
    """
    y = run.wins[~np.isnan(run.wins)]
    if not len(y):
        raise EvaluationError(f"{run.model}: no answer has a usable verdict")
    discrete = np.where(y == TIE - 1, 0.5, np.round(y))
    return RawMetrics(
        win_rate=100 * float(y.mean()),
        standard_error=100 * float(y.std(ddof=1)) / len(y) ** 0.5 if len(y) > 1 else float("nan"),
        n_wins=int((y > 0.5).sum()),
        n_wins_base=int((y < 0.5).sum()),
        n_draws=int((y == 0.5).sum()),
        n_total=len(y),
        discrete_win_rate=100 * float(discrete.mean()),
        avg_length=int(run.lengths.sum() / (len(run.lengths) + empty)),
        interval=win_rate(y.tolist(), confidence),
        unjudged=len(run.preferences) - len(y),
    )


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float], rows: int, resamples: int, confidence: float, seed: int
) -> tuple[float, float]:
    """Percentile interval of ``statistic`` (of the drawn rows) over resamples of ``rows`` prompts."""
    return percentiles(resampled(statistic, rows, resamples, seed), confidence)


def resampled(statistic: Callable[[NDArray[np.int64]], float], rows: int, resamples: int, seed: int) -> Floats:
    """[resamples] values of ``statistic`` (of the drawn rows) over resamples of ``rows`` prompts."""
    random = np.random.default_rng(seed)
    return np.array([statistic(random.integers(0, rows, rows)) for _ in range(resamples)])


def percentiles(values: Floats, confidence: float) -> tuple[float, float]:
    """The interval that holds the share ``confidence`` of ``values``, as much cut off on each side."""
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def paired_rows(a: JudgedRun, b: JudgedRun) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of a and b on the prompts for which both have a verdict, in the same order of prompts.

    Raises EvaluationError where there are fewer than two.
    """

    def judged(run: JudgedRun) -> dict[int, int]:
        return {int(i): row for row, i in enumerate(run.index) if not np.isnan(run.preferences[row])}

    ours, theirs = judged(a), judged(b)
    shared: Sequence[int] = sorted(ours.keys() & theirs.keys())
    if len(shared) < 2:
        raise EvaluationError(f"{a.model} and {b.model}: {len(shared)} prompts in common; accepted: at least two")
    return np.array([ours[i] for i in shared]), np.array([theirs[i] for i in shared])
