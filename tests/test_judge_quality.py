"""Figures of a judge on labelled comparisons: worked out by hand, and against scikit-learn on random data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest

from nashtune.judging.certainty import certainty
from nashtune.judging.judge_quality import Labels, Quality, Verdicts, macro_scores, quality
from nashtune.judging.rater_agreement import classes, krippendorff_alpha, pair_agreement, raters_agreement
from nashtune.judging.resampled import Sums
from nashtune.records import Interval

NONE = math.nan


def labels(target: Sequence[float], lengths: Sequence[tuple[int, int]] | None = None, **more: list) -> Labels:
    count = len(target)
    cluster = np.array(more.get("cluster", range(count)), np.int64)
    sizes = np.array(lengths or [(1, 1)] * count, np.int64)
    return Labels(np.array(target, float), sizes, cluster, more.get("subset", [None] * count))


def verdicts(first: Sequence[float], second: Sequence[float] | None = None, **more: object) -> Verdicts:
    """``first`` with the data's first answer shown first, ``second`` with it shown second."""
    said = np.array([first, second if second is not None else [NONE] * len(first)], float).T
    asked = np.array([[True, second is not None]] * len(first))
    return Verdicts("judge", said, asked, **more)  # type: ignore[arg-type]


def value(interval: Interval | None) -> float:
    assert interval is not None
    assert interval.low <= interval.value <= interval.high
    return interval.value


def test_right_wrong_tie_and_none_are_counted_apart_by_hand() -> None:
    #                        right wrong tie  none right | label tie, no label
    found = quality(labels([1, 1, 0, 0, 0, 0.5, NONE]), verdicts([1, 0, 0.5, NONE, 0, 0.5, 1]))
    assert (found.counted.right, found.counted.wrong, found.counted.tie, found.counted.none) == (2, 1, 1, 1)
    assert (found.label_ties, found.unlabelled, found.comparisons) == (1, 1, 7)
    assert value(found.accuracy) == pytest.approx(2.5 / 4)
    assert value(found.decided_accuracy) == pytest.approx(2 / 3)
    assert value(found.strict_accuracy) == pytest.approx(2 / 5)
    assert value(found.balanced_accuracy) == pytest.approx(
        (1 / 2 + 1.5 / 2) / 2
    )  # the first right: 1 of 2; the second: 1.5 of 2
    assert value(found.exact) == pytest.approx(
        3 / 5
    )  # of 5 verdicts with a label: right, wrong, tie against 0, right, tie and tie
    assert found.confusion["first"] == {"first": 1, "second": 1, "tie": 0, "none": 0}
    assert found.confusion["second"] == {"first": 0, "second": 1, "tie": 1, "none": 1}
    assert found.confusion["tie"] == {"first": 0, "second": 0, "tie": 1, "none": 0}
    assert found.confusion["none"]["first"] == 1
    assert found.orders is None
    assert found.certainty is None


def test_both_orders_by_hand() -> None:
    # a right twice; b always whoever is shown first; c wrong twice; d once none; e twice none
    found = quality(labels([1, 1, 0, 0, 1]), verdicts([1, 1, 1, 0, NONE], [1, 0, 1, NONE, NONE]))
    orders = found.orders
    assert orders is not None
    assert (orders.comparisons, orders.same, orders.different) == (5, 2, 1)
    assert (orders.one_missing, orders.both_missing) == (1, 1)
    assert value(orders.consistency) == pytest.approx(2 / 3)
    assert value(orders.both_right) == pytest.approx(1 / 5)
    assert value(found.strict_accuracy) == pytest.approx((2 + 1 + 0 + 1 + 0) / 10)
    assert value(found.accuracy) == pytest.approx(4 / 7)
    # Shown first and won: a (first order), b (both), c (first order); not d, where the second won. 7 decided verdicts.
    assert found.place is not None
    assert value(found.place.first_shown) == pytest.approx(4 / 7)


def test_a_judge_that_takes_whoever_is_shown_first_is_seen_and_is_at_chance() -> None:
    target = [1, 0] * 30
    found = quality(labels(target), verdicts([1] * 60, [0] * 60))
    assert found.place is not None
    assert value(found.place.first_shown) == 1
    assert found.place.first_shown is not None
    assert found.place.first_shown.low > 0.9
    assert found.orders is not None
    assert value(found.orders.consistency) == 0
    assert value(found.accuracy) == 0.5
    assert value(found.balanced_accuracy) == 0.5
    assert found.label.kappa is not None
    assert found.label.kappa.value == pytest.approx(0)  # the joint verdict is a tie everywhere


def test_length_bias_by_hand() -> None:
    lengths = [(9, 1), (9, 1), (1, 9), (9, 1), (5, 5)]
    # The judge takes the longer but once; the label is for the longer in the first three, not in the fourth.
    found = quality(labels([1, 1, 0, 0, 1], lengths), verdicts([1, 0, 0, 1, 1])).length
    assert value(found.longer_right) == pytest.approx(2 / 3)
    assert value(found.shorter_right) == 0
    assert value(found.longer_preferred) == pytest.approx(3 / 4)  # equal lengths say nothing
    assert value(found.longer_labelled) == pytest.approx(3 / 4)


def test_subsets_have_figures_of_their_own_and_count_alike_in_their_mean() -> None:
    found = quality(labels([1] * 5, subset=["a", "a", "a", "a", "b"]), verdicts([1, 1, 1, 1, 0]))
    assert {name: value(part.accuracy) for name, part in found.subsets.items()} == {"a": 1, "b": 0}
    assert value(found.accuracy) == pytest.approx(4 / 5)
    assert value(found.subset_mean) == pytest.approx(1 / 2)
    assert quality(labels([1], subset=["a"]), verdicts([1])).subsets == {}


def test_intervals_are_over_prompts_and_no_narrower_for_repeated_rows() -> None:
    draw = np.random.default_rng(0)
    right = draw.random(100) < 0.7
    once = quality(labels([1.0] * 100), verdicts(list(right.astype(float)))).accuracy
    repeated = quality(
        labels([1.0] * 500, cluster=list(range(100)) * 5), verdicts(list(right.astype(float)) * 5)
    ).accuracy
    assert once is not None
    assert repeated is not None
    assert once == repeated  # five copies of every prompt's row are no more evidence
    naive = quality(labels([1.0] * 500), verdicts(list(right.astype(float)) * 5)).accuracy
    assert naive is not None
    assert naive.high - naive.low < 0.6 * (once.high - once.low)
    sure = quality(labels([1.0] * 5), verdicts([1.0] * 5)).accuracy
    assert sure is not None
    assert sure.low < 0.7  # five of five is not certainty


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    draw, hits, trials = np.random.default_rng(1), 0, 200
    for _ in range(trials):
        skill = np.repeat(draw.beta(7, 3, 60), 4)  # 60 prompts of 4 comparisons, mean 0.7
        right = (draw.random(240) < skill).astype(float)
        cluster = np.repeat(np.arange(60), 4)
        found = Sums({"right": right, "all": np.ones(240)}, cluster).ratio("right", "all")
        assert found is not None
        hits += found.low <= 0.7 <= found.high
    assert 0.88 <= hits / trials <= 0.99


def _random_case(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    target = draw.integers(0, 2, 200).astype(float)
    p = np.round(np.clip(0.3 * target + 0.35 + draw.normal(0, 0.25, 200), 0, 1), 2)
    return target, p, draw.integers(0, 40, 200)


@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_scikit_learn(seed: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    target, p, cluster = _random_case(seed)
    _, cluster = np.unique(cluster, return_inverse=True)
    decided = p != 0.5
    found = quality(labels(target, cluster=cluster.tolist()), verdicts(p.tolist()))
    said = p[decided] > 0.5
    assert value(found.decided_accuracy) == pytest.approx(metrics.accuracy_score(target[decided] > 0.5, said))
    only = quality(labels(target[decided]), verdicts(p[decided].tolist()))
    assert value(only.balanced_accuracy) == pytest.approx(metrics.balanced_accuracy_score(target[decided] > 0.5, said))
    assert value(found.label.kappa) == pytest.approx(metrics.cohen_kappa_score(classes(target), classes(p)))
    sure = found.certainty
    assert sure is not None
    both = np.concatenate([target, 1 - target]), np.round(np.concatenate([p, 1 - p]), 12)
    assert value(sure.auc) == pytest.approx(metrics.roc_auc_score(*both))
    clipped = np.clip(p, 1e-12, 1 - 1e-12)
    assert sure.log_loss is not None
    assert sure.log_loss.value == pytest.approx(metrics.log_loss(target, clipped))
    assert sure.brier is not None
    assert sure.brier.value == pytest.approx(metrics.brier_score_loss(target, p))
    assert sure.auc is not None
    assert 0 < sure.auc.high - sure.auc.low < 0.25


def test_macro_scores_agree_with_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(3)
    target, said = draw.choice([0, 0.5, 1], 90), draw.choice([0, 0.5, 1, NONE], 90)
    found = macro_scores(quality(labels(target.tolist()), verdicts(said.tolist())).confusion)
    true, predicted = classes(target), classes(np.where(np.isnan(said), 0.5, said))
    expected = metrics.precision_recall_fscore_support(true, predicted, average="macro")[:3]
    assert found == pytest.approx((metrics.accuracy_score(true, predicted), *expected))


def test_certainty_by_hand() -> None:
    # Right sides get 0.9 and 0.4; wrong ones 0.1 and 0.6. Of 2 x 2 pairs right against wrong: 0.9 wins twice, 0.4 once.
    found = certainty(np.array([0.9, 0.6]), None, np.array([1.0, 0.0]), np.array([0, 1]))
    assert found is not None
    assert found.auc is not None
    assert found.auc.value == pytest.approx(3 / 4)
    assert found.brier is not None
    assert found.brier.value == pytest.approx((0.1**2 + 0.6**2) / 2)
    assert found.calibration_error == pytest.approx((0.1 + 0.6 + 0.6 + 0.1) / 4)
    scored = certainty(np.array([1.0, 0.0]), np.array([3.0, 1.0]), np.array([1.0, 0.0]), np.array([0, 1]))
    assert scored is not None
    assert scored.of == "score difference"
    assert scored.brier is None
    assert certainty(np.array([1.0, 0.0]), None, np.array([1.0, 0.0]), np.array([0, 1])) is None  # verdicts alone


# ---- raters ------------------------------------------------------------------------------------------------------------------


def test_kappa_by_hand() -> None:
    # Both first 20, both second 15, 5 and 10 apart: p_o 0.7, p_e 0.5 * 0.6 + 0.5 * 0.4 = 0.5, kappa 0.4.
    cells = [(0, 0)] * 20 + [(0, 1)] * 5 + [(1, 0)] * 10 + [(1, 1)] * 15
    a, b = np.array(cells).T
    found = pair_agreement(("a", "b"), a, b, np.arange(50))
    assert value(found.same) == pytest.approx(0.7)
    assert value(found.kappa) == pytest.approx(0.4)
    one_class = pair_agreement(("a", "b"), np.zeros(4, int), np.zeros(4, int), np.arange(4))
    assert one_class.kappa is None
    missing = pair_agreement(("a", "b"), np.array([0, -1, 1]), np.array([0, 0, -1]), np.arange(3))
    assert missing.comparisons == 1


def test_alpha_of_a_published_example() -> None:
    """Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", section C: 4 observers, 12 units, nominal data with
    missing values: 0.743."""
    units = [
        (1, 1, None, 1), (2, 2, 3, 2), (3, 3, 3, 3), (3, 3, 3, 3), (2, 2, 2, 2), (1, 2, 3, 4),
        (4, 4, 4, 4), (1, 1, 2, 1), (2, 2, 2, 2), (None, 5, 5, 5), (None, None, 1, 1), (None, None, 3, None),
    ]  # fmt: skip
    counts = np.array([[unit.count(value) for value in range(1, 6)] for unit in units], float)
    found = krippendorff_alpha(counts, np.arange(12))
    assert found is not None
    assert found.value == pytest.approx(0.743, abs=5e-4)
    assert found.low < found.value < found.high
    assert found.n == 11  # the last unit has one value


def test_alpha_agrees_with_the_package() -> None:
    package = pytest.importorskip("krippendorff")
    draw = np.random.default_rng(5)
    table = draw.choice([0.0, 0.5, 1.0, NONE], (60, 4), p=[0.4, 0.1, 0.4, 0.1])
    found = raters_agreement({f"r{n}": table[:, n] for n in range(4)}, np.arange(60)).alpha
    assert found is not None
    assert found.value == pytest.approx(package.alpha(table.T, level_of_measurement="nominal"))


def test_each_rater_against_the_majority_of_the_others() -> None:
    said = {"a": [1, 1, 0, 0.5], "b": [1, 0, 0, 0.5], "c": [1, 1, 1, NONE]}
    found = raters_agreement({name: np.array(row, float) for name, row in said.items()}, np.arange(4))
    first = found.against_others[0]
    # The others of a: first, none (0 against 1), none, tie (one vote).
    assert (first.comparisons, first.no_majority) == (2, 2)
    assert value(first.same) == 1
    assert value(found.unanimous) == pytest.approx(2 / 4)
    assert [pair.raters for pair in found.pairs] == list(itertools.combinations("abc", 2))


def test_figures_do_not_depend_on_which_answer_is_called_the_first() -> None:
    target, p, cluster = _random_case(7)
    _, cluster = np.unique(cluster, return_inverse=True)
    lengths = np.random.default_rng(8).integers(1, 9, (200, 2))

    def found(turn: bool) -> Quality:
        t, first, second = (1 - target, 1 - p[::-1], 1 - p) if turn else (target, p, p[::-1])
        sizes = lengths[:, ::-1] if turn else lengths
        return quality(
            labels(t.tolist(), [tuple(row) for row in sizes.tolist()], cluster=cluster.tolist()),
            verdicts(first.tolist(), second.tolist()),
        )

    one, other = found(False), found(True)
    for name in ("accuracy", "strict_accuracy", "balanced_accuracy", "length", "orders", "place"):
        assert repr(getattr(one, name)) == repr(getattr(other, name)), name
    assert one.certainty is not None
    assert other.certainty is not None
    assert value(one.certainty.auc) == pytest.approx(value(other.certainty.auc))
