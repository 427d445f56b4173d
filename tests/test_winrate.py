"""Win rates of the held-out contest and the coverage of their intervals."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nashtune.evaluate.winrate import contest, contests, mean_measure, mean_score, student_t_quantile, win_rate
from nashtune.records import Judgment

LABELS = ("policy", "policy", "initial", "previous", "teacher")


def scored(
    *scores: float | None, outcome: str = "ok", prompt: str = "p", **measures: tuple[float | None, ...]
) -> Judgment:
    ids = tuple(f"{prompt}{i}" for i in range(len(scores)))
    if outcome != "ok":
        return Judgment(prompt, ids, "test", "unusable", "no JSON", scores=scores)
    return Judgment(prompt, ids, "test", scores=scores, measures=measures)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_interval_covers_the_truth_as_often_as_it_says(p: float) -> None:
    """64 prompts, each with its own win probability (Beta, mean p) and 4 answers: 95 % means 92 to 98 % of 2000."""
    rng = np.random.default_rng(int(100 * p))
    own = rng.beta(2 * p, 2 * (1 - p), size=(2000, 64))
    data = rng.binomial(4, own) / 4
    covered = [interval.low <= p <= interval.high for interval in (win_rate(row.tolist(), 0.95) for row in data)]
    assert 0.92 <= np.mean(covered) <= 0.98


def test_ignoring_the_clusters_would_not_cover() -> None:
    """The control for the test above: 256 answers taken as independent are covered far too rarely."""
    rng = np.random.default_rng(0)
    means = (rng.binomial(4, rng.beta(0.25, 0.25, size=(2000, 64))) / 4).mean(axis=1)
    z2 = NormalDist().inv_cdf(0.975) ** 2
    naive = [abs(m - 0.5) <= math.sqrt(z2 * 0.25 / 256) for m in means]  # the score test at p = 0.5
    assert np.mean(naive) < 0.85


def test_the_interval_by_hand() -> None:
    # p = 0.5, s^2 = 1/3, so n_eff = 0.25 / (1/3 / 4) = 3; t(3) = 3.18245, t^2 / n_eff = 3.37599.
    interval = win_rate([0, 0, 1, 1], 0.95)
    half = 3.18245 / (1 + 3.37599) * math.sqrt((0.25 + 3.37599 / 4) / 3)
    assert (interval.value, interval.n) == (0.5, 4)
    assert (interval.low, interval.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-5)


def test_agreement_of_all_prompts_is_wilsons_interval_not_a_point() -> None:
    # Ten of ten: Wilson's lower end is n / (n + z^2).
    wins = win_rate([1.0] * 10, 0.95)
    assert (wins.value, wins.high) == (1, 1)
    assert wins.low == pytest.approx(10 / (10 + 1.959964**2))
    losses = win_rate([0.0] * 10, 0.95)
    assert (losses.low, losses.high) == pytest.approx((0, 1 - wins.low))
    ties = win_rate([0.5] * 10, 0.95)
    assert ties.low < 0.3
    assert ties.high > 0.7
    assert win_rate([1.0], 0.95).low == pytest.approx(1 / (1 + 1.959964**2))


@settings(deadline=None)
@example([0.0, 5e-324], 0.95)
@example([0.3, 0.1 + 0.2], 0.95)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0.5, 0.999))
def test_the_interval_is_within_0_and_1_holds_the_value_and_is_no_point(values: list[float], confidence: float) -> None:
    interval = win_rate(values, confidence)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    assert interval.low < interval.high
    assert interval.n == len(values)


@settings(deadline=None)
@given(st.lists(st.integers(0, 4).map(lambda k: k / 4), min_size=1, max_size=30))
def test_swapping_the_two_sides_mirrors_the_interval(values: list[float]) -> None:
    one, other = win_rate(values, 0.9), win_rate([1 - value for value in values], 0.9)
    assert (one.value, one.low, one.high) == pytest.approx((1 - other.value, 1 - other.high, 1 - other.low))


def test_more_confidence_is_wider_and_more_prompts_narrower() -> None:
    values = [0.25, 0.5, 1.0, 0.75, 0.0, 1.0]
    widths = [(i := win_rate(values, c)).high - i.low for c in (0.8, 0.95, 0.99)]
    assert widths == sorted(widths)
    more = win_rate(values * 10, 0.95)
    assert more.high - more.low < 0.4 * widths[1]


@pytest.mark.parametrize(
    ("df", "quantile"),
    [
        (1, 12.7062),
        (2, 4.30265),
        (3, 3.18245),
        (4, 2.77645),
        (9, 2.26216),
        (30, 2.04227),
        (63, 1.99834),
        (1000, 1.96234),
    ],
)
def test_students_t_as_tabled(df: int, quantile: float) -> None:
    assert student_t_quantile(0.95, df) == pytest.approx(quantile, abs=1e-5)


@pytest.mark.parametrize(
    ("values", "confidence", "message"),
    [
        ([], 0.95, "per_prompt is empty"),
        ([0.5, 1.2], 0.95, "per_prompt holds 1.2"),
        ([0.5, float("nan")], 0.95, "per_prompt holds nan"),
        ([0.5], 1.0, "confidence is 1.0"),
    ],
)
def test_bad_values_are_refused(values: list[float], confidence: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        win_rate(values, confidence)


def test_a_contest_by_hand() -> None:
    judgments = [
        (scored(6, 4, 5, 4, 3), LABELS),  # policy 6, 4; initial 5: 1, 0
        (scored(2, 2, 2, None, 5), LABELS),  # ties are halves; previous unknown
        (scored(None, 3, 1, 1, 1), LABELS),  # one policy answer unknown: the other decides
        (scored(6, 6, 1, 1, 1, outcome="unusable"), LABELS),  # never a tie
        (scored(5, 4), ("policy", "initial")),
        (scored(5, 4), ("previous", "initial")),  # no policy
    ]
    initial = contest(judgments, "policy", "initial")
    assert initial.per_prompt == (0.5, 0.5, 1, 1)
    assert (initial.unusable, initial.unknown) == (1, 0)
    previous = contest(judgments, "policy", "previous")
    assert previous.per_prompt == (0.75, 1)  # 6 > 4, 4 = 4; 3 > 1
    assert (previous.unusable, previous.unknown) == (1, 1)
    assert contest(judgments, "initial", "policy").per_prompt == (0.5, 0.5, 0, 0)


def test_a_contest_read_from_a_matrix() -> None:
    matrix = ((None, None, 0.75), (None, None, 0.25), (0.25, None, None))
    judgment = Judgment("p", ("a", "b", "c"), "test", matrix=matrix)
    assert contest([(judgment, ("policy", "policy", "initial"))], "policy", "initial").per_prompt == (0.5,)
    assert contest([(judgment, ("policy", "policy", "initial"))], "initial", "policy").per_prompt == (0.25,)


def test_contests_against_every_other_label() -> None:
    judgments = [(scored(6, 5, 4, 4, None), LABELS), (scored(6, 5, 4, 5, None), LABELS)]
    found = contests(judgments, 0.95)
    assert list(found) == ["initial", "previous", "teacher"]
    assert found["initial"] == win_rate([1.0, 1.0], 0.95)
    assert found["previous"] == win_rate([1.0, 0.75], 0.95)
    assert found["teacher"] is None
    assert list(contests(judgments, 0.95, policy="teacher")) == ["policy", "initial", "previous"]


def test_measures_are_averaged_within_a_prompt_first() -> None:
    judgments = [
        (scored(6, 4, 1, 1, 1, good=(1, 0, 0, 0, 1)), LABELS),
        (scored(3, None, 1, 1, 1, good=(1, None, 0, 0, 1)), LABELS),
        (scored(9, 9, 9, 9, 9, outcome="unusable"), LABELS),
        (scored(1, 1), ("initial", "teacher")),
    ]
    assert mean_measure(judgments, "good") == (0.5 + 1) / 2
    assert mean_measure(judgments, "good", "teacher") == 1
    assert mean_measure(judgments, "satisfied") is None
    assert mean_score(judgments) == (5 + 3) / 2
    assert mean_score(judgments, "initial") == 1


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="prompt p: 3 labels for 2 candidates"):
        contest([(scored(1, 2), ("policy", "initial", "teacher"))], "policy", "initial")
    with pytest.raises(ValueError, match="two different labels"):
        contest([], "policy", "policy")
