"""The held-out contest: win rates between labelled candidates, with intervals clustered by prompt.

The verdicts on one prompt share the prompt, so they are one observation between them (a cluster): everything here is
first averaged within a prompt and then over prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist, fmean, variance

from nashtune.records import Interval, Judgment

# Prompts whose values vary less than this agree: what is left is floating-point noise.
ROUNDING = 1e-12

Labelled = tuple[Judgment, Sequence[str]]
"""A judgment and the label of each of its K candidates, as policy, initial, previous, teacher."""


def win_rate(per_prompt: Sequence[float], confidence: float) -> Interval:
    """Mean over prompts of P(a beats b) in [0, 1], with its interval at level ``confidence``.

    Wilson's score interval with the variance of the mean estimated between clusters: the effective sample size is
    n_eff = p (1 - p) / (s^2 / n) with s^2 the sample variance of the n prompts' values, and Student's t with n - 1
    degrees of freedom takes the normal quantile's place because s^2 is an estimate. Where the prompts all agree,
    s^2 = 0 says nothing of the error: then n_eff = n and the normal quantile, so that ten wins of ten are not
    certainty. The interval lies within [0, 1], holds the value, and is never a point. Raises ValueError for no prompts,
    for values outside [0, 1] and for a confidence outside (0, 1).
    """
    n = len(per_prompt)
    if n == 0:
        raise ValueError("per_prompt is empty; accepted: at least one prompt's value")
    if wrong := [value for value in per_prompt if not 0 <= value <= 1]:
        raise ValueError(f"per_prompt holds {wrong[0]}; accepted: numbers in [0, 1]")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; accepted: a number between 0 and 1")
    p = fmean(per_prompt)
    return score_interval(p, variance(per_prompt, p) if n > 1 else 0.0, n, confidence)


def score_interval(p: float, spread: float, n: int, confidence: float) -> Interval:
    """``win_rate``'s interval about a mean ``p`` of n prompts' values with sample variance ``spread`` (n times the squared
    error of ``p``, where it is no plain mean)."""
    if spread > ROUNDING:
        n_eff, quantile = p * (1 - p) * n / spread, student_t_quantile(confidence, n - 1)
    else:
        n_eff, quantile = float(n), NormalDist().inv_cdf((1 + confidence) / 2)
    return wilson(p, n_eff, quantile, n)


def wilson(p: float, n_eff: float, quantile: float, n: int) -> Interval:
    """Wilson's score interval for a share ``p`` of ``n_eff`` independent observations; ``n`` is the count it carries."""
    penalty = quantile**2 / n_eff
    centre = (p + penalty / 2) / (1 + penalty)
    half = quantile / (1 + penalty) * math.sqrt((p * (1 - p) + penalty / 4) / n_eff)
    return Interval(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)), n)


@lru_cache(maxsize=64)
def student_t_quantile(confidence: float, df: int) -> float:
    """t with P(-t < T < t) = ``confidence`` under Student's distribution with ``df`` >= 1 degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(df, (1 + confidence) / 2))


@dataclass(frozen=True, slots=True)
class Contest:
    """a against b. ``per_prompt`` holds each prompt's mean P(a beats b), in stream order; prompts that have both but
    gave no value are counted: ``unusable`` judgments, and usable ones with no verdict between a and b (``unknown``)."""

    per_prompt: tuple[float, ...]
    unusable: int
    unknown: int

    def interval(self, confidence: float) -> Interval | None:
        """The win rate of a over b, None where no prompt has a verdict."""
        return win_rate(self.per_prompt, confidence) if self.per_prompt else None


def contest(judgments: Iterable[Labelled], a: str, b: str) -> Contest:
    """P(a beats b) of each prompt: the mean over all pairs of a candidate labelled ``a`` and one labelled ``b`` whose
    verdict is known. Raises ValueError where labels and candidates differ in number, or a is b."""
    if a == b:
        raise ValueError(f"a and b are both {a!r}; accepted: two different labels")
    per_prompt: list[float] = []
    unusable = unknown = 0
    for judgment, labels in judgments:
        ours, theirs = _labelled(judgment, labels, a), _labelled(judgment, labels, b)
        if not ours or not theirs:
            continue
        known = [p for i in ours for j in theirs if (p := judgment.preference(i, j)) is not None]
        if judgment.outcome != "ok":
            unusable += 1
        elif known:
            per_prompt.append(fmean(known))
        else:
            unknown += 1
    return Contest(tuple(per_prompt), unusable, unknown)


def contests(judgments: Sequence[Labelled], confidence: float, policy: str = "policy") -> Mapping[str, Interval | None]:
    """Win rate of ``policy`` against every other label that occurs, None where no verdict is known."""
    rivals = dict.fromkeys(label for _, labels in judgments for label in labels if label != policy)
    return {rival: contest(judgments, policy, rival).interval(confidence) for rival in rivals}


def mean_measure(judgments: Iterable[Labelled], measure: str, label: str = "policy") -> float | None:
    """Mean over prompts of the mean of a named measure (Judgment.measures) over the candidates with ``label``, known
    values of usable judgments only; None where there are none."""
    return _mean_over_prompts(judgments, lambda judgment: judgment.measures.get(measure), label)


def mean_score(judgments: Iterable[Labelled], label: str = "policy") -> float | None:
    """mean_measure of the oracle's scores."""
    return _mean_over_prompts(judgments, lambda judgment: judgment.scores, label)


def _mean_over_prompts(
    judgments: Iterable[Labelled], figures: Callable[[Judgment], Sequence[float | None] | None], label: str
) -> float | None:
    means: list[float] = []
    for judgment, labels in judgments:
        places = _labelled(judgment, labels, label)
        row = figures(judgment) if judgment.outcome == "ok" else None
        if row is not None and (known := [value for i in places if (value := row[i]) is not None]):
            means.append(fmean(known))
    return fmean(means) if means else None


def _labelled(judgment: Judgment, labels: Sequence[str], label: str) -> list[int]:
    """Places of the candidates with ``label``."""
    if len(labels) != len(judgment.response_ids):
        raise ValueError(
            f"prompt {judgment.prompt_id}: {len(labels)} labels for {len(judgment.response_ids)} candidates; "
            "accepted: one label per candidate"
        )
    return [i for i, own in enumerate(labels) if own == label]
