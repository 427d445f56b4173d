"""What eq. (9) of arXiv 2404.03715 promises for a step of a given length, next to which the measured win rate can be put.

The exact update pi* of pi_t (proportional to pi_t exp(r_t / eta), r_t(y) = P(y beats pi_t)) satisfies P(pi* beats pi_t) >= 1/2 +
eta KL(pi* || pi_t). eta is eq. (8)'s factor of the log-ratios, so it is the objective's beta. A trained policy is not pi*: it
takes a few gradient steps on some pairs, mostly with hard targets; nothing promises it the bound. It is a yardstick.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from nashtune.evaluate.winrate import student_t_quantile
from nashtune.recipe import Recipe
from nashtune.records import Interval

BOUNDED = ("dno", "dno-prct")
"""Objectives whose loss is eq. (8), or eq. (13), which is eq. (8) with targets of 1."""


def mean_interval(per_prompt: Sequence[float], confidence: float) -> Interval | None:
    """Mean over prompts of any figure, with Student's interval at level ``confidence``; each prompt counts once (a cluster).
    None for fewer than two prompts, whose spread is not known."""
    n = len(per_prompt)
    if n < 2:
        return None
    mean = fmean(per_prompt)
    half = student_t_quantile(confidence, n - 1) * stdev(per_prompt, mean) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def eta_of(recipe: Recipe) -> float | None:
    """Eq. (9)'s eta for a recipe's iterations: the objective's beta. None where the step is not one of eq. (8) from pi_t on
    answers of pi_t that an oracle compared, so that no bound is about it."""
    known = recipe.objective.name in BOUNDED and recipe.pairs.rule != "teacher_wins"
    own = recipe.train.start == "current" and recipe.sampling.policy == "current" and not recipe.sampling.mixture
    return float(recipe.objective.settings["beta"]) if known and own else None


def improvement_bound(kl: Interval | None, eta: float | None) -> Interval | None:
    """1/2 + eta KL with KL's interval. Above 1 it says that the step is longer than an exact one with this eta can be
    (KL(pi* || pi_t) <= 1 / (2 eta), as no win rate exceeds 1)."""
    if kl is None or eta is None:
        return None
    return Interval(0.5 + eta * kl.value, 0.5 + eta * kl.low, 0.5 + eta * kl.high, kl.n)
