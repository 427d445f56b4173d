"""What a judge's verdicts hang on besides the answers: place, length, author; and how much its verdicts say at all.

Every measure is compared with its null, the value it has where the verdict is drawn without looking: tests permute
verdicts within their candidate sets, and intervals are clustered by prompt. No measure here knows which answer is
right: longer answers may be better answers. A measure is None where no set could tell.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist, fmean

from nashtune.evaluate.winrate import win_rate
from nashtune.records import Interval, Judgment, Response, Source

ROUNDING = 1e-12
"""Sums of squares below this are floating-point noise."""


@dataclass(frozen=True, slots=True)
class JudgedSet:
    """A candidate set's verdict and what is needed to know of its K answers; lengths in characters."""

    judgment: Judgment
    lengths: tuple[int, ...]
    sources: tuple[Source, ...]
    policies: tuple[str, ...]

    @staticmethod
    def of(answers: Sequence[Response], judgment: Judgment) -> JudgedSet:
        """Raises ValueError where the answers are not the ones that were judged, in their order."""
        if tuple(a.id for a in answers) != judgment.response_ids:
            raise ValueError(
                f"prompt {judgment.prompt_id}: the answers are not those of the judgment; accepted: the same, in order"
            )
        columns = [(len(a.text), a.source, a.policy) for a in answers]
        lengths, sources, policies = zip(*columns, strict=True) if columns else ((), (), ())
        return JudgedSet(judgment, lengths, sources, policies)

    def preference(self, i: int, j: int) -> float | None:
        """P(i beats j), from the other way round where only that is known."""
        if (known := self.judgment.preference(i, j)) is not None:
            return known
        return None if (other := self.judgment.preference(j, i)) is None else 1 - other

    def comparisons(self) -> Iterator[tuple[int, int, float]]:
        """Every i < j whose verdict is known, with P(i beats j)."""
        for i, j in combinations(range(len(self.lengths)), 2):
            if (known := self.preference(i, j)) is not None:
                yield i, j, known

    def standings(self) -> tuple[float, ...] | None:
        """Scores, or win rates of an oracle that only compares; None where one of them is unknown or there is one answer."""
        scores = self.judgment.scores
        values = scores if scores is not None else self.judgment.win_rates()
        known = tuple(v for v in values if v is not None)
        return known if self.judgment.outcome == "ok" and len(known) == len(values) >= 2 else None


@dataclass(frozen=True, slots=True)
class Position:
    """Effect of the place an answer was shown at; tuples are by place, the first shown first."""

    sets: int
    best_share: tuple[float, ...]
    """Share of sets whose best answer stood there (ties share it)."""
    mean_standing: tuple[float, ...]
    """Mean score (win rate where there are none) above the mean of the set."""
    effect: float
    """Largest distance of a best share from an even one."""
    p: float | None
    """Chance of best shares at least as uneven by chi-square over random places; None where every set is all ties."""
    standing_p: float | None
    """The same of the mean standings."""


@dataclass(frozen=True, slots=True)
class Length:
    """Preference for longer answers (characters)."""

    preference: Interval | None
    """Share of decided comparisons won by the longer answer; a judge that does not look at length has 0.5."""
    correlation: float | None
    """Correlation of score (or win rate) with length, both taken from the mean of their set."""
    p: float | None
    """Chance of a correlation at least as far from 0 under permutation within the sets (normal approximation)."""


@dataclass(frozen=True, slots=True)
class Favour:
    """Mean preference for one author's answers over others'; 0.5 is even."""

    student: Interval | None
    """The student's answers over the teacher's."""
    own_model: Interval | None
    """Answers of the judge's own model over others; None where it wrote none."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How much the verdicts tell apart."""

    histogram: Mapping[str, int]
    """Scores by the nearest whole number; empty for an oracle that only compares."""
    entropy: float | None
    """Entropy of the histogram (bits)."""
    ties: float | None
    """Share of known comparisons that are ties."""
    equal_sets: float | None
    """Share of sets in which every known comparison is a tie."""
    sets: int
    """Sets with a known comparison."""


@dataclass(frozen=True, slots=True)
class Cycles:
    """Triples of answers with three decided verdicts; i over j over k over i is a cycle."""

    triples: int
    share: float
    """Share of the triples that are cyclic."""
    expected: float = 0.25
    """The share where every verdict is a coin toss: 2 of the 8 outcomes."""


def position(sets: Sequence[JudgedSet]) -> Position | None:
    """From the sets whose order of presentation is recorded."""
    shown = [
        [values[i] for i in s.judgment.order]
        for s in sets
        if (values := s.standings()) is not None and len(s.judgment.order) == len(values)
    ]
    if not shown:
        return None
    best = [[(v == max(row)) / row.count(max(row)) for v in row] for row in shown]
    above = [[v - fmean(row) for v in row] for row in shown]
    places = range(max(map(len, shown)))
    shares = tuple(fmean(row[k] for row in best if k < len(row)) for k in places)
    even = [fmean(1 / len(row) for row in best if k < len(row)) for k in places]
    return Position(
        sets=len(shown),
        best_share=shares,
        mean_standing=tuple(fmean(row[k] for row in above if k < len(row)) for k in places),
        effect=max(abs(share - e) for share, e in zip(shares, even, strict=True)),
        p=placement_p(best),
        standing_p=placement_p(above),
    )


def placement_p(rows: Sequence[Sequence[float]]) -> float | None:
    """p-value of the hypothesis that each row's values fell on its places at random.

    Under a random permutation of one row of size K and population variance v, the vector over places has covariance
    v K / (K - 1) (I - J / K), so the squared distance of the summed rows from their expectation, over the summed
    v K / (K - 1), is asymptotically chi-square with K - 1 degrees of freedom. Rows of different sizes are tested apart
    and added. None where no row has two different values.
    """
    statistic, freedom = 0.0, 0
    for size in {len(row) for row in rows if len(row) >= 2}:
        same = [[v - fmean(row) for v in row] for row in rows if len(row) == size]
        variance = sum(sum(v * v for v in row) / (size - 1) for row in same)
        if variance > ROUNDING:
            statistic += sum(sum(column) ** 2 for column in zip(*same, strict=True)) / variance
            freedom += size - 1
    return chi_square_tail(statistic, freedom) if freedom else None


def chi_square_tail(x: float, freedom: int) -> float:
    """P(X > x) for a chi-square variable with whole ``freedom`` >= 1: a finite series (Abramowitz and Stegun 26.4.4-5)."""
    half = x / 2
    if half <= 0:
        return 1.0
    if freedom % 2:
        total, power = math.erfc(math.sqrt(half)), 0.5
    else:
        total, power = math.exp(-half), 1.0
    while power < freedom / 2:  # a term in logarithms, so that neither factor overflows
        total += math.exp(power * math.log(half) - half - math.lgamma(power + 1))
        power += 1
    return min(1.0, total)


def length(sets: Sequence[JudgedSet], confidence: float) -> Length:
    """Whether the longer answer wins."""
    per_prompt = []
    for s in sets:
        decided = [
            (p > 0.5) == (s.lengths[i] > s.lengths[j]) for i, j, p in s.comparisons() if p != 0.5 and _differ(s, i, j)
        ]
        if decided:
            per_prompt.append(fmean(decided))
    both = spread_score = spread_length = chance = 0.0
    for s in sets:
        if (values := s.standings()) is None:
            continue
        a, b = _centred(values), _centred(s.lengths)
        aa, bb = sum(v * v for v in a), sum(v * v for v in b)
        both += sum(x * y for x, y in zip(a, b, strict=True))
        spread_score, spread_length = spread_score + aa, spread_length + bb
        chance += aa * bb / (len(values) - 1)  # variance of the set's sum of products under permutation
    preference = win_rate(per_prompt, confidence) if per_prompt else None
    if chance <= ROUNDING:
        return Length(preference, None, None)
    p = 2 * NormalDist().cdf(-abs(both) / math.sqrt(chance))
    return Length(preference, both / math.sqrt(spread_score * spread_length), p)


def _differ(s: JudgedSet, i: int, j: int) -> bool:
    return s.lengths[i] != s.lengths[j]


def _centred(values: Sequence[float]) -> list[float]:
    mean = fmean(values)
    return [v - mean for v in values]


def favour(sets: Sequence[JudgedSet], confidence: float) -> Favour:
    """Whose answers win. The judge's own model is recognised by its name inside the policy's."""
    student = [[source == "student" for source in s.sources] for s in sets]
    judges = [{n for n in (s.judgment.model_returned, s.judgment.model_requested) if n} for s in sets]
    own = [[any(n in policy for n in names) for policy in s.policies] for s, names in zip(sets, judges, strict=True)]
    return Favour(_preferred(sets, student, confidence), _preferred(sets, own, confidence))


def _preferred(sets: Sequence[JudgedSet], ours: Sequence[Sequence[bool]], confidence: float) -> Interval | None:
    """Mean over prompts of the preference for marked answers over unmarked ones."""
    per_prompt = []
    for s, mine in zip(sets, ours, strict=True):
        if found := [p if mine[i] else 1 - p for i, j, p in s.comparisons() if mine[i] != mine[j]]:
            per_prompt.append(fmean(found))
    return win_rate(per_prompt, confidence) if per_prompt else None


def spread(sets: Sequence[JudgedSet]) -> Spread:
    """Histogram of scores and shares of ties."""
    scores = [v for s in sets if s.judgment.outcome == "ok" for v in s.judgment.scores or () if v is not None]
    counts = Counter(round(v) for v in scores)
    tied = [[p == 0.5 for _, _, p in s.comparisons()] for s in sets]
    tied = [row for row in tied if row]
    shares = [count / len(scores) for count in counts.values()]
    return Spread(
        histogram={str(value): counts[value] for value in sorted(counts)},
        entropy=-sum(q * math.log2(q) for q in shares) + 0.0 if shares else None,
        ties=fmean(t for row in tied for t in row) if tied else None,
        equal_sets=fmean(all(row) for row in tied) if tied else None,
        sets=len(tied),
    )


def cycles(sets: Sequence[JudgedSet]) -> Cycles | None:
    """Cyclic triples among those with three decided verdicts; a triple with a tie is no cycle and none of the null's."""
    triples = cyclic = 0
    for s in sets:
        if s.judgment.matrix is None:  # scores are an order
            continue
        over = {(i, j): p > 0.5 for i, j, p in s.comparisons() if p != 0.5}
        for i, j, k in combinations(range(len(s.lengths)), 3):
            if (i, j) in over and (j, k) in over and (i, k) in over:
                triples += 1
                cyclic += over[i, j] == over[j, k] != over[i, k]
    return Cycles(triples, cyclic / triples) if triples else None
