"""A cheap oracle sees every candidate, the strong one those that can become pairs, or the sets that the cheap one is not sure of,
and a random share is audited."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from nashtune import recipe
from nashtune.judging.oracle import Oracle
from nashtune.judging.panel import total_usage
from nashtune.records import Judgment, Prompt, Response, Usage
from nashtune.seeds import seed_for


@dataclass(frozen=True, slots=True)
class Bounds:
    """A candidate's win rate by the cheap oracle, less and plus ``z`` standard errors."""

    low: float
    high: float


class CascadeOracle:
    """The strong oracle's verdicts on the teacher, the candidate with the highest upper bound and the one with the lowest
    lower bound (``shown`` in all, then by the next bounds); the others stay unknown and give no pairs.

    Where its verdict on best against worst is closer than ``certain_margin``, it is asked again with the order reversed and
    both are averaged. A share ``audit`` of prompts, drawn by seed, goes whole to the audit oracle (the paper's prompt):
    its verdict is then the judgment, and ``measures`` holds "cascade" and "audit" scores side by side. A prompt on which
    the cheap oracle has no word goes whole to the strong one. With ``trust``, a set that the cheap oracle is sure of is not
    shown to the strong one at all: the cheap verdict on all candidates is the judgment.
    """

    name = "cascade"

    def __init__(self, section: recipe.CascadeOracle, cheap: Oracle, strong: Oracle, audit: Oracle | None) -> None:
        self._section = section
        self._cheap, self._strong, self._audit = cheap, strong, audit
        parts = [part for part in (cheap, strong, audit) if part is not None]
        self.needs_logprobs = frozenset(name for part in parts for name in part.needs_logprobs)

    async def judge(self, prompt: Prompt, candidates: Sequence[Response], seed: int) -> Judgment:
        first = await self._cheap.judge(prompt, candidates, seed)
        if self._section.trust is not None and (sure := sureness(first)) is not None and sure >= self._section.trust:
            chosen, found, usages = (), first, [first.usage]
        else:
            chosen = choose(first, candidates, self._section.shown, self._section.z)
            verdict, usage = await self._ask_strong(prompt, [candidates[i] for i in chosen], seed)
            found, usages = _spread(verdict, chosen, len(candidates)), [first.usage, *usage]
        if self._audit is not None and seed_for("audit", seed) % 1_000_000 < self._section.audit * 1_000_000:
            audit = await self._audit.judge(prompt, candidates, seed)
            usages.append(audit.usage)
            if audit.outcome == "ok":
                measures = {"cascade": _values(found), "audit": _values(audit)}
                found = dataclasses.replace(audit, measures=measures)
        return dataclasses.replace(
            found,
            prompt_id=prompt.id,
            response_ids=tuple(c.id for c in candidates),
            oracle=self.name,
            raw=json.dumps({"first": [_round(v) for v in _values(first)], "shown": list(chosen), "reply": found.raw}),
            usage=total_usage(usages),
        )

    async def aclose(self) -> None:
        for part in (self._cheap, self._strong, self._audit):
            if part is not None:
                await part.aclose()

    async def _ask_strong(self, prompt: Prompt, shown: Sequence[Response], seed: int) -> tuple[Judgment, list[Usage]]:
        verdict = await self._strong.judge(prompt, shown, seed)
        if verdict.outcome != "ok" or verdict.scores is None or len(shown) < 2:
            return verdict, [verdict.usage]
        known = [score for score in verdict.scores if score is not None]
        if max(known) - min(known) >= self._section.certain_margin:
            return verdict, [verdict.usage]
        turned = reversed_presentation(verdict.order)
        again = await self._strong.judge(prompt, [shown[i] for i in turned], seed)
        usages = [verdict.usage, again.usage]
        if again.outcome != "ok" or again.scores is None:
            return verdict, usages
        second = {turned[place]: score for place, score in enumerate(again.scores)}
        means = tuple(_mean(score, second[i]) for i, score in enumerate(verdict.scores))
        return dataclasses.replace(verdict, scores=means, raw=json.dumps([verdict.raw, again.raw])), usages


def choose(first: Judgment, candidates: Sequence[Response], shown: int, z: float) -> tuple[int, ...]:
    """Indices of the candidates the strong oracle sees, ascending: all teachers, then by turns the highest upper bound and
    the lowest lower bound among the rest. All of them where the cheap oracle has no word."""
    bounds = win_rate_bounds(first, z)
    if bounds is None or len(candidates) <= shown:
        return tuple(range(len(candidates)))
    chosen = [i for i, c in enumerate(candidates) if c.source == "teacher"][:shown]
    rest = [i for i in range(len(candidates)) if i not in chosen]
    by_high = sorted(rest, key=lambda i: (-bounds[i].high, candidates[i].id))
    by_low = sorted(rest, key=lambda i: (bounds[i].low, candidates[i].id))
    for best, worst in zip(by_high, by_low, strict=True):
        for i in (best, worst):
            if i not in chosen and len(chosen) < shown:
                chosen.append(i)
    return tuple(sorted(chosen))


def win_rate_bounds(judgment: Judgment, z: float) -> tuple[Bounds, ...] | None:
    """Bounds on each candidate's mean preference over the others; the variance of a comparison is P (1 - P). None where
    the judgment leaves a candidate unknown."""
    count = len(judgment.response_ids)
    found: list[Bounds] = []
    for i in range(count):
        known = [p for j in range(count) if j != i and (p := judgment.preference(i, j)) is not None]
        if not known:
            return None
        mean = math.fsum(known) / len(known)
        error = math.sqrt(math.fsum(p * (1 - p) for p in known)) / len(known)
        found.append(Bounds(mean - z * error, mean + z * error))
    return tuple(found)


def sureness(judgment: Judgment) -> float | None:
    """Mean of max(P, 1 - P) over all comparisons, 0.5 to 1; None where the judgment leaves one unknown."""
    count = len(judgment.response_ids)
    known = [judgment.preference(i, j) for j in range(count) for i in range(j)]
    sure = [max(p, 1 - p) for p in known if p is not None]
    return math.fsum(sure) / len(sure) if sure and len(sure) == len(known) else None


def reversed_presentation(order: Sequence[int]) -> tuple[int, ...]:
    """The candidates' indices in an arrangement which, shown by the same permutation ``order``, appears in reverse."""
    turned = [0] * len(order)
    for place, index in enumerate(order):
        turned[index] = order[len(order) - 1 - place]
    return tuple(turned)


def _spread(judgment: Judgment, chosen: Sequence[int], count: int) -> Judgment:
    """A judgment of some candidates as one of all, the rest unknown."""
    place = {index: n for n, index in enumerate(chosen)}
    scores = None
    if judgment.scores is not None:
        known = judgment.scores
        scores = tuple(known[place[i]] if i in place else None for i in range(count))
    matrix = None
    if judgment.matrix is not None:
        rows = judgment.matrix
        matrix = tuple(
            tuple(rows[place[i]][place[j]] if i in place and j in place else None for j in range(count))
            for i in range(count)
        )
    order = tuple(chosen[i] for i in judgment.order)
    return dataclasses.replace(judgment, scores=scores, matrix=matrix, order=order, measures={})


def _values(judgment: Judgment) -> tuple[float | None, ...]:
    """Scores where there are any, else win rates."""
    if judgment.outcome != "ok":
        return (None,) * len(judgment.response_ids)
    return judgment.scores if judgment.scores is not None else judgment.win_rates()


def _mean(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else (a + b) / 2


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
