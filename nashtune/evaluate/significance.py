"""Is a difference more than chance? Tests clustered by prompt: one value a prompt goes in.

The p-values are of sign-flip (permutation) tests: were the two sides equally good, their answers to a prompt could be
swapped, which turns the sign of that prompt's value; the p-value is the share of all ways to turn signs under which the mean
is at least as large as the one observed. It needs no normal distribution, which win rates that are mostly 0, 1/2 and 1 do not
have, it is exact for few prompts, where Student's t is not, and prompts that tie do not count against either side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nashtune.records import Interval

EXACT_UP_TO = 16
"""Values that differ from 0, up to which all 2^n ways are counted; beyond, FLIPS of them are drawn."""
FLIPS = 20_000
CHUNK = 2_000
ROUNDING = 1e-12
RESAMPLES = 2_000


def sign_flip(values: Sequence[float], *, two_sided: bool = False, seed: int = 0) -> float:
    """P-value of "the mean is above 0" (or "is not 0"), given one value a prompt. 1.0 where all values are 0.

    Up to EXACT_UP_TO values other than 0 it is exact; beyond, (1 + count) / (1 + FLIPS) over random ways, which keeps the
    test's level and cannot be smaller than 1 / (1 + FLIPS). Raises ValueError for no values.
    """
    if not len(values):
        raise ValueError("values is empty; accepted: one value for each prompt")
    sizes = np.array([value for value in values if value != 0], dtype=np.float64)
    if not len(sizes):
        return 1.0
    observed = sizes.sum()
    sizes = np.abs(sizes)
    least = (abs(observed) if two_sided else observed) - ROUNDING * sizes.sum()
    if len(sizes) <= EXACT_UP_TO:
        ways = np.arange(2 ** len(sizes))[:, None] >> np.arange(len(sizes)) & 1
        return float(np.mean(_at_least(ways @ (2 * sizes) - sizes.sum(), least, two_sided)))
    random, count = np.random.default_rng(seed), 0
    for _ in range(FLIPS // CHUNK):
        ways = random.integers(0, 2, (CHUNK, len(sizes)), dtype=np.int8)
        count += int(_at_least(ways @ (2 * sizes) - sizes.sum(), least, two_sided).sum())
    return (1 + count) / (1 + FLIPS)


def _at_least(sums: np.ndarray, least: float, two_sided: bool) -> np.ndarray:
    return (np.abs(sums) if two_sided else sums) >= least


def beats(win_rates: Sequence[float]) -> float | None:
    """One-sided p-value of "wins more than half", given each prompt's win rate in [0, 1]; None for no prompts."""
    return sign_flip([rate - 0.5 for rate in win_rates]) if len(win_rates) else None


def paired_difference(
    a: Sequence[float], b: Sequence[float], confidence: float = 0.95, seed: int = 0
) -> tuple[Interval, float]:
    """Mean of a less b over prompts, with its interval by a paired bootstrap (percentiles over resampled prompts), and the
    two-sided p-value of no difference. Raises ValueError where the two are not equally long, or empty."""
    if len(a) != len(b) or not len(a):
        raise ValueError(
            f"a and b have {len(a)} and {len(b)} values; accepted: one of each for every prompt, at least one"
        )
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    random, n = np.random.default_rng(seed), len(differences)
    means = [differences[random.integers(0, n, n)].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    value = float(differences.mean())
    interval = Interval(value, float(min(low, value)), float(max(high, value)), n)
    return interval, sign_flip(differences.tolist(), two_sided=True, seed=seed)
