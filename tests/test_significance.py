"""Tests of differences: by hand where it can be done, against the level they promise where not."""

from __future__ import annotations

import random

import pytest

from nashtune.evaluate.significance import EXACT_UP_TO, FLIPS, beats, paired_difference, sign_flip


def test_few_prompts_are_counted_exactly() -> None:
    assert sign_flip([1.0, 1.0, 1.0]) == 1 / 8  # only the way observed is as large
    assert sign_flip([1.0, 1.0, -1.0]) == 4 / 8  # +++ and the three with one minus
    assert sign_flip([2.0, -1.0]) == 2 / 4  # 3 and 1 of 3, 1, -1, -3
    assert sign_flip([2.0, -1.0], two_sided=True) == 1.0
    assert sign_flip([1.0, 1.0, 1.0], two_sided=True) == 2 / 8
    assert sign_flip([-1.0, -1.0]) == 1.0


def test_ties_count_for_nobody() -> None:
    assert sign_flip([1.0, 1.0, 0.0, 0.0]) == sign_flip([1.0, 1.0]) == 1 / 4
    assert sign_flip([0.0] * 5) == 1.0
    assert beats([0.5] * 5) == 1.0
    assert beats([]) is None
    with pytest.raises(ValueError, match="one value"):
        sign_flip([])


def test_equal_sums_count_whatever_their_rounding() -> None:
    assert sign_flip([0.1, 0.2, -0.3]) == 5 / 8  # 0.6, 0.4, 0.2, and 0 twice


def test_many_prompts_are_drawn_and_agree_with_the_binomial_distribution() -> None:
    from scipy.stats import binom

    wins, n = 40, 60
    assert n > EXACT_UP_TO
    drawn = beats([1.0] * wins + [0.0] * (n - wins))
    assert drawn == pytest.approx(binom.sf(wins - 1, n, 0.5), abs=4 * (0.01 / FLIPS) ** 0.5)
    assert beats([1.0] * n) == 1 / (1 + FLIPS), "never 0"
    assert beats([1.0] * wins + [0.0] * (n - wins)) == drawn, "the same each time"


def test_equally_good_sides_are_called_better_as_often_as_the_level_says() -> None:
    draw = random.Random(0)
    values = [beats([draw.choice([0.0, 0.5, 1.0]) for _ in range(12)]) for _ in range(2000)]
    share = sum(p <= 0.05 for p in values if p is not None) / len(values)
    assert 0.02 < share <= 0.05 + 3 * (0.05 * 0.95 / 2000) ** 0.5


def test_paired_differences() -> None:
    interval, p = paired_difference([3.0, 4.0, 5.0, 6.0], [2.0, 3.0, 4.0, 5.0])
    assert (interval.value, interval.low, interval.high, interval.n) == (1.0, 1.0, 1.0, 4)
    assert p == 2 / 16
    draw = random.Random(1)
    a, b = [draw.gauss(1.0, 1.0) for _ in range(200)], [draw.gauss(0.0, 1.0) for _ in range(200)]
    interval, p = paired_difference(a, b)
    half = 1.96 * (2 / 200) ** 0.5
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.15)
    assert p < 0.001
    mirrored, _ = paired_difference(b, a)
    assert mirrored.value == pytest.approx(-interval.value)
    with pytest.raises(ValueError, match="one of each"):
        paired_difference([1.0], [])
