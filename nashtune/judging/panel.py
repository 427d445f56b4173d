"""Several judges, one verdict: the weighted mean of what they prefer."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from nashtune.judging.oracle import Oracle
from nashtune.records import Judgment, Prompt, Response, Usage
from nashtune.together import together


class PanelOracle:
    """P(i beats j) is the weighted mean over the members that know it; scores likewise, where every usable member scores
    on one scale. ``measures["agreement"]``: per candidate, the share of its comparisons on which all members that know
    them name the same winner. Unusable where fewer than ``quorum`` members are usable.
    """

    name = "panel"

    def __init__(self, members: Sequence[Oracle], weights: Sequence[float], quorum: int) -> None:
        self._members, self._weights, self._quorum = tuple(members), tuple(weights), quorum
        self.needs_logprobs = frozenset(name for member in members for name in member.needs_logprobs)

    async def judge(self, prompt: Prompt, candidates: Sequence[Response], seed: int) -> Judgment:
        said = await together(member.judge(prompt, candidates, seed) for member in self._members)
        usable = [(j, w) for j, w in zip(said, self._weights, strict=True) if j.outcome == "ok"]
        enough = len(usable) >= self._quorum
        reasons = "; ".join(f"{j.oracle}: {j.reason}" for j in said if j.outcome != "ok")
        size = range(len(candidates))
        return Judgment(
            prompt_id=prompt.id,
            response_ids=tuple(c.id for c in candidates),
            oracle=self.name,
            outcome="ok" if enough else "unusable",
            reason="" if enough else f"{len(usable)} of {len(said)} members usable, {self._quorum} needed ({reasons})",
            scores=_mean_scores(usable) if enough else None,
            matrix=tuple(tuple(_mean_preference(usable, i, j) for j in size) for i in size) if enough else None,
            measures={"agreement": tuple(_agreement(usable, i) for i in size)} if enough else {},
            order=said[0].order,
            raw=json.dumps([j.raw for j in said]),
            model_requested=", ".join(j.model_requested or j.oracle for j in said),
            model_returned=", ".join(j.model_returned or j.oracle for j in said),
            usage=total_usage([j.usage for j in said]),
        )

    async def aclose(self) -> None:
        for member in self._members:
            await member.aclose()


def total_usage(parts: Sequence[Usage]) -> Usage:
    """Tokens, calls and dollars of several judgments; dollars are known where any part's are."""
    costs = [part.cost_usd for part in parts if part.cost_usd is not None]
    return Usage(
        sum(part.prompt_tokens for part in parts),
        sum(part.completion_tokens for part in parts),
        math.fsum(costs) if costs else None,
        sum(part.calls for part in parts),
    )


def _mean_preference(said: Sequence[tuple[Judgment, float]], i: int, j: int) -> float | None:
    if i == j:
        return None
    known = [(p, w) for judgment, w in said if (p := judgment.preference(i, j)) is not None]
    weight = math.fsum(w for _, w in known)
    return math.fsum(p * w for p, w in known) / weight if weight else None


def _mean_scores(said: Sequence[tuple[Judgment, float]]) -> tuple[float | None, ...] | None:
    """None unless every usable member gave every score: a mean over other members for each candidate would rank members."""
    weight = math.fsum(w for _, w in said)
    means: list[float] = []
    for column in zip(*(j.scores or () for j, _ in said), strict=False):
        known = [value for value in column if value is not None]
        if len(known) < len(said):
            return None
        means.append(math.fsum(v * w for v, (_, w) in zip(known, said, strict=True)) / weight)
    return tuple(means) if all(j.scores is not None for j, _ in said) else None


def _agreement(said: Sequence[tuple[Judgment, float]], i: int) -> float | None:
    same: list[bool] = []
    for j in range(len(said[0][0].response_ids)):
        signs = [_sign(p) for judgment, _ in said if j != i and (p := judgment.preference(i, j)) is not None]
        if len(signs) > 1:
            same.append(len(set(signs)) == 1)
    return sum(same) / len(same) if same else None


def _sign(preference: float) -> int:
    return (preference > 0.5) - (preference < 0.5)
