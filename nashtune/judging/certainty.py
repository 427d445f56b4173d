"""Whether a judge's probabilities, or the size of its score differences, say how sure it can be.

Every comparison counts from both sides (P and 1 - P), so that no figure depends on which answer is called the first.

Legend: N comparisons, B resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nashtune.judging.balanced import Floats
from nashtune.judging.judge_report import calibration_error
from nashtune.judging.resampled import Sums, percentiles, weights
from nashtune.records import Interval


@dataclass(frozen=True, slots=True)
class Certainty:
    """Over comparisons with a verdict whose label names a side; intervals at 95 %, over prompts."""

    comparisons: int
    of: str
    """What is looked at: "probability", or "score difference"."""
    auc: Interval | None
    """Chance that a right side gets more than a wrong one, ties half: the area under the ROC curve."""
    log_loss: Interval | None = None
    """Mean cross-entropy (nats); of probabilities, as the rest."""
    brier: Interval | None = None
    """Mean squared error of the probability."""
    calibration_error: float | None = None
    """Expected calibration error, 10 bins of equal width."""


def certainty(
    joint: Floats, margin: Floats | None, target: Floats, cluster: NDArray[np.int64], seed: int = 0
) -> Certainty | None:
    """joint, target [N] are P(the first answer is better) by the judge and by the label, NaN missing; margin [N] score
    differences. None for a judge that gives neither probabilities nor scores, and where no comparison can tell."""
    graded = bool(np.any(~np.isnan(joint) & ~np.isin(joint, (0.0, 0.5, 1.0))))
    value, name = (joint - 0.5, "probability") if graded or margin is None else (margin, "score difference")
    if not graded and margin is None:
        return None
    known = ~np.isnan(value) & ~np.isnan(joint) & ~np.isnan(target) & (target != 0.5)
    if not known.any():
        return None
    value, right, at = value[known], np.where(target[known] > 0.5, 1.0, 0.0), cluster[known]
    prompts = int(at.max()) + 1
    drawn = np.concatenate([auc(value, right, w[:, at]) for w in weights(prompts, seed)])
    whole = float(auc(value, right, np.ones((1, len(value))))[0])
    area = percentiles(whole, drawn, len(np.unique(at)))
    if not graded:
        return Certainty(int(known.sum()), name, area)
    p = joint[known]
    clipped = np.clip(p, 1e-12, 1 - 1e-12)
    losses = -(right * np.log(clipped) + (1 - right) * np.log1p(-clipped))
    sums = Sums({"all": np.ones_like(p), "loss": losses, "squares": (p - right) ** 2}, at, seed)
    both_sides = np.concatenate([p, 1 - p]), np.concatenate([right, 1 - right])
    return Certainty(
        int(known.sum()),
        name,
        area,
        sums.ratio("loss", "all", share=False),
        sums.ratio("squares", "all", share=False),
        calibration_error(*both_sides),
    )


def auc(value: Floats, right: Floats, weight: Floats) -> Floats:
    """[B] weighted areas under the ROC curve of ``value`` [N] for ``right`` [N] in {0, 1}, both sides of each comparison
    counted; weight [B, N]."""
    values, labels = np.concatenate([value, -value]), np.concatenate([right, 1 - right])
    weight = np.concatenate([weight, weight], 1)
    # 1 - P is not always the float that P's opposite is written as: without rounding some ties would be wins.
    levels, level = np.unique(np.round(values, 12), return_inverse=True)
    wins = np.zeros((len(weight), len(levels)))
    losses = np.zeros_like(wins)
    for chosen, sums in ((labels == 1, wins), (labels == 0, losses)):
        order = np.argsort(level[chosen], kind="stable")
        places, starts = np.unique(level[chosen][order], return_index=True)
        sums[:, places] = np.add.reduceat(weight[:, chosen][:, order], starts, axis=1)
    below = np.cumsum(losses, 1) - losses / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return (wins * below).sum(1) / (wins.sum(1) * losses.sum(1))
