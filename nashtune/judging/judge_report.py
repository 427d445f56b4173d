"""How good a fitted judge is on comparisons it has not seen.

Legend: N comparisons, G prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from nashtune.judging.balanced import Floats, balanced_interval
from nashtune.records import Interval

BINS = 10


@dataclass(frozen=True, slots=True)
class JudgeReport:
    """Figures on held-out comparisons; intervals at 95 %, clustered by prompt."""

    comparisons: int
    prompts: int
    ties: int
    """Comparisons whose target is 0.5: they count for all but the accuracies."""
    balanced_accuracy: Interval
    length_baseline: Interval
    """Balanced accuracy of "prefer the longer" (characters)."""
    log_loss: float
    """Mean cross-entropy (nats)."""
    brier: float
    """Mean squared difference of predicted and true probability."""
    calibration_error: float
    """Expected calibration error, 10 bins of equal width."""
    cyclic_triples: float | None
    """Share of triples of answers to one prompt that the judge orders in a circle; None where there is no triple."""
    triples: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> JudgeReport:
        intervals = {name: Interval(**values[name]) for name in ("balanced_accuracy", "length_baseline")}
        return JudgeReport(**{**values, **intervals})


def report_on(
    predicted: Sequence[float],
    targets: Sequence[float],
    prompts: Sequence[str],
    lengths: Sequence[tuple[int, int]],
    matrices: Sequence[Sequence[Sequence[float]]],
    seed: int,
) -> JudgeReport:
    """predicted and targets [N] are P(first shown is better); prompts [N] the cluster of each; lengths [N] the
    characters of both answers; matrices the predicted [K][K] of each held-out prompt. ``seed`` draws the bootstrap.

    Raises ValueError where no comparison has a better side.
    """
    p, t = np.asarray(predicted, np.float64), np.asarray(targets, np.float64)
    longer = np.asarray([(a > b) + 0.5 * (a == b) for a, b in lengths], np.float64)
    clipped = np.clip(p, 1e-12, 1 - 1e-12)
    cyclic, triples = count_cycles(matrices)
    return JudgeReport(
        comparisons=len(p),
        prompts=len(set(prompts)),
        ties=int((t == 0.5).sum()),
        balanced_accuracy=balanced_accuracy(p, t, prompts, seed),
        length_baseline=balanced_accuracy(longer, t, prompts, seed),
        log_loss=float(-(t * np.log(clipped) + (1 - t) * np.log1p(-clipped)).mean()),
        brier=float(((p - t) ** 2).mean()),
        calibration_error=calibration_error(p, t),
        cyclic_triples=cyclic / triples if triples else None,
        triples=triples,
    )


def balanced_accuracy(predicted: Floats, targets: Floats, prompts: Sequence[str], seed: int) -> Interval:
    """Mean of the accuracy where the first shown is better and that where the second is; a prediction of 0.5 is half
    right. The interval is over prompts (``balanced_interval``).

    Raises ValueError where no target differs from 0.5.
    """
    decided = targets != 0.5
    if not decided.any():
        raise ValueError("every target is 0.5; accepted: some comparison with a better side")
    names, cluster = np.unique(np.asarray(prompts)[decided], return_inverse=True)
    right = np.where(predicted == 0.5, 0.5, (predicted > 0.5) == (targets > 0.5))[decided]
    first = targets[decided] > 0.5
    # Per prompt: right and all, where the first is better; right and all, where the second is. [G, 4]
    columns = (right * first, first, right * ~first, ~first)
    counts = np.stack([np.bincount(cluster, column.astype(np.float64), len(names)) for column in columns], 1)
    return balanced_interval(counts.astype(np.float64), seed)


def calibration_error(predicted: Floats, targets: Floats) -> float:
    """Mean over comparisons of |mean prediction - mean target| of their bin (Naeini et al., 2015)."""
    bins = np.minimum((predicted * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins, predicted - targets, BINS)
    return float(np.abs(gaps).sum() / len(predicted))


def count_cycles(matrices: Sequence[Sequence[Sequence[float]]]) -> tuple[int, int]:
    """Triples (i, j, k) in which i beats j beats k beats i, or the reverse; and all triples, those with a tie included."""
    cyclic = total = 0
    for m in matrices:
        for i, j, k in combinations(range(len(m)), 3):
            around = (m[i][j], m[j][k], m[k][i])
            total += 1
            cyclic += min(around) > 0.5 or max(around) < 0.5
    return cyclic, total
