"""Preference objectives as data over one kernel.

For a pair (w, l) of one prompt x: D_p = log p(w|x) - log p(l|x), and the margin is
m = beta * (D_pi - sum_j c_j D_j) over the named references j. An objective chooses the weights c, a link (a loss of the
margin against a target) and that target; alpha times the chosen answer's negative log-likelihood per token is added.

Legend: B pairs of a batch; w the chosen answer, l the rejected one; s the sigmoid. Log-probs are sums (nats).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nashtune.errors import TrainingError


class Sides(NamedTuple):
    """One quantity for both answers of every pair."""

    chosen: Tensor
    """[B]"""
    rejected: Tensor
    """[B]"""

    @property
    def difference(self) -> Tensor:
        """chosen - rejected [B]."""
        return self.chosen - self.rejected


@dataclass(frozen=True, slots=True)
class PairTerms:
    """Everything a loss may read about B pairs."""

    policy: Sides
    """log pi, the policy being trained; carries gradients."""
    references: Mapping[str, Sides]
    """log-probs under the fixed policies: "t" the sampler, "0" the initial policy."""
    win_rates: Sides
    """r_t of Algorithm 2, line 5."""
    scores: Sides
    """The judge's scores; NaN where it gives none."""
    lengths: Sides
    """Tokens of each answer."""


Link = Callable[[Tensor, Tensor], Tensor]
"""(margin [B], target [B]) -> loss [B]."""
Target = Callable[[PairTerms], Tensor]


def logistic(margin: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of s(margin) against a target in [0, 1]; both terms of eq. (8) of arXiv 2404.03715."""
    return -(target * F.logsigmoid(margin) + (1 - target) * F.logsigmoid(-margin))


def hard_target(terms: PairTerms) -> Tensor:
    """1: the chosen answer wins for certain."""
    return torch.ones_like(terms.policy.chosen)


def win_rate_target(terms: PairTerms) -> Tensor:
    """s(r_w - r_l), the soft target of eq. (8) of arXiv 2404.03715."""
    return torch.sigmoid(terms.win_rates.difference)


@dataclass(frozen=True, slots=True)
class Objective:
    """A row of the objective table. ``link`` None: the likelihood term alone, and rejected answers are not read."""

    summary: str
    references: Mapping[str, float]
    link: Link | None
    target: Target = hard_target

    @property
    def sides(self) -> int:
        """Answers of a pair that are read: 2, or the chosen one alone."""
        return 1 if self.link is None else 2


OBJECTIVES: dict[str, Objective] = {
    "dno": Objective(
        "-[q log s(m) + (1 - q) log s(-m)], q = s(r_w - r_l), reference pi_t (arXiv 2404.03715 eq. 8)",
        {"t": 1.0},
        logistic,
        win_rate_target,
    ),
    "dno-prct": Objective("-log s(m), reference pi_t (arXiv 2404.03715 eq. 13)", {"t": 1.0}, logistic),
    "dpo": Objective("-log s(m), reference pi_0 (arXiv 2305.18290 eq. 7)", {"0": 1.0}, logistic),
    "sft": Objective("-log pi(w|x) / |w| (the SFT baseline of arXiv 2404.03715)", {}, None),
}


@dataclass(frozen=True, slots=True)
class LossTerms:
    """Per-pair results [B]. ``margin`` (scaled by beta) is None for objectives without a link."""

    losses: Tensor
    nll: Tensor
    """-log pi(w|x) / |w|, nats per token."""
    margin: Tensor | None

    @property
    def correct(self) -> Tensor | None:
        """1.0 where the margin is above 0, else 0.0 [B]."""
        return None if self.margin is None else (self.margin > 0).float()


def preference_loss(objective: Objective, terms: PairTerms, *, beta: float, alpha: float) -> LossTerms:
    """Losses of B pairs: link(m, target) + alpha * NLL per token of the chosen answer; NLL alone without a link.

    The NLL of a pair is the mean over its own chosen tokens, so long answers weigh no more than short ones.
    Raises TrainingError where a reference of the objective is missing.
    """
    nll = -terms.policy.chosen / terms.lengths.chosen
    if objective.link is None:
        return LossTerms(nll, nll, None)
    log_ratio = terms.policy.difference
    for name, weight in objective.references.items():
        if name not in terms.references:
            raise TrainingError(f"reference log-probs {name!r} are missing; given: {sorted(terms.references)}")
        log_ratio = log_ratio - weight * terms.references[name].difference
    margin = beta * log_ratio
    return LossTerms(objective.link(margin, objective.target(terms)) + alpha * nll, nll, margin)
