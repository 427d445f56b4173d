"""Bradley-Terry by logistic regression: all models at once (v0.1), and with style held fixed (v2.0).

P(model beats baseline) = sigmoid(theta_model - theta_baseline + style . w), the baseline's theta being 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy.special import expit

from nashtune.errors import EvaluationError
from nashtune.suites.arena_hard.battles import Battles
from nashtune.suites.arena_hard.style import FEATURES, Floats, Style, style_features

RIDGE = 1e-6
"""Of the fit's penalty: too small to be seen, but a model that won everything keeps a finite strength."""
NEWTON_STEPS = 100
RESAMPLES: Mapping[str, int] = {"ours": 400, "published": 100}
"""Bootstrap samples of style control, by way."""
Control = Literal["length", "markdown"]
Way = Literal["ours", "published"]
"""Of style control. published: features centred over all battles at hand, so a model is rated at the battles' mean style and
the figure depends on which other models are among them; value and interval are the median and the 5th and 95th percentile of
refits on drawn battles. ours: rated at the baseline's own style, the value is the fit's, prompts are drawn."""


@dataclass(frozen=True, slots=True)
class Bootstrapped:
    """A value in [0, 1] with the percentiles that ``rounds`` bootstrap samples gave."""

    value: float
    low: float
    high: float
    rounds: int


def fit(design: Floats, outcome: Floats, weight: Floats) -> Floats:
    """Coefficients [D] of design [N, D] for outcomes [N] in [0, 1], by Newton's method on the weighted log-likelihood."""
    coefficients = np.zeros(design.shape[1])

    def loss(at: Floats) -> float:
        logits = design @ at
        return float(weight @ (np.logaddexp(0, logits) - outcome * logits)) + RIDGE / 2 * float(at @ at)

    now = loss(coefficients)
    for _ in range(NEWTON_STEPS):
        p = expit(design @ coefficients)
        gradient = design.T @ (weight * (p - outcome)) + RIDGE * coefficients
        hessian = (design * (weight * p * (1 - p))[:, None]).T @ design + RIDGE * np.eye(len(coefficients))
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while (then := loss(coefficients - size * step)) > now and size > 1e-9:
            size /= 2
        coefficients = coefficients - size * step if then <= now else coefficients
        now = min(now, then)
        if float(np.abs(size * step).max()) < 1e-9 or size <= 1e-9:
            break
    return coefficients


def leaderboard(battles: Battles, anchor: str, rounds: int = 100, seed: int = 0) -> dict[str, Bootstrapped]:
    """v0.1's table: every model's expected win rate against ``anchor``, best first, with the 2.5th and 97.5th percentiles of
    refits on drawn battles. Raises EvaluationError for a model that no chain of battles ties to the anchor."""
    names = sorted({*battles.model.tolist(), *battles.baseline.tolist()} - {anchor})
    _connected(battles, anchor, names)
    place = {name: i for i, name in enumerate(names)}
    design = np.zeros((len(battles.score), len(names)))
    for side, sign in ((battles.model, 1.0), (battles.baseline, -1.0)):
        for row, name in enumerate(side.tolist()):
            if name in place:
                design[row, place[name]] += sign
    value = expit(fit(design, battles.score, battles.weight))
    drawn = expit([fit(design, battles.score, weight) for weight in battles.drawn("battles", rounds, seed)])
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    rows = {name: Bootstrapped(float(value[i]), float(low[i]), float(high[i]), rounds) for name, i in place.items()}
    rows[anchor] = Bootstrapped(0.5, 0.5, 0.5, rounds)
    return dict(sorted(rows.items(), key=lambda row: -row[1].value))


def _connected(battles: Battles, anchor: str, names: Sequence[str]) -> None:
    met = set(zip(battles.model.tolist(), battles.baseline.tolist(), strict=True))
    reached = {anchor}
    while grown := {name for pair in met if reached & set(pair) for name in pair} - reached:
        reached |= grown
    if apart := [name for name in names if name not in reached]:
        raise EvaluationError(f"arena_hard: no chain of battles ties {apart[0]!r} to the anchor {anchor!r}")


@dataclass(frozen=True, slots=True)
class StyleControlled:
    """Win rates against the baseline at one style, and what each feature is worth: log-odds for one standard deviation more
    of it. A feature that never varies is left out."""

    win_rates: Mapping[str, Bootstrapped]
    coefficients: Mapping[str, float]
    way: Way
    drawn: Mapping[str, Floats] = field(repr=False, compare=False)
    """Each model's win rate in every resample."""


def style_controlled(
    battles: Battles,
    styles: Mapping[str, Mapping[str, Style]],
    control: Sequence[Control] = ("length", "markdown"),
    way: Way = "ours",
    confidence: float = 0.95,
    rounds: int | None = None,
    seed: int = 0,
    resamples: Sequence[Floats] | None = None,
) -> StyleControlled:
    """Every model's win rate with style held fixed; ``styles`` by model, baselines among them, and question. Each prompt's own
    baseline has strength 0. ``rounds`` None takes RESAMPLES; ``resamples``: weights [N] to fit with instead of ones drawn here.

    Raises EvaluationError for an answer without style, a model that is a baseline too, and, for "ours", features that cannot
    be told from the models themselves (every answer longer than the baseline's by the same share).
    """
    models = sorted(set(battles.model.tolist()))
    if both := set(models) & set(battles.baseline.tolist()):
        raise EvaluationError(f"arena_hard style control: {min(both)!r} is a model and a baseline")
    names, features = _standardised(battles, styles, control, centre=way == "published")
    one_hot = (battles.model[:, None] == np.array(models)).astype(float)
    design = np.concatenate([one_hot, features], axis=1)
    if np.linalg.matrix_rank(design) < design.shape[1] and way == "ours":
        raise EvaluationError(
            f"arena_hard style control: {len(battles.score)} battles cannot tell {', '.join(names)} from the model itself"
        )
    fitted = fit(design, battles.score, battles.weight)
    unit = "prompts" if way == "ours" else "battles"
    weights = list(battles.drawn(unit, rounds or RESAMPLES[way], seed)) if resamples is None else resamples
    drawn = np.array([fit(design, battles.score, weight) for weight in weights])
    rates = expit(drawn[:, : len(models)])
    tail = 5.0 if way == "published" else 50 * (1 - confidence)
    value = expit(fitted[: len(models)]) if way == "ours" else np.median(rates, axis=0)
    low, high = np.percentile(rates, (tail, 100 - tail), axis=0)
    return StyleControlled(
        {n: Bootstrapped(float(value[i]), float(low[i]), float(high[i]), len(rates)) for i, n in enumerate(models)},
        dict(zip(names, map(float, fitted[len(models) :]), strict=True)),
        way,
        {name: rates[:, i] for i, name in enumerate(models)},
    )


def _standardised(
    battles: Battles, styles: Mapping[str, Mapping[str, Style]], control: Sequence[Control], centre: bool
) -> tuple[list[str], Floats]:
    """Names and values [N, F] of the features controlled for that vary, over their standard deviation."""
    if not control or set(control) - {"length", "markdown"}:
        raise EvaluationError(f"arena_hard style control: {control!r}; accepted: length, markdown or both")
    features = style_features(_styles(battles, styles, battles.model), _styles(battles, styles, battles.baseline))
    total = battles.weight.sum()
    mean = battles.weight @ features / total
    scale = np.sqrt(battles.weight @ (features - mean) ** 2 / max(total - 1, 1))
    wanted = [i for i, name in enumerate(FEATURES) if ("length" if name == "length" else "markdown") in control]
    # what is always 0 says nothing; what is constant but not 0 does not vary either, yet belongs to the model
    kept = [i for i in wanted if scale[i] > 1e-12 or (not centre and abs(mean[i]) > 1e-12)]
    values = (features - mean if centre else features)[:, kept] / np.where(scale[kept] > 1e-12, scale[kept], 1.0)
    return [FEATURES[i] for i in kept], values


def _styles(battles: Battles, styles: Mapping[str, Mapping[str, Style]], side: np.ndarray) -> list[Style]:
    found = []
    for name, uid in zip(side.tolist(), battles.uid.tolist(), strict=True):
        if uid not in styles.get(name, {}):
            raise EvaluationError(f"arena_hard style control: no style of {name}'s answer to {uid}")
        found.append(styles[name][uid])
    return found
