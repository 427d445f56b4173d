"""The length-controlled win rate (Dubois et al., arXiv 2404.04475): what a model's win rate would be at the baseline's length.

A logistic regression without intercept explains the judge's preference by length, by the instruction's difficulty and by
the model, p = sigmoid(w_x tanh(delta / s) + w_g gamma + w_b b), where delta is the baseline's length less the model's in
characters, s its standard deviation over the run, gamma the instruction's published difficulty and b = 1 for the model.
Two published runs of the baseline, told to be concise and verbose (b = 0), are fitted along at a tenth of the weight.
With delta = 0 the same regression gives the controlled win rate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nashtune.errors import EvaluationError
from nashtune.suites.alpaca_eval.metrics import Floats, JudgedRun, bootstrap, paired_rows, percentiles, resampled

GRID = 10 ** np.linspace(-4, 4, 10)
"""Inverse strengths C of the l1 penalty that cross-validation chooses from."""
FOLDS = 5
GAMED_WEIGHT = 0.1
RANDOM_STATE = 123
RESAMPLES = 300

Alignment = Literal["parity", "correct"]
"""How a row finds its instruction's difficulty. parity: by its place in the file, as upstream does, which takes another
instruction's where rows are missing before it; correct: by its prompt."""


@dataclass(frozen=True, slots=True, eq=False)
class Controls:
    """What every run is fitted with. ``difficulty`` [prompts]; of the gamed baselines' rows [R]: ``delta`` (standardised,
    before tanh), ``gamma`` and ``wins`` (0 to 1)."""

    difficulty: Floats
    delta: Floats
    gamma: Floats
    wins: Floats


@dataclass(frozen=True, slots=True)
class Weights:
    """Fitted coefficients, and the C of their penalty."""

    length: float
    difficulty: float
    bias: float
    C: float


@dataclass(frozen=True, slots=True, eq=False)
class LengthControlled:
    """In percent. ``spread`` is what the leaderboard calls lc_standard_error: the standard deviation of the fitted values
    over the square root of their number, which says nothing of the error of the fit; ``low`` and ``high`` are ours, a
    bootstrap over prompts."""

    win_rate: float
    spread: float
    weights: Weights
    alignment: Alignment
    fitted: Floats
    low: float
    high: float


def length_controlled(
    run: JudgedRun,
    controls: Controls,
    alignment: Alignment = "parity",
    C: float | None = None,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> LengthControlled:
    """The length-controlled win rate; ``C`` None is chosen by cross-validation, ``resamples`` 0 gives no interval (NaN).

    Raises EvaluationError where no answer has a verdict or a prompt has no difficulty.
    """
    gamma = _gamma(run, controls, alignment)
    if np.isnan(run.wins).all():
        raise EvaluationError(f"{run.model}: no answer has a usable verdict")
    chosen = C if C is not None else cross_validated(run, controls, gamma)
    weights = fit(run, controls, gamma, chosen)
    fitted = controlled(weights, gamma)

    def again(rows: NDArray[np.int64]) -> float:
        drawn = fit(run.rows(rows), controls, gamma[rows], chosen)
        return 100 * float(controlled(drawn, gamma[rows]).mean())

    interval = bootstrap(again, len(gamma), resamples, confidence, seed) if resamples else (float("nan"),) * 2
    return LengthControlled(
        win_rate=100 * float(fitted.mean()),
        spread=100 * float(fitted.std(ddof=1)) / len(fitted) ** 0.5 if len(fitted) > 1 else float("nan"),
        weights=weights,
        alignment=alignment,
        fitted=fitted,
        low=interval[0],
        high=interval[1],
    )


def _gamma(run: JudgedRun, controls: Controls, alignment: Alignment) -> Floats:
    places = np.arange(len(run.index)) if alignment == "parity" else run.index
    if places.max(initial=0) >= len(controls.difficulty):
        raise EvaluationError(
            f"{run.model}: prompt {int(places.max())} has no difficulty; accepted: 0 to {len(controls.difficulty) - 1}"
        )
    return controls.difficulty[places]


def controlled(weights: Weights, gamma: Floats) -> Floats:
    """Fitted preference for the model at the baseline's length."""
    return _sigmoid(weights.difficulty * gamma + weights.bias)


def _sigmoid(logits: Floats) -> Floats:
    return 1 / (1 + np.exp(-logits))


# ---- the regression ------------------------------------------------------------------------------------------------------


def _problem(run: JudgedRun, controls: Controls, gamma: Floats) -> tuple[Floats, Floats, Floats]:
    """Features [N, 3], preferences [N] and weights [N]: the gamed baselines' rows, then the run's that have a verdict."""
    delta = run.baseline_lengths - run.lengths
    scale = delta.std(ddof=1) if len(delta) > 1 else 0.0
    # A run of equal length differences has no length effect to control for.
    x = np.tanh(delta / scale) if scale > 0 else np.zeros_like(delta)
    known = ~np.isnan(run.wins)
    gamed = np.stack([np.tanh(controls.delta), controls.gamma, np.zeros_like(controls.delta)], 1)
    ours = np.stack([x, gamma, np.ones_like(x)], 1)[known]
    weights = np.concatenate([np.full(len(gamed), GAMED_WEIGHT), np.ones(len(ours))])
    return np.concatenate([gamed, ours]), np.concatenate([controls.wins, run.wins[known]]), weights


def fit(run: JudgedRun, controls: Controls, gamma: Floats, C: float) -> Weights:
    """Coefficients at one strength of the penalty."""
    problem = _problem(run, controls, gamma)
    length, difficulty, bias = _fit(*problem, C, np.random.RandomState(RANDOM_STATE))
    return Weights(length, difficulty, bias, C)


def _fit(
    features: Floats, y: Floats, weights: Floats, C: float, random: np.random.RandomState
) -> tuple[float, float, float]:
    """l1-penalised logistic regression by liblinear. Preferences between 0 and 1 enter as two rows: won with weight y, lost
    with weight 1 - y."""
    from sklearn.linear_model import LogisticRegression

    solver = LogisticRegression(
        l1_ratio=1, C=C, solver="liblinear", fit_intercept=False, tol=1e-4, max_iter=100, random_state=random
    )
    labels = np.concatenate([np.ones(len(y)), np.zeros(len(y))])
    doubled = np.concatenate([weights * y, weights * (1 - y)])
    solver.fit(np.concatenate([features, features]), labels, sample_weight=doubled)
    length, difficulty, bias = map(float, solver.coef_[0])
    return length, difficulty, bias


def cross_validated(run: JudgedRun, controls: Controls, gamma: Floats) -> float:
    """C of the best mean log-likelihood over five folds; row r of N is in fold (N - 1 - r) mod 5."""
    features, y, weights = _problem(run, controls, gamma)
    fold = (len(y) - 1 - np.arange(len(y))) % FOLDS
    scores = np.zeros((FOLDS, len(GRID)))
    for k in range(FOLDS):
        train, test = fold != k, fold == k
        random = np.random.RandomState(RANDOM_STATE)  # shared by the successive strengths, as upstream's is
        for c, strength in enumerate(GRID):
            w = np.array(_fit(features[train], y[train], weights[train], float(strength), random))
            p = np.clip(_sigmoid(features[test] @ w), 1e-15, 1 - 1e-15)
            likelihood = weights[test] * (y[test] * np.log(p) + (1 - y[test]) * np.log(1 - p))
            scores[k, c] = likelihood.mean()
    return float(GRID[scores.mean(0).argmax()])


# ---- two models ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Difference:
    """a less b, in points of percent, with a bootstrap interval over their common prompts."""

    value: float
    low: float
    high: float
    prompts: int
    p: float
    """Two-sided p-value of no difference: twice the smaller share of resamples on one side of 0."""


def compare(
    a: JudgedRun, b: JudgedRun, controls: Controls, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Difference]:
    """Two models on the prompts that both were judged on: difference of win rates and of length-controlled win rates."""
    ours, theirs = paired_rows(a, b)
    a, b = a.rows(ours), b.rows(theirs)
    gamma = _gamma(a, controls, "correct")
    strengths = [cross_validated(run, controls, gamma) for run in (a, b)]

    def raw(rows: NDArray[np.int64]) -> float:
        return 100 * float((a.wins[rows] - b.wins[rows]).mean())

    def lc(rows: NDArray[np.int64]) -> float:
        rates = (
            controlled(fit(run.rows(rows), controls, gamma[rows], C), gamma[rows]).mean()
            for run, C in zip((a, b), strengths, strict=True)
        )
        return 100 * float(next(rates) - next(rates))

    every = np.arange(len(gamma))

    def difference(value: Callable[[NDArray[np.int64]], float]) -> Difference:
        drawn = resampled(value, len(every), resamples, seed)
        beyond = 1 + min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
        p = min(1.0, 2 * beyond / (1 + resamples))
        return Difference(value(every), *percentiles(drawn, confidence), len(every), p)

    return {"win_rate": difference(raw), "length_controlled": difference(lc)}


def warning(raw: float, controlled: float) -> str | None:
    """What to say where the two win rates (percent) are further apart than length explains on the leaderboard."""
    low, high = min(0.75 * raw, raw - 10), max(raw + (100 - raw) / 4, raw + 10)
    if low <= controlled <= high:
        return None
    return (
        f"length-controlled win rate {controlled:.1f} % is far from the raw {raw:.1f} % (expected {max(low, 0):.1f} to "
        f"{min(high, 100):.1f}): length control can be gamed, so do not choose a model by it alone"
    )
