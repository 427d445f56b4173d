"""Two judgments of the same answers: by two judges, in two orders, or at two times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import correlation, fmean

from nashtune.records import Interval, Judgment


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far a second judge repeats a first; ``comparisons`` are those that both decide."""

    comparisons: int
    balanced_accuracy: Interval | None
    """Mean of the share repeated among the first judge's "earlier candidate wins" and among its "later wins", with a
    bootstrap interval over prompts; coin tosses have 0.5, and so has a judge that always names one place. None where
    the first judge's verdicts are all of one kind."""
    score_correlation: float | None
    """Pearson correlation over all answers that both score; None where either gives one score only."""


@dataclass(frozen=True, slots=True)
class Drift:
    """Change of the verdicts on answers that stay the same (anchors) since they were first judged."""

    answers: int
    """Anchors with both scores."""
    mean_change: float | None
    """Mean absolute change of the score (points); None for an oracle that only compares."""
    comparisons: int
    """Pairs of anchors decided both times."""
    flips: float | None
    """Share of these that changed sides."""
    rejudged: float | None = None
    """Mean absolute change between two judgments at about the same time; None where the anchors were judged once."""


def position_flips(first: Judgment, second: Judgment) -> float | None:
    """Share of comparisons, decided in both of two judgments of one set shown in different orders, whose winner changed;
    None where there are none. Raises ValueError for different sets, and for the same order."""
    if (first.prompt_id, sorted(first.response_ids)) != (second.prompt_id, sorted(second.response_ids)):
        raise ValueError(f"prompts {first.prompt_id}, {second.prompt_id}: accepted: two judgments of the same answers")
    shown = [[j.response_ids[i] for i in j.order] for j in (first, second)]
    if shown[0] == shown[1]:
        raise ValueError(f"prompt {first.prompt_id}: both judgments show the same order; accepted: different orders")
    return _share([a != b for a, b in _decided(first, second)])


def agreement(
    first: Iterable[Judgment], second: Iterable[Judgment], confidence: float = 0.95, seed: int = 0
) -> Agreement:
    """Compare two judges on the prompts and answers that both judged. The second's word is held against the first's."""
    prompts = [(list(_decided(a, b)), list(_scored(a, b))) for a, b in _matched(first, second)]
    tables = [_table(decided) for decided, _ in prompts if decided]
    scores = [pair for _, pairs in prompts for pair in pairs]
    return Agreement(
        comparisons=sum(len(decided) for decided, _ in prompts),
        balanced_accuracy=_balanced(tables, confidence, seed),
        score_correlation=_pearson(scores),
    )


def drift(first: Iterable[Judgment], now: Iterable[Judgment]) -> Drift | None:
    """Anchors are the answers that both streams judged; other answers in their sets, which a listwise judge saw too,
    may differ. None where there is no anchor."""
    matched = list(_matched(first, now))
    changes = [abs(b - a) for pair in matched for a, b in _scored(*pair)]
    turned = [a != b for pair in matched for a, b in _decided(*pair)]
    if not changes and not turned:
        return None
    return Drift(len(changes), fmean(changes) if changes else None, len(turned), _share(turned))


def _matched(first: Iterable[Judgment], second: Iterable[Judgment]) -> Iterator[tuple[Judgment, Judgment]]:
    """Usable judgments of the same prompts."""
    known = {j.prompt_id: j for j in first if j.outcome == "ok"}
    for judgment in second:
        if judgment.outcome == "ok" and judgment.prompt_id in known:
            yield known[judgment.prompt_id], judgment


def _places(first: Judgment, second: Judgment) -> list[tuple[int, int]]:
    """Where each common answer stands in either judgment."""
    there = {response: place for place, response in enumerate(second.response_ids)}
    return [(here, there[response]) for here, response in enumerate(first.response_ids) if response in there]


def _decided(first: Judgment, second: Judgment) -> Iterator[tuple[bool, bool]]:
    """For each pair of common answers decided in both: whether the earlier wins, by either."""
    for (a, b), (i, j) in combinations(_places(first, second), 2):
        one, two = first.preference(a, i), second.preference(b, j)
        if one is not None and two is not None and one != 0.5 and two != 0.5:
            yield one > 0.5, two > 0.5


def _scored(first: Judgment, second: Judgment) -> Iterator[tuple[float, float]]:
    """Both scores of each common answer that has them."""
    if first.scores is None or second.scores is None:
        return
    for a, b in _places(first, second):
        one, two = first.scores[a], second.scores[b]
        if one is not None and two is not None:
            yield one, two


def _share(values: Sequence[bool]) -> float | None:
    return fmean(values) if values else None


_Table = tuple[int, int, int, int]
"""Of one prompt: repeated and all, where the earlier wins; repeated and all, where the later wins."""


def _table(decided: Sequence[tuple[bool, bool]]) -> _Table:
    earlier = [b for a, b in decided if a]
    later = [not b for a, b in decided if not a]
    return sum(earlier), len(earlier), sum(later), len(later)


def _balanced(tables: Sequence[_Table], confidence: float, seed: int) -> Interval | None:
    """None where the first judge's verdicts are all of one kind."""
    import numpy as np

    from nashtune.judging.balanced import balanced_interval

    if not (any(earlier for _, earlier, _, _ in tables) and any(later for _, _, _, later in tables)):
        return None
    return balanced_interval(np.asarray(tables, np.float64), seed, confidence)


def _pearson(pairs: Sequence[tuple[float, float]]) -> float | None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    return correlation(first, second) if len(set(first)) > 1 and len(set(second)) > 1 else None
