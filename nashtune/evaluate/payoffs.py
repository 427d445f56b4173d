"""The matrix game that a run's policies play on the held-out prompts, and how exploitable each of them is.

Verdicts on one prompt are one observation (a cluster): cells are means over prompts of means within a prompt, and the
bootstrap draws prompts. Legend: N prompts, K policies.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from nashtune.evaluate.winrate import win_rate
from nashtune.games.equilibrium import equilibrium
from nashtune.games.matrices import Array
from nashtune.records import Interval, Judgment, Payoffs

RESAMPLES = 2000
"""Bootstrap samples of prompts."""
TEACHER = -1
"""The place of the teacher among players: after all policies."""

Judged = tuple[Judgment, Sequence[int | None]]
"""A judgment and, for each of its candidates, its player: the place of its policy, TEACHER, or None for neither."""


def tally(judged: Iterable[Judged], policies: int) -> Array:
    """[N, K+1, K+1]: each prompt's mean P(i beats j) over all verdicts on its answers, in whatever set, NaN where there is
    none; K = ``policies``, the teacher last. A verdict is read as the newer player against the older (the teacher is oldest),
    as the contests read it, and the other direction is 1 minus it."""
    size = policies + 1
    sums: dict[str, Array] = {}
    counts: dict[str, Array] = {}
    for judgment, players in judged:
        if judgment.prompt_id not in sums:
            sums[judgment.prompt_id], counts[judgment.prompt_id] = np.zeros((size, size)), np.zeros((size, size))
        if judgment.outcome != "ok":
            continue
        total, count = sums[judgment.prompt_id], counts[judgment.prompt_id]
        for a, newer in enumerate(players):
            for b, older in enumerate(players):
                if newer is None or older is None or newer <= older or (p := judgment.preference(a, b)) is None:
                    continue
                total[newer, older] += p
                total[older, newer] += 1 - p
                count[newer, older] += 1
                count[older, newer] += 1
    if not sums:
        return np.full((0, size, size), np.nan)
    found, seen = np.stack(list(sums.values())), np.stack(list(counts.values()))
    return np.where(seen > 0, found / np.maximum(seen, 1), np.nan)


def payoffs(tallied: Array, policies: Sequence[int], best: int | None, confidence: float, seed: int) -> Payoffs:
    """The game of ``policies`` (iterations, oldest first) from ``tallied`` [N, K+1, K+1]; ``seed`` is the bootstrap's."""
    places = range(len(policies))
    matrix = tuple(tuple(_cell(tallied[:, i, j], confidence) if i != j else None for j in places) for i in places)
    values = np.array(
        [[0.5 if i == j else np.nan if (c := matrix[i][j]) is None else c.value for j in places] for i in places]
    )
    complete = not np.isnan(values).any()
    mixtures = {"last": np.eye(len(policies))[-1]}
    if best is not None and best in policies:
        mixtures["best"] = np.eye(len(policies))[list(policies).index(best)]
    if complete:
        mixtures["uniform"] = np.full(len(policies), 1 / len(policies))
    draws = _resampled(tallied[:, :-1, :-1], seed)
    exploited = {n: _exploitability(tallied[:, :-1, :-1], values, draws, w, confidence) for n, w in mixtures.items()}
    return Payoffs(
        policies=tuple(policies),
        matrix=matrix,
        teacher=tuple(_cell(tallied[:, i, TEACHER], confidence) for i in places),
        equilibrium=tuple(map(float, equilibrium(values))) if complete else None,
        best=best,
        exploitability={name: found for name, found in exploited.items() if found is not None},
    )


def _cell(per_prompt: Array, confidence: float) -> Interval | None:
    known = per_prompt[~np.isnan(per_prompt)].tolist()
    return win_rate([min(1.0, max(0.0, value)) for value in known], confidence) if known else None


def _resampled(tallied: Array, seed: int) -> Array:
    """[RESAMPLES, K, K]: the matrix of as many prompts drawn with replacement; 1/2 on the diagonal, NaN where unknown."""
    n, size = len(tallied), tallied.shape[1]
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), RESAMPLES) if n else np.zeros((RESAMPLES, 0))
    known = ~np.isnan(tallied)
    counts = drawn @ known.reshape(n, size * size)
    sums = drawn @ np.where(known, tallied, 0.0).reshape(n, size * size)
    found = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan).reshape(-1, size, size)
    found[:, range(size), range(size)] = 0.5
    return found


def _against(matrices: Array, mixture: Array) -> Array:
    """[..., K]: P(policy i beats the mixture), NaN where it is not known."""
    used = mixture > 0
    return matrices[..., used] @ mixture[used]


def _exploitability(tallied: Array, values: Array, draws: Array, mixture: Array, confidence: float) -> Interval | None:
    """max_i P(policy i beats the mixture) - 1/2 over the policies that have met it, with its bootstrap interval; None where
    none but itself has. Where every resample agrees, Wilson's interval of the win rates takes the bootstrap's place."""
    against = _against(values, mixture)
    rivals = [i for i, p in enumerate(against) if not np.isnan(p) and mixture[i] < 1]
    if not rivals:
        return None
    value = float(np.nanmax(against)) - 0.5
    drawn = _against(draws, mixture)
    spread = np.nanmax(drawn[~np.isnan(drawn).all(axis=1)], axis=1) - 0.5  # a resample may hold no verdict at all
    low, high = np.quantile(spread, [(1 - confidence) / 2, (1 + confidence) / 2])
    cells = [known for i in rivals if len(known := _known(_against(_filled(tallied), mixture)[:, i]))]
    n = max(map(len, cells))
    if np.ptp(spread) < 1e-12:
        intervals = [win_rate(cell, confidence) for cell in cells]
        low, high = max(found.low for found in intervals) - 0.5, max(found.high for found in intervals) - 0.5
    return Interval(value, max(0.0, min(value, float(low))), max(value, float(high)), n)


def _filled(tallied: Array) -> Array:
    """With 1/2 on the diagonal."""
    found = tallied.copy()
    found[:, range(found.shape[1]), range(found.shape[1])] = 0.5
    return found


def _known(values: Array) -> list[float]:
    return [min(1.0, max(0.0, float(v))) for v in values if not np.isnan(v)]
