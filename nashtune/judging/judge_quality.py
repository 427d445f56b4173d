"""How good a judge is on labelled comparisons: accuracy, agreement, place, length, certainty.

A judge's verdict is right, wrong, a tie, or none (an unusable reply, a missing value), and these four are counted apart:

- ``accuracy`` is over verdicts; a tie is half right, none does not count;
- ``decided_accuracy`` is over verdicts that name a side;
- ``strict_accuracy`` is over all that was asked: ties and none are not right (RewardBench's and LLMBar's way).

A comparison asked in both orders has two verdicts, each with half its weight; where the label is a tie or missing, no
accuracy counts it. Balanced accuracy is the mean of the accuracies where the first answer is right and where the second is.

Legend: N comparisons, S = 2 orders (the first answer shown first; shown second).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nashtune.judging.balanced import Floats, balanced
from nashtune.judging.certainty import Certainty, certainty
from nashtune.judging.rater_agreement import MISSING, PairAgreement, classes, pair_agreement
from nashtune.judging.resampled import Sum, Sums, percentiles
from nashtune.records import Interval
from nashtune.seeds import seed_for

VERDICTS = ("first", "second", "tie", "none")


@dataclass(frozen=True, slots=True)
class Labels:
    """What is known of N comparisons, each array [N]: ``target`` = P(the first answer is better), NaN unknown; ``lengths``
    [N, 2] of both answers (characters); the number of its prompt from 0; its subset, None where there are none."""

    target: Floats
    lengths: NDArray[np.int64]
    cluster: NDArray[np.int64]
    subset: Sequence[str | None]

    def only(self, mask: NDArray[np.bool_]) -> Labels:
        cluster = np.unique(self.cluster[mask], return_inverse=True)[1].astype(np.int64)
        return Labels(
            self.target[mask], self.lengths[mask], cluster, [s for s, m in zip(self.subset, mask, strict=True) if m]
        )


@dataclass(frozen=True, slots=True)
class Verdicts:
    """A judge's word. ``said`` [N, S] = P(the first answer is better) as shown in either order, NaN none; ``asked`` [N, S];
    ``margin`` [N] the first answer's score less the second's, of a judge that scores. ``places``: whether the order is what
    the judge saw (an oracle that sees one answer at a time has none)."""

    name: str
    said: Floats
    asked: NDArray[np.bool_]
    margin: Floats | None = None
    places: bool = True

    def only(self, mask: NDArray[np.bool_]) -> Verdicts:
        margin = None if self.margin is None else self.margin[mask]
        return Verdicts(self.name, self.said[mask], self.asked[mask], margin, self.places)

    @property
    def joint(self) -> Floats:
        """[N] the mean over the orders asked; NaN where one of them gave none."""
        missing = (self.asked & np.isnan(self.said)).any(1) | ~self.asked.any(1)
        total = np.where(self.asked, np.nan_to_num(self.said), 0).sum(1)
        return np.where(missing, np.nan, total / np.maximum(self.asked.sum(1), 1))


@dataclass(frozen=True, slots=True)
class Counted:
    """Verdicts on comparisons whose label names a side, both orders together."""

    right: int
    wrong: int
    tie: int
    none: int


@dataclass(frozen=True, slots=True)
class Orders:
    """The comparisons asked in both orders."""

    comparisons: int
    same: int
    """The same verdict both times."""
    different: int
    one_missing: int
    both_missing: int
    consistency: Interval | None
    """Share of the same verdict where there are two."""
    both_right: Interval | None
    """Share right both times, of all with a side to name."""


@dataclass(frozen=True, slots=True)
class Place:
    """Preference for a place. Of verdicts that name a side."""

    first_shown: Interval | None
    """Share won by the answer shown first; without a preference 1/2 where both orders are asked."""
    first_right: Interval | None
    """Share on which the label says so: what is expected where one order is asked."""


@dataclass(frozen=True, slots=True)
class LengthBias:
    """Of verdicts that name a side, on answers of different lengths (characters)."""

    longer_right: Interval | None
    """Accuracy where the longer answer is right."""
    shorter_right: Interval | None
    """Accuracy where the shorter answer is right."""
    longer_preferred: Interval | None
    """Share of verdicts for the longer answer."""
    longer_labelled: Interval | None
    """Share of these comparisons on which the label is for the longer answer: the accuracy of "take the longer"."""


@dataclass(frozen=True, slots=True)
class Quality:
    """A judge's figures; intervals at 95 %, over prompts. None: nothing to tell it from."""

    name: str
    comparisons: int
    prompts: int
    label_ties: int
    unlabelled: int
    counted: Counted
    accuracy: Interval | None
    decided_accuracy: Interval | None
    strict_accuracy: Interval | None
    balanced_accuracy: Interval | None
    exact: Interval | None
    """Share of verdicts equal to the label, where ties of either are a class of their own."""
    confusion: Mapping[str, Mapping[str, int]]
    """Label -> verdict -> count over both orders, VERDICTS by VERDICTS (a label "none" is a missing one)."""
    label: PairAgreement
    """Agreement with the label of the joint verdict (the mean of both orders)."""
    orders: Orders | None
    place: Place | None
    length: LengthBias
    certainty: Certainty | None
    """AUC and calibration, of a judge that gives probabilities or scores."""
    subsets: Mapping[str, Quality]
    subset_mean: Interval | None
    """Mean of the subsets' accuracies, each with the same weight."""


def quality(labels: Labels, verdicts: Verdicts, seed: int = 0) -> Quality:
    """All figures, and those of each subset."""
    whole = _quality(labels, verdicts, seed)
    names = list(dict.fromkeys(s for s in labels.subset if s is not None))
    if len(names) < 2:
        return whole
    parts, drawn = {}, []
    for name in names:
        mask = np.array([s == name for s in labels.subset])
        part_seed = seed_for(seed, "subset", name)  # subsets hold different prompts, so their errors are independent
        part, sums = _quality_and_sums(labels.only(mask), verdicts.only(mask), part_seed)
        parts[name] = part
        drawn.append(sums.drawn(_accuracy))
    means = [part.accuracy for part in parts.values()]
    mean = None
    if all(m is not None for m in means):
        value = float(np.mean([m.value for m in means if m is not None]))
        mean = percentiles(value, np.mean(drawn, 0), sum(m.n for m in means if m is not None))
    return replace(whole, subsets=parts, subset_mean=mean)


def _quality(labels: Labels, verdicts: Verdicts, seed: int) -> Quality:
    return _quality_and_sums(labels, verdicts, seed)[0]


def _quality_and_sums(labels: Labels, verdicts: Verdicts, seed: int) -> tuple[Quality, Sums]:
    said, label = classes(verdicts.said), classes(labels.target)
    sums = Sums(_columns(labels, verdicts, said, label), labels.cluster, seed)
    counted = Counted(*(round(sums.total(name)) for name in ("right", "wrong", "tied", "none")))
    joint = classes(verdicts.joint)
    found = Quality(
        name=verdicts.name,
        comparisons=len(label),
        prompts=sums.prompts,
        label_ties=int((label == 2).sum()),
        unlabelled=int((label == MISSING).sum()),
        counted=counted,
        accuracy=sums.interval(_accuracy, ("right", "wrong", "tied")),
        decided_accuracy=sums.interval(lambda of: of("right") / (of("right") + of("wrong")), ("right", "wrong")),
        strict_accuracy=sums.ratio("right", "asked"),
        balanced_accuracy=sums.interval(_balanced, ("first_all", "second_all")),
        exact=sums.ratio("exact", "exact_all"),
        confusion=_confusion(said, label, verdicts.asked),
        label=pair_agreement(("label", verdicts.name), label, joint, labels.cluster, seed),
        orders=_orders(sums) if sums.total("both") else None,
        place=Place(sums.ratio("shown_first", "decided"), sums.ratio("label_first", "label_decided"))
        if verdicts.places
        else None,
        length=LengthBias(
            sums.ratio("right_longer", "longer"),
            sums.ratio("right_shorter", "shorter"),
            sums.ratio("for_longer", "unequal"),
            sums.ratio("longer", "unequal_labelled"),
        ),
        certainty=certainty(verdicts.joint, verdicts.margin, labels.target, labels.cluster, seed),
        subsets={},
        subset_mean=None,
    )
    return found, sums


def _columns(labels: Labels, verdicts: Verdicts, said: NDArray[np.int64], label: NDArray[np.int64]) -> dict[str, Any]:
    """What Sums adds up [N each]; verdicts of both orders are added."""
    asked, side = verdicts.asked, ((label == 0) | (label == 1))[:, None]
    right = asked & side & (said == label[:, None])
    tied, none = asked & side & (said == 2), asked & side & (said == MISSING)
    decided = asked & ((said == 0) | (said == 1))
    wrong = decided & side & ~right
    usable = asked & (said != MISSING) & (label != MISSING)[:, None]
    both = asked.all(1)
    missing = (said == MISSING).sum(1)
    longer = np.sign(labels.lengths[:, 0] - labels.lengths[:, 1])[:, None]  # 1 where the first is longer, -1, or 0
    for_longer = decided & (((said == 0) & (longer > 0)) | ((said == 1) & (longer < 0)))
    label_longer = ((label == 0)[:, None] & (longer > 0)) | ((label == 1)[:, None] & (longer < 0))
    judged = (right | wrong) & (longer != 0)
    first, second = side & (label == 0)[:, None], side & (label == 1)[:, None]
    credit = right + 0.5 * tied
    by_order = {
        "right": right,
        "wrong": wrong,
        "tied": tied,
        "none": none,
        "asked": asked & side,
        "credit": credit,
        "first_credit": credit * first,
        "first_all": (right | wrong | tied) & first,
        "second_credit": credit * second,
        "second_all": (right | wrong | tied) & second,
        "exact": usable & (said == label[:, None]),
        "exact_all": usable,
        "decided": decided,
        "shown_first": decided & (said == np.array([0, 1])),  # in the second order the second answer is shown first
        "label_decided": decided & side,
        "label_first": decided & side & (label[:, None] == np.array([0, 1])),
        "right_longer": right & label_longer,
        "longer": judged & label_longer,
        "right_shorter": right & ~label_longer & (longer != 0),
        "shorter": judged & ~label_longer,
        "unequal": decided & (longer != 0),
        "for_longer": for_longer,
        "unequal_labelled": judged,
    }
    whole = {
        "both": both,
        "same": both & (missing == 0) & (said[:, 0] == said[:, 1]),
        "different": both & (missing == 0) & (said[:, 0] != said[:, 1]),
        "one_missing": both & (missing == 1),
        "both_missing": both & (missing == 2),
        "both_verdicts": both & (missing == 0),
        "both_side": both & side[:, 0],
        "both_right": both & right.all(1),
    }
    return {name: column.sum(1) for name, column in by_order.items()} | whole


def _accuracy(of: Sum) -> Floats:
    return of("credit") / (of("right") + of("wrong") + of("tied"))


def _balanced(of: Sum) -> Floats:
    return balanced(np.stack([of(name) for name in ("first_credit", "first_all", "second_credit", "second_all")], 1))


def _orders(sums: Sums) -> Orders:
    return Orders(
        comparisons=round(sums.total("both")),
        same=round(sums.total("same")),
        different=round(sums.total("different")),
        one_missing=round(sums.total("one_missing")),
        both_missing=round(sums.total("both_missing")),
        consistency=sums.ratio("same", "both_verdicts"),
        both_right=sums.ratio("both_right", "both_side"),
    )


def _confusion(
    said: NDArray[np.int64], label: NDArray[np.int64], asked: NDArray[np.bool_]
) -> Mapping[str, Mapping[str, int]]:
    there = np.where(said == MISSING, 3, said)
    rows = np.where(label == MISSING, 3, label)
    return {
        name: {verdict: int((asked & (there == v) & (rows == n)[:, None]).sum()) for v, verdict in enumerate(VERDICTS)}
        for n, name in enumerate(VERDICTS)
    }


def macro_scores(confusion: Mapping[str, Mapping[str, int]]) -> tuple[float, float, float, float]:
    """Accuracy and macro-averaged precision, recall and F1 over first, second and tie, a missing verdict taken for a tie:
    PandaLM's way, in which these are published. A class without predictions has precision 0."""
    names = VERDICTS[:3]
    cell = {(a, b): confusion[a][b] + (confusion[a]["none"] if b == "tie" else 0) for a in names for b in names}
    total = sum(cell.values())
    scores = []
    for name in names:
        hit, said, true = cell[name, name], sum(cell[a, name] for a in names), sum(cell[name, b] for b in names)
        precision, recall = hit / said if said else 0.0, hit / true if true else 0.0
        scores.append((precision, recall, 2 * precision * recall / (precision + recall) if hit else 0.0))
    precision, recall, f1 = (sum(column) / len(names) for column in zip(*scores, strict=True))
    return sum(cell[n, n] for n in names) / total, precision, recall, f1
