"""From a pairwise set, and what an oracle said of it, to the arrays that figures are made of."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nashtune.checks.ask import Asked
from nashtune.judging.judge_quality import Labels, Verdicts
from nashtune.judging.pairwise_set import LabelledPair, PairwiseSet
from nashtune.judging.panel import total_usage
from nashtune.judging.resampled import clusters
from nashtune.records import Judgment, Usage


@dataclass(frozen=True, slots=True)
class Bill:
    """What asking took, and the reasons of unusable judgments, the most frequent first."""

    judgments: int
    unusable: int
    reasons: dict[str, int]
    usage: Usage


def labels_of(data: PairwiseSet) -> Labels:
    """Prompts that differ in white space and case alone are one cluster."""
    return Labels(
        target=np.array([pair.comparison.target for pair in data.pairs], np.float64),
        lengths=np.array([[len(p.comparison.first.text), len(p.comparison.second.text)] for p in data.pairs], np.int64),
        cluster=clusters([pair.comparison.group for pair in data.pairs]),
        subset=[pair.subset for pair in data.pairs],
    )


def stored_verdicts(data: PairwiseSet) -> list[Verdicts]:
    """The judges that came with the data; a comparison that a judge has no row for was not asked."""
    found = []
    for name in data.judges:
        words = [pair.verdicts.get(name, (None, None)) for pair in data.pairs]
        asked = np.array([[value is not None for value in word] for word in words], bool)
        said = np.array([[math.nan if value is None else value for value in word] for word in words], np.float64)
        found.append(Verdicts(name, said, asked))
    return found


def annotator_verdicts(data: PairwiseSet) -> dict[str, np.ndarray]:
    """[N] of each person; NaN where there is none."""
    table = np.array([pair.annotations for pair in data.pairs], np.float64)
    return {name: table[:, place] for place, name in enumerate(data.annotators)}


def asked_verdicts(name: str, pairs: Sequence[LabelledPair], asked: Asked, places: bool) -> Verdicts:
    """What an oracle said; where it records the order shown, a verdict stands under that order. ``places``: whether it is
    shown both answers, in an order."""
    said, there = np.full((len(pairs), 2), np.nan), np.zeros((len(pairs), 2), bool)
    margin = np.full(len(pairs), np.nan)
    for n, judgments in enumerate(asked.judgments):
        if (by_order := _by_order(judgments[0])) is not None:
            said[n], there[n] = by_order, True
            continue
        first = _first_slot(judgments)
        for number, judgment in enumerate(judgments):
            known = judgment.preference(0, 1)
            slot, value = (first + number) % 2, math.nan if known is None else known
            said[n, slot], there[n, slot] = (1 - value if number else value), True
        margin[n] = _margin(judgments)
    return Verdicts(name, said, there, None if np.isnan(margin).all() else margin, places)


def _by_order(judgment: Judgment) -> tuple[float, float] | None:
    """P(the first answer wins) by the order shown, of a judgment that has asked in both."""
    measures = judgment.measures
    if not {"shown_first", "shown_second"} <= measures.keys():
        return None
    found = [measures[name][0] for name in ("shown_first", "shown_second")]
    first, second = (math.nan if value is None else value for value in found)
    return first, second


def _first_slot(judgments: Sequence[Judgment]) -> int:
    """0 where the first pass showed the first answer first. The second pass, of swapped candidates by the same seed, showed the
    reverse: whichever pass has recorded its order tells that of both."""
    return next((int(j.order[0] != 0) for j in judgments if len(j.order) == 2), 0)


def _margin(judgments: Sequence[Judgment]) -> float:
    """Mean over the passes of the first answer's score less the second's; NaN where one is unknown."""
    found = []
    for number, judgment in enumerate(judgments):
        if judgment.outcome != "ok" or judgment.scores is None:
            return math.nan
        first, second = judgment.scores[::-1] if number else judgment.scores
        if first is None or second is None:
            return math.nan
        found.append(first - second)
    return math.fsum(found) / len(found)


def bill_of(asked: Asked) -> Bill:
    judgments = [judgment for several in asked.judgments for judgment in several]
    reasons = Counter(judgment.reason for judgment in judgments if judgment.outcome != "ok")
    return Bill(
        judgments=len(judgments),
        unusable=reasons.total(),
        reasons=dict(reasons.most_common(5)),
        usage=total_usage([judgment.usage for judgment in judgments]),
    )
