"""Verdicts to training pairs (Algorithm 2, line 6): rules, margins, kinds, length control, replay, drop reasons.

Margins are measured in the judge's score where the oracle scores, else in the win rate r (Judgment.win_rates).

A response with defects is an *automatic negative*: it is never chosen, its score is the lowest there is (0, or the
set's lowest score where that is negative) and it loses to every sound candidate, whatever the oracle said of it; its r
is 0. A sound candidate on which the oracle has no word is neither positive nor negative.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from nashtune.errors import PairError
from nashtune.recipe import PairsSection, ReplaySection
from nashtune.records import Judgment, Pair, PairKind, Prompt, Response, Source
from nashtune.seeds import content_hash, seed_for

Item = tuple[Prompt, Sequence[Response], Judgment]

# Win rates are means of K - 1 verdicts, so that 0.6 - 0.2 must count as the 0.4 it stands for.
TOLERANCE = 1e-9

KINDS: dict[tuple[Source, Source], PairKind] = {
    ("teacher", "student"): "T>S",
    ("student", "teacher"): "S>T",
    ("student", "student"): "S>S",
    ("teacher", "teacher"): "T>T",
}


@dataclass(frozen=True, slots=True)
class PairSet:
    """The pairs of one iteration. ``dropped`` counts why prompts, candidates and pairs gave nothing, ``kinds`` counts
    pairs by kind; ``margins`` holds the mean margin (points of score, or of win rate) of the kinds that occur."""

    pairs: tuple[Pair, ...]
    dropped: Mapping[str, int]
    kinds: Mapping[PairKind, int]
    margins: Mapping[PairKind, float]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A response with a verdict: its win rate r and, where the oracle scores, its score."""

    response: Response
    score: float | None
    r: float
    p: float | None
    """Estimated P(y beats pi_t)."""

    @property
    def value(self) -> float:
        """What margins are measured in."""
        return self.r if self.score is None else self.score

    @property
    def sound(self) -> bool:
        return not self.response.defects


@dataclass(frozen=True, slots=True)
class Ranking:
    """One prompt's candidates, ordered by id, with the thresholds in the unit of their values.

    ``step`` is the smallest difference between two values: one point of score, or one win among the K - 1 others.
    """

    candidates: tuple[Candidate, ...]
    positive: float
    margin: float
    student_margin: float
    step: float
    seed: int

    @property
    def sound(self) -> tuple[Candidate, ...]:
        return tuple(c for c in self.candidates if c.sound)


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a rule admits: each of ``positives`` over each of ``negatives`` that lies below it, and by at least
    ``least(positive)``."""

    positives: Sequence[Candidate]
    negatives: Sequence[Candidate]
    least: Callable[[Candidate], float]


def paper(ranking: Ranking) -> Proposal:
    """Every positive with every candidate a clear margin below; a student's positive needs only the smaller margin."""
    positives = [c for c in ranking.sound if c.value >= ranking.positive - TOLERANCE]
    return Proposal(
        positives,
        ranking.candidates,
        lambda c: ranking.student_margin if c.response.source == "student" else ranking.margin,
    )


def restrictive(ranking: Ranking) -> Proposal:
    """DNO-Restrictive: as the paper's rule, with the teacher's answers alone as positives."""
    positives = [c for c in paper(ranking).positives if c.response.source == "teacher"]
    return Proposal(positives, ranking.candidates, lambda _: ranking.margin)


def best_worst(ranking: Ranking) -> Proposal:
    """The best candidate with the worst one, provided they differ; ties by seed, a defect being worse than any."""
    if not ranking.sound:
        return Proposal((), (), lambda _: 0.0)
    best = max(ranking.sound, key=lambda c: (c.value, seed_for(ranking.seed, c.response.id)))
    worst = min(ranking.candidates, key=lambda c: (c.value, c.sound, seed_for(ranking.seed, c.response.id)))
    return Proposal((best,), (worst,), lambda _: 0.0)


def every_difference(ranking: Ranking) -> Proposal:
    """Every ordered pair of candidates whose values differ."""
    return Proposal(ranking.sound, ranking.candidates, lambda _: 0.0)


def teacher_wins(ranking: Ranking) -> Proposal:
    """SPIN: the teacher's answers over every answer of the student's, whatever their values."""
    teachers = [c for c in ranking.sound if c.response.source == "teacher"]
    return Proposal(teachers, [c for c in ranking.candidates if c.response.source == "student"], lambda _: 0.0)


RULES: dict[str, Callable[[Ranking], Proposal]] = {
    "paper": paper,
    "restrictive": restrictive,
    "best_worst": best_worst,
    "all": every_difference,
    "teacher_wins": teacher_wins,
}


def build_pairs(items: Iterable[Item], section: PairsSection, iteration: int, seed: int) -> PairSet:
    """Training pairs from judged candidate sets, one item (prompt, candidates, judgment) per prompt, in stream order.

    Holds only the pairs kept. Within a prompt the widest margin comes first, ties by a seed of the two ids, so that the
    order of candidates decides nothing. Raises PairError where a judgment is not one of the candidates it comes with.
    """
    builder = PairBuilder(section, iteration, seed)
    for item in items:
        builder.add(*item)
    return builder.finish()


class PairBuilder:
    """``build_pairs``, one prompt at a time."""

    def __init__(self, section: PairsSection, iteration: int, seed: int):
        self._section, self._iteration, self._seed = section, iteration, seed
        self._pairs: list[Pair] = []
        self._dropped: Counter[str] = Counter()

    def add(self, prompt: Prompt, responses: Sequence[Response], judgment: Judgment) -> list[Pair]:
        """The pairs of one prompt."""
        dropped = self._dropped
        candidates = candidates_of(prompt, responses, judgment)
        if judgment.outcome != "ok":
            dropped["prompt: unusable judgment"] += 1
            return []
        dropped.update(f"candidate: defect {name}" for response in responses for name in response.defects)
        dropped["candidate: no verdict"] += len(responses) - len(candidates)
        ranking = _ranking(candidates, len(responses), self._section, self._seed)
        rule = RULES[self._section.rule]
        found = _prompt_pairs(rule(ranking), ranking, self._section, self._iteration, dropped)
        self._pairs += found
        return found

    def finish(self) -> PairSet:
        """The pairs so far, and what was counted on the way."""
        margins: dict[PairKind, list[float]] = {}
        for pair in self._pairs:
            margins.setdefault(pair.kind, []).append(pair.margin)
        return PairSet(
            tuple(self._pairs),
            {reason: count for reason, count in sorted(self._dropped.items()) if count},
            {kind: len(margins.get(kind, ())) for kind in KINDS.values()},
            {kind: math.fsum(values) / len(values) for kind, values in margins.items()},
        )


def _prompt_pairs(
    proposal: Proposal, ranking: Ranking, section: PairsSection, iteration: int, dropped: Counter[str]
) -> list[Pair]:
    """The pairs one prompt gives; adds to ``dropped`` what it does not."""
    if not proposal.positives:
        dropped["prompt: no positive"] += 1
        return []
    clear: list[tuple[float, int, Candidate, Candidate]] = []
    for positive in proposal.positives:
        for negative in proposal.negatives:
            difference = positive.value - negative.value
            if difference <= TOLERANCE:
                continue
            if difference < proposal.least(positive) - TOLERANCE:
                dropped["pair: margin too small"] += 1
                continue
            tie = seed_for(ranking.seed, positive.response.id, negative.response.id)
            clear.append((-round(difference, 9), tie, positive, negative))
    if not clear:
        dropped["prompt: no negative a clear margin below"] += 1
    kept: list[Pair] = []
    for difference, _, positive, negative in sorted(clear, key=lambda entry: entry[:2]):
        smallest = -difference <= _smallest_margin(proposal.least(positive), ranking.step) + TOLERANCE
        if reason := _refusal(positive, negative, smallest, section):
            dropped[reason] += 1
        elif section.max_per_prompt is not None and len(kept) == section.max_per_prompt:
            dropped["pair: over the limit per prompt"] += 1
        else:
            kept.append(_pair(positive, negative, iteration))
    return kept


def _smallest_margin(least: float, step: float) -> float:
    """The smallest margin a rule admits: its threshold rounded up to a whole step, and one step at the least."""
    return step * max(1, math.ceil(least / step - TOLERANCE))


def _refusal(positive: Candidate, negative: Candidate, smallest: bool, section: PairsSection) -> str | None:
    """Why a pair of sufficient margin is still refused, or None."""
    chosen, rejected = positive.response.text, negative.response.text
    if chosen == rejected:
        return "pair: identical text"
    if section.min_length_ratio is not None and smallest and len(rejected) < section.min_length_ratio * len(chosen):
        return "pair: length is the only difference"
    return None


def _pair(positive: Candidate, negative: Candidate, iteration: int) -> Pair:
    chosen, rejected = positive.response, negative.response
    return Pair(
        id=content_hash(chosen.id, rejected.id),
        prompt_id=chosen.prompt_id,
        chosen_id=chosen.id,
        rejected_id=rejected.id,
        kind=KINDS[chosen.source, rejected.source],
        r_chosen=positive.r,
        r_rejected=negative.r,
        score_chosen=positive.score,
        score_rejected=negative.score,
        iteration=iteration,
        p_chosen=positive.p,
        p_rejected=negative.p,
    )


def _ranking(candidates: Sequence[Candidate], k: int, section: PairsSection, seed: int) -> Ranking:
    if any(c.score is not None for c in candidates):
        thresholds = (section.positive_score, section.margin, section.student_margin, 1.0)
    else:
        thresholds = (section.positive_rate, section.rate_margin, section.student_rate_margin, 1 / max(1, k - 1))
    return Ranking(tuple(candidates), *thresholds, seed)


def candidates_of(prompt: Prompt, responses: Sequence[Response], judgment: Judgment) -> list[Candidate]:
    """Those responses that have a verdict, ordered by id, which makes r the same to the last bit whatever the order in
    which they came. Raises PairError."""
    _check(prompt, responses, judgment)
    place = {response_id: i for i, response_id in enumerate(judgment.response_ids)}
    ordered = sorted(responses, key=lambda response: response.id)
    scores = judgment.scores or (None,) * len(ordered)
    scored = any(score is not None for score in scores)
    lowest = min(0.0, *(score for score in scores if score is not None)) if scored else None

    def beats(a: Response, b: Response) -> float | None:
        if a.defects or b.defects:
            return None if a.defects and b.defects else float(bool(b.defects))
        return judgment.preference(place[a.id], place[b.id])

    matrix = tuple(tuple(beats(a, b) for b in ordered) for a in ordered)
    ids = tuple(response.id for response in ordered)
    believed = Judgment(judgment.prompt_id, ids, judgment.oracle, matrix=matrix)
    students = [i for i, response in enumerate(ordered) if response.source == "student"]
    # A win over automatic negatives alone is not the oracle's word on a sound candidate.
    words = scores if scored else judgment.win_rates()
    return [
        Candidate(response, lowest if response.defects else scores[place[response.id]], r, p)
        for response, r, p in zip(ordered, believed.win_rates(), believed.win_rates(students), strict=True)
        if r is not None and (response.defects or words[place[response.id]] is not None)
    ]


def _check(prompt: Prompt, responses: Sequence[Response], judgment: Judgment) -> None:
    """Raises PairError, naming the prompt, where prompt, candidates and judgment do not belong together."""
    where, n = f"prompt {prompt.id}", len(judgment.response_ids)
    given = [response.id for response in responses]
    if judgment.prompt_id != prompt.id:
        raise PairError(f"{where}: its judgment is of prompt {judgment.prompt_id}; accepted: a judgment of {prompt.id}")
    if sorted(given) != sorted(judgment.response_ids) or len(set(given)) != len(given):
        raise PairError(
            f"{where}: judgment.response_ids are {list(judgment.response_ids)}; accepted: the ids of its candidates, "
            f"each once, {given}"
        )
    if strangers := [response.id for response in responses if response.prompt_id != prompt.id]:
        raise PairError(f"{where}: candidates {strangers} answer another prompt; accepted: answers to {prompt.id}")
    if judgment.scores is not None:
        if len(judgment.scores) != n:
            raise PairError(f"{where}: judgment.scores has {len(judgment.scores)} entries; accepted: {n}")
        if not all(score is None or math.isfinite(score) for score in judgment.scores):
            raise PairError(f"{where}: judgment.scores is {judgment.scores}; accepted: finite numbers or None")
    if judgment.matrix is not None:
        if [len(row) for row in judgment.matrix] != [n] * n:
            raise PairError(
                f"{where}: judgment.matrix has rows of {[len(r) for r in judgment.matrix]}; accepted: {n} x {n}"
            )
        wrong = [p for row in judgment.matrix for p in row if p is not None and not 0 <= p <= 1]
        if wrong:
            raise PairError(f"{where}: judgment.matrix holds {wrong[0]}; accepted: numbers in [0, 1] or None")


def replay(section: ReplaySection, new_count: int, earlier: Sequence[Sequence[Pair]], seed: int) -> tuple[Pair, ...]:
    """Pairs of earlier iterations to train on again: of ``earlier[0]`` (iteration t-1) at most fraction * new_count, of
    ``earlier[1]`` at most fraction * decay * new_count, and so on; chosen by a seed of each pair's id, no id twice. All of
    them where the fraction is "all"."""
    chosen: dict[str, Pair] = {}
    for age, pairs in enumerate(earlier):
        share = section.fraction
        limit = len(pairs) if share == "all" else math.floor(share * section.decay**age * new_count + TOLERANCE)
        fresh = {pair.id: pair for pair in pairs if pair.id not in chosen}
        chosen |= {id_: fresh[id_] for id_ in heapq.nsmallest(limit, fresh, key=lambda id_: seed_for(seed, id_))}
    return tuple(chosen.values())
