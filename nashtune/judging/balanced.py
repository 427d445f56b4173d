"""Balanced accuracy with its interval over prompts: of two judges (agreement), and of a judge against the truth."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from nashtune.records import Interval
from nashtune.seeds import seed_for

RESAMPLES = 2000
Floats = NDArray[np.float64]


def balanced_interval(counts: Floats, seed: int, confidence: float = 0.95) -> Interval:
    """Mean of the accuracy on comparisons that the first side wins and of that on those that the second wins.

    counts [G, 4] are, for each of G prompts: right and all, where the first side wins; right and all, where the second does.
    Where only one side ever wins, it is the accuracy on that. The interval is a percentile bootstrap over prompts, ``n`` their
    number. Where no resample differs (all prompts right, say) it is Wilson's for n prompts, so that a few lucky prompts
    are not certainty. Raises ValueError where there is no comparison.
    """
    if not counts[:, (1, 3)].any():
        raise ValueError("no comparison has a better side; accepted: at least one")
    prompts = len(counts)
    value = float(balanced(counts.sum(0)[None])[0])
    draw = np.random.default_rng(seed_for(seed, "bootstrap"))
    chances = np.full(prompts, 1 / prompts)
    weights = (draw.multinomial(prompts, chances, 100).astype(np.float64) for _ in range(RESAMPLES // 100))
    resampled = np.concatenate([balanced(weight @ counts) for weight in weights])
    tail = (1 - confidence) / 2
    low, high = map(float, np.nanquantile(resampled, (tail, 1 - tail)))
    if high - low < 1e-12:
        low, high = wilson(value, prompts, NormalDist().inv_cdf(1 - tail))
    return Interval(value, min(low, value), max(high, value), prompts)


def balanced(counts: Floats) -> Floats:
    """[B, 4] -> [B]; where only one side wins, the accuracy on it."""
    with np.errstate(divide="ignore", invalid="ignore"):
        sides = np.stack([counts[:, 0] / counts[:, 1], counts[:, 2] / counts[:, 3]])
    known = ~np.isnan(sides)
    with np.errstate(invalid="ignore"):
        return np.where(known, sides, 0).sum(0) / known.sum(0)


def wilson(value: float, n: int, quantile: float) -> tuple[float, float]:
    """Wilson's score interval for a share of n (Wilson, 1927)."""
    penalty = quantile**2 / n
    centre = (value + penalty / 2) / (1 + penalty)
    half = quantile / (1 + penalty) * ((value * (1 - value) + penalty / 4) / n) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)
