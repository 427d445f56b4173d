"""What an objective is made of, and the one kernel that turns log-probs into losses.

For a pair (w, l) of one prompt x, log-probs are sums over an answer's tokens (nats), and an answer's log-ratio is
q(y) = log pi(y|x) - sum_j c_j log pi_j(y|x) over named references j. An objective chooses the references and their
weights c, and a pure function of the log-ratios and the oracle's word to a loss for each pair; alpha times the chosen
answer's negative log-likelihood per token is added.

Legend: B pairs of a batch; w the chosen answer, l the rejected one; D = q(w) - q(l); s the sigmoid; r_w, r_l win rates
(Algorithm 2 of arXiv 2404.03715, line 5). torch is imported only where a function needs more than a tensor's methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from nashtune.errors import TrainingError

if TYPE_CHECKING:
    from torch import Tensor


# ---- what a loss may read ----------------------------------------------------------------------------------------------


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
    """log-probs under fixed policies, by the names that ``reference_iteration`` knows."""
    win_rates: Sides
    """r_t of Algorithm 2, line 5: mean preference over the other candidates, the teacher's among them."""
    scores: Sides
    """The judge's scores; NaN where it gives none."""
    versus_policy: Sides
    """Estimated P(y beats pi_t): mean preference over the policy's own other samples; NaN where there are none."""
    lengths: Sides
    """Tokens of each answer."""


Settings = Mapping[str, float]
"""An objective's settings by name; switches are 0 or 1."""
Loss = Callable[[Sides, PairTerms, Settings], "Tensor"]
"""(log-ratios q, terms, settings) -> loss [B]."""
Weights = Callable[[Settings], Mapping[str, float]]
"""Settings -> weight c_j of each reference."""
Need = Literal["win_rates", "scores", "versus_policy"]
WORDS: Mapping[Need, str] = {"win_rates": "r", "scores": "score", "versus_policy": "p"}
"""How the fields of a pair with each need begin."""
Needs = Callable[[Settings], frozenset[Need]]
"""Settings -> what the oracle must have given for the pairs."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A number (or switch) of an objective, as a recipe may set it."""

    default: float | int | bool
    meaning: str
    above: float | None = None
    """Exclusive lower bound."""
    least: float | None = None
    """Inclusive lower bound."""
    most: float | str | None = None
    """Inclusive upper bound: a number, or another setting by name."""


@dataclass(frozen=True, slots=True)
class Objective:
    """A row of the table. ``loss`` None: the likelihood term alone, and rejected answers are not read."""

    formula: str
    source: str
    loss: Loss | None
    settings: Mapping[str, Setting] = field(default_factory=dict)
    references: Weights = lambda _: {}
    needs: Needs = lambda _: frozenset()

    @property
    def sides(self) -> int:
        """Answers of a pair that are read: 2, or the chosen one alone."""
        return 1 if self.loss is None else 2

    def defaults(self) -> dict[str, float]:
        """Every setting at its default."""
        return {name: setting.default for name, setting in self.settings.items()}

    def problem(self, settings: Settings) -> str | None:
        """Which setting goes beyond another that bounds it, or None."""
        for name, setting in self.settings.items():
            if isinstance(setting.most, str) and settings[name] > settings[setting.most]:
                bound = settings[setting.most]
                return f"objective.{name} is {settings[name]}; accepted: at most objective.{setting.most}, which is {bound}"
        return None


def reference_iteration(name: str, iteration: int) -> int:
    """The iteration whose policy a reference is, while iteration t = 1, 2, ... trains: "t" the current policy
    pi_t-1, "t-j" the one j iterations before it (the initial policy where there is none), "0" the initial policy, "every-n"
    the last of pi_0, pi_n, pi_2n, ... (COMAL's replaced reference). Raises TrainingError for another name."""
    current = iteration - 1
    if name == "0":
        return 0
    if name == "t":
        return current
    kind, _, number = name.partition("-")
    if kind == "t" and number.isdigit() and int(number) > 0:
        return max(0, current - int(number))
    if kind == "every" and number.isdigit() and int(number) > 0:
        return current - current % int(number)
    raise TrainingError(f"reference {name!r}; accepted: t, t-1, t-2, ..., 0, every-1, every-2, ...")


# ---- links and targets -------------------------------------------------------------------------------------------------


def log_sigmoid(x: Tensor) -> Tensor:
    """log s(x)."""
    from torch.nn.functional import logsigmoid

    return logsigmoid(x)


def logistic(margin: Tensor, target: Tensor | float = 1.0) -> Tensor:
    """-[q log s(m) + (1 - q) log s(-m)]: cross-entropy of s(margin) against a target q in [0, 1]; both terms of eq. (8)
    of arXiv 2404.03715."""
    return -(target * log_sigmoid(margin) + (1 - target) * log_sigmoid(-margin))


def soft_target(terms: PairTerms) -> Tensor:
    """s(r_w - r_l), the target of eq. (8) of arXiv 2404.03715."""
    return terms.win_rates.difference.sigmoid()


# ---- settings that several objectives have -----------------------------------------------------------------------------


def alpha(default: float) -> Setting:
    """Weight of the likelihood term."""
    return Setting(default, "Weight of the negative log-likelihood per token of the chosen answer.", least=0)


def beta(default: float, more: str = "") -> Setting:
    """Scale of the margin."""
    return Setting(default, f"Scale of the log-ratio margin{more}.", above=0)


def offset(default: float = 0.0) -> Setting:
    """Margin offset."""
    return Setting(
        default, "Target margin: subtracted from the scaled log-ratio difference before the sigmoid.", least=0
    )


DNO = "arXiv 2404.03715"
PER_TOKEN = Setting(False, "Length-normalised variant: divide each answer's log-ratio by its number of tokens.")


def only(name: str) -> Weights:
    """One reference of weight 1."""
    return lambda _: {name: 1.0}


def between(near: str, far: str) -> Weights:
    """The geometric mixture of two references: weight tau / eta on ``far``, the rest on ``near``; none of weight 0."""

    def weights(settings: Settings) -> Mapping[str, float]:
        share = settings["tau"] / settings["eta"]
        return {name: weight for name, weight in ((near, 1 - share), (far, share)) if weight}

    return weights


def needing(*needs: Need) -> Needs:
    """The same needs whatever the settings."""
    return lambda _: frozenset(needs)


# ---- the kernel --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LossTerms:
    """Per-pair results [B]. ``margin`` and ``log_ratio`` are None for objectives without a loss of their own."""

    losses: Tensor
    nll: Tensor
    """-log pi(w|x) / |w|, nats per token."""
    log_ratio: Tensor | None
    """D = q(w) - q(l)."""
    margin: Tensor | None
    """D times the objective's beta, where it has one."""

    @property
    def correct(self) -> Tensor | None:
        """1.0 where D is above 0, else 0.0 [B]."""
        return None if self.log_ratio is None else (self.log_ratio > 0).float()


def log_ratios(objective: Objective, terms: PairTerms, settings: Settings) -> Sides:
    """q of both answers: log pi(y|x) - sum_j c_j log pi_j(y|x), per token where the settings say so.

    Raises TrainingError where a reference of the objective is missing.
    """
    chosen, rejected = terms.policy
    for name, weight in objective.references(settings).items():
        if name not in terms.references:
            raise TrainingError(f"reference log-probs {name!r} are missing; given: {sorted(terms.references)}")
        if weight:
            chosen = chosen - weight * terms.references[name].chosen
            rejected = rejected - weight * terms.references[name].rejected
    if settings.get("per_token"):
        chosen, rejected = chosen / terms.lengths.chosen, rejected / terms.lengths.rejected
    return Sides(chosen, rejected)


def preference_loss(objective: Objective, terms: PairTerms, settings: Settings) -> LossTerms:
    """Losses of B pairs: the objective's loss + alpha * NLL per token of the chosen answer; NLL alone without a loss.

    The NLL of a pair is the mean over its own chosen tokens, so long answers weigh no more than short ones. ``settings``
    are all of the objective's. Raises TrainingError where a reference of the objective is missing.
    """
    nll = -terms.policy.chosen / terms.lengths.chosen
    if objective.loss is None:
        return LossTerms(nll, nll, None, None)
    q = log_ratios(objective, terms, settings)
    losses = objective.loss(q, terms, settings) + settings["alpha"] * nll
    return LossTerms(losses, nll, q.difference, settings.get("beta", 1.0) * q.difference)
