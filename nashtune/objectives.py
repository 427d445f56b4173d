"""Preference objectives: what training minimises, each a row of OBJECTIVES.

For a pair (w, l) of one prompt x, log-probs are sums over an answer's tokens (nats), and an answer's log-ratio is
q(y) = log pi(y|x) - sum_j c_j log pi_j(y|x) over named references j. An objective chooses the references and their
weights c, and a pure function of the log-ratios and the oracle's word to a loss for each pair; alpha times the chosen
answer's negative log-likelihood per token is added. A new objective is a new row here and a test: the recipe's settings,
the trainer and the command line find it in the table.

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


@dataclass(frozen=True, slots=True)
class Setting:
    """A number (or switch) of an objective, as a recipe may set it."""

    default: float | int | bool
    meaning: str
    above: float | None = None
    """Exclusive lower bound."""
    least: float | None = None
    """Inclusive lower bound."""


@dataclass(frozen=True, slots=True)
class Objective:
    """A row of the table. ``loss`` None: the likelihood term alone, and rejected answers are not read."""

    formula: str
    source: str
    loss: Loss | None
    settings: Mapping[str, Setting] = field(default_factory=dict)
    references: Weights = lambda _: {}
    needs: frozenset[Need] = frozenset()
    """What the oracle must have given for the pairs."""

    @property
    def sides(self) -> int:
        """Answers of a pair that are read: 2, or the chosen one alone."""
        return 1 if self.loss is None else 2

    def defaults(self) -> dict[str, float]:
        """Every setting at its default."""
        return {name: setting.default for name, setting in self.settings.items()}

    def problem(self, settings: Settings) -> str | None:
        """What is wrong with the settings together, or None."""
        if wrong := {name: c for name, c in self.references(settings).items() if c < 0}:
            return f"reference weights would be negative ({wrong}); accepted: tau at most eta, ratio at most 1"
        return None


def reference_iteration(name: str, iteration: int) -> int:
    """The iteration whose policy a reference is, while iteration t = 1, 2, ... trains: "t" the sampler pi_t-1, "t-j" the
    one j iterations before it (the initial policy where there is none), "0" the initial policy, "every-n" the sampler of
    the last iteration that n divides, or the initial policy (COMAL's replaced reference)."""
    sampler = iteration - 1
    if name == "0":
        return 0
    if name == "t":
        return sampler
    kind, _, number = name.partition("-")
    if kind == "t" and number.isdigit():
        return max(0, sampler - int(number))
    if kind == "every" and number.isdigit() and int(number) > 0:
        return sampler - sampler % int(number)
    raise TrainingError(f"reference {name!r}; accepted: t, t-1, t-2, ..., 0, every-1, every-2, ...")


# ---- links and targets -------------------------------------------------------------------------------------------------


def _log_sigmoid(x: Tensor) -> Tensor:
    from torch.nn.functional import logsigmoid

    return logsigmoid(x)


def logistic(margin: Tensor, target: Tensor | float = 1.0) -> Tensor:
    """-[q log s(m) + (1 - q) log s(-m)]: cross-entropy of s(margin) against a target q in [0, 1]; both terms of eq. (8)
    of arXiv 2404.03715."""
    return -(target * _log_sigmoid(margin) + (1 - target) * _log_sigmoid(-margin))


def soft_target(terms: PairTerms) -> Tensor:
    """s(r_w - r_l), the target of eq. (8) of arXiv 2404.03715."""
    return terms.win_rates.difference.sigmoid()


# ---- settings that several objectives have -----------------------------------------------------------------------------


def _alpha(default: float) -> Setting:
    return Setting(default, "Weight of the negative log-likelihood per token of the chosen answer.", least=0)


def _beta(default: float, more: str = "") -> Setting:
    return Setting(default, f"Scale of the log-ratio margin{more}.", above=0)


def _offset(default: float = 0.0) -> Setting:
    return Setting(
        default, "Target margin: subtracted from the scaled log-ratio difference before the sigmoid.", least=0
    )


PER_TOKEN = Setting(False, "Length-normalised variant: divide each answer's log-ratio by its number of tokens.")


def _logistic_settings(beta: float, alpha: float) -> dict[str, Setting]:
    return {"beta": _beta(beta), "alpha": _alpha(alpha), "offset": _offset(), "per_token": PER_TOKEN}


def _squared_settings(**own: Setting) -> dict[str, Setting]:
    return {**own, "alpha": _alpha(0.0), "per_token": PER_TOKEN}


def only(name: str) -> Weights:
    """One reference of weight 1."""
    return lambda _: {name: 1.0}


def _between(near: str, far: str) -> Weights:
    """The geometric mixture of two references: weight tau / eta on ``far``, the rest on ``near``."""

    def weights(settings: Settings) -> Mapping[str, float]:
        share = settings["tau"] / settings["eta"]
        return {near: 1 - share, far: share}

    return weights


# ---- losses ------------------------------------------------------------------------------------------------------------


def hard(q: Sides, _: PairTerms, s: Settings) -> Tensor:
    """-log s(beta D - offset)."""
    return logistic(s["beta"] * q.difference - s["offset"])


def soft(q: Sides, terms: PairTerms, s: Settings) -> Tensor:
    """Cross-entropy of s(beta D - offset) against s(r_w - r_l)."""
    return logistic(s["beta"] * q.difference - s["offset"], soft_target(terms))


def regularized(q: Sides, terms: PairTerms, s: Settings) -> Tensor:
    """As eq. (13), or as eq. (8) with ``soft``, the log-ratio being over pi_t^(1 - tau/eta) pi_0^(tau/eta)."""
    return logistic(s["eta"] * q.difference, soft_target(terms) if s["soft"] else 1.0)


def ipo(q: Sides, _: PairTerms, s: Settings) -> Tensor:
    """(D - 1 / (2 tau))^2."""
    return (q.difference - 1 / (2 * s["tau"])) ** 2


def inpo(q: Sides, _: PairTerms, s: Settings) -> Tensor:
    """(D - 1 / (2 eta))^2."""
    return (q.difference - 1 / (2 * s["eta"])) ** 2


def rebel(q: Sides, terms: PairTerms, s: Settings) -> Tensor:
    """(D - eta (score_w - score_l))^2."""
    return (q.difference - s["eta"] * terms.scores.difference) ** 2


def sppo(q: Sides, terms: PairTerms, s: Settings) -> Tensor:
    """1/2 sum over y of (q(y) - eta (P(y beats pi_t) - 1/2))^2."""
    targets = (s["eta"] * (p - 0.5) for p in terms.versus_policy)
    return 0.5 * sum((ratio - target) ** 2 for ratio, target in zip(q, targets, strict=True))  # type: ignore[return-value]


def rspo(q: Sides, terms: PairTerms, s: Settings) -> Tensor:
    """SPPO + sum over y of [reverse/2 (log pi/pi_0)^2 - forward min(pi_0/pi_t, clip) log pi].

    The paper's abstract gives the form SPPO + lambda R with R a mix of both KL divergences from pi_0, no estimator; these two are
    ours. For y ~ pi_t their gradients are those of KL(pi || pi_0) at pi = pi_t and of KL(pi_0 || pi), the latter by
    importance weights that are clipped.
    """
    penalty = 0.0
    for pi, t, initial in zip(terms.policy, terms.references["t"], terms.references["0"], strict=True):
        weight = (initial - t).clamp(max=0.0 if s["clip"] <= 0 else _log(s["clip"])).exp()
        penalty = penalty + s["reverse"] / 2 * (pi - initial) ** 2 - s["forward"] * weight * pi
    return sppo(q, terms, s) + penalty


def kto(q: Sides, _: PairTerms, s: Settings) -> Tensor:
    """1/2 [desirable (1 - s(beta (q(w) - z))) + undesirable (1 - s(beta (z - q(l))))], z = max(0, mean of q) over the
    micro-batch's answers, without gradient. (The paper estimates z on mismatched prompts and answers, which
    takes forward passes of its own.)"""
    z = ((q.chosen + q.rejected).mean() / 2).clamp(min=0).detach()
    good = 1 - (s["beta"] * (q.chosen - z)).sigmoid()
    bad = 1 - (s["beta"] * (z - q.rejected)).sigmoid()
    return (s["desirable"] * good + s["undesirable"] * bad) / 2


def orpo(_: Sides, terms: PairTerms, s: Settings) -> Tensor:
    """-beta log s(log odds(w) - log odds(l)), odds = p / (1 - p) of the geometric mean probability p of a token."""
    log_odds = []
    for logprob, length in zip(terms.policy, terms.lengths, strict=True):
        mean = (logprob / length).clamp(max=-1e-7)  # p = 1 has no odds
        log_odds.append(mean - (-mean.expm1()).log())
    return -s["beta"] * _log_sigmoid(log_odds[0] - log_odds[1])


def _log(x: float) -> float:
    from math import log

    return log(x)


# ---- the table ---------------------------------------------------------------------------------------------------------

DNO = "arXiv 2404.03715"
ETA_SPPO = Setting(
    1000.0, "Scale of the target: P(y beats pi_t) - 1/2 times this is the log-ratio asked for (nats).", above=0
)
ETA_INPO = Setting(0.0075, "Step size: the log-ratio difference asked for is 1 / (2 eta) nats.", above=0)
TAU_INPO = Setting(0.0025, "Pull to the initial policy; at most eta.", least=0)


def _mnpo_weights(s: Settings) -> Mapping[str, float]:
    count = int(s["history"])
    past = {"t" if j == 0 else f"t-{j}": (1 - s["ratio"]) / count for j in range(count)}
    return {"0": s["ratio"], **past}


OBJECTIVES: dict[str, Objective] = {
    "dno-prct": Objective(
        "-log s(beta D), reference pi_t", f"{DNO} eq. 13", hard, _logistic_settings(0.1, 0.005), only("t")
    ),
    "dno": Objective(
        "-[p log s(beta D) + (1 - p) log s(-beta D)], p = s(r_w - r_l), reference pi_t",
        f"{DNO} eq. 8",
        soft,
        _logistic_settings(0.1, 0.005),
        only("t"),
        frozenset({"win_rates"}),
    ),
    "dno-regularized": Objective(
        "-log s(eta D), or the soft target of eq. 8; reference pi_t^(1 - tau/eta) pi_0^(tau/eta)",
        f"{DNO} algorithms 3 and 4",
        regularized,
        {
            "eta": _beta(0.1, "; with tau it decides the reference"),
            "tau": Setting(0.01, "Strength of the regularisation towards the initial policy; at most eta.", least=0),
            "soft": Setting(False, "Target s(r_w - r_l) instead of 1."),
            "alpha": _alpha(0.005),
            "per_token": PER_TOKEN,
        },
        _between("t", "0"),
        frozenset({"win_rates"}),
    ),
    "dpo": Objective(
        "-log s(beta D), reference pi_0", "arXiv 2305.18290 eq. 7", hard, _logistic_settings(0.1, 0.0), only("0")
    ),
    "ipo": Objective(
        "(D - 1/(2 tau))^2, reference pi_0",
        "arXiv 2310.12036 eq. 17",
        ipo,
        _squared_settings(tau=Setting(0.1, "The log-ratio difference asked for is 1 / (2 tau) nats.", above=0)),
        only("0"),
    ),
    "simpo": Objective(
        "-log s(beta (log pi(w)/|w| - log pi(l)/|l|) - offset), no reference",
        "arXiv 2405.14734 eq. 6",
        hard,
        {
            "beta": _beta(2.0),
            "offset": _offset(1.0),
            "alpha": _alpha(0.0),
            "per_token": Setting(True, PER_TOKEN.meaning),
        },
    ),
    "sppo": Objective(
        "1/2 sum over y in {w, l} of (q(y) - eta (P(y beats pi_t) - 1/2))^2, reference pi_t",
        "arXiv 2405.00675 eq. 4.7",
        sppo,
        _squared_settings(eta=ETA_SPPO),
        only("t"),
        frozenset({"versus_policy"}),
    ),
    "inpo": Objective(
        "(D - 1/(2 eta))^2, reference pi_t^(1 - tau/eta) pi_0^(tau/eta)",
        "arXiv 2407.00617",
        inpo,
        _squared_settings(eta=ETA_INPO, tau=TAU_INPO),
        _between("t", "0"),
    ),
    "comal": Objective(
        "INPO, its pi_0 replaced by pi_t every replace_every iterations",
        "arXiv 2410.23223",
        inpo,
        _squared_settings(
            eta=ETA_INPO,
            tau=TAU_INPO,
            replace_every=Setting(12, "Iterations after which the current policy becomes the far reference.", least=1),
        ),
        lambda s: _between("t", f"every-{int(s['replace_every'])}")(s),
    ),
    "mnpo": Objective(
        "(D - 1/(2 eta))^2, reference pi_0^ratio times an even mixture of the last `history` policies^(1 - ratio)",
        "arXiv 2509.23102",
        inpo,
        _squared_settings(
            eta=ETA_INPO,
            ratio=Setting(1 / 3, "Weight of the initial policy in the reference; at most 1.", least=0),
            history=Setting(3, "Past policies in the reference, the sampler among them.", least=1),
        ),
        _mnpo_weights,
    ),
    "rebel": Objective(
        "(D - eta (score_w - score_l))^2, reference pi_t",
        "arXiv 2404.16767 eq. 9",
        rebel,
        _squared_settings(eta=Setting(1.0, "Nats of log-ratio difference asked for per point of score.", above=0)),
        only("t"),
        frozenset({"scores"}),
    ),
    "rspo": Objective(
        "SPPO + sum over y of [reverse/2 (log pi/pi_0)^2 - forward min(pi_0/pi_t, clip) log pi]",
        "arXiv 2503.00030 (its form; the estimators are ours)",
        rspo,
        _squared_settings(
            eta=ETA_SPPO,
            forward=Setting(0.1, "Weight of the forward divergence KL(pi_0 || pi).", least=0),
            reverse=Setting(0.1, "Weight of the reverse divergence KL(pi || pi_0).", least=0),
            clip=Setting(1.0, "Largest importance weight pi_0 / pi_t in the forward divergence.", above=0),
        ),
        lambda _: {"t": 1.0, "0": 0.0},
        frozenset({"versus_policy"}),
    ),
    "kto": Objective(
        "1/2 [desirable (1 - s(beta (q(w) - z))) + undesirable (1 - s(beta (z - q(l))))], z a batch KL estimate, reference pi_t",
        "arXiv 2402.01306 eq. 8",
        kto,
        {
            "beta": _beta(0.1),
            "desirable": Setting(1.0, "Weight lambda_D of good answers.", above=0),
            "undesirable": Setting(1.0, "Weight lambda_U of bad answers.", above=0),
            "alpha": _alpha(0.0),
            "per_token": PER_TOKEN,
        },
        only("t"),
    ),
    "spin": Objective(
        "-log s(beta D), reference pi_t; the chosen answer is the teacher's, unjudged",
        "arXiv 2401.01335 eq. 4.7",
        hard,
        _logistic_settings(0.1, 0.0),
        only("t"),
    ),
    "cpo": Objective(
        "-log s(beta D) - alpha log pi(w)/|w|, no reference",
        "arXiv 2401.08417 eq. 3",
        hard,
        _logistic_settings(0.1, 1.0),
    ),
    "orpo": Objective(
        "-log pi(w)/|w| - beta log s(log odds(w) - log odds(l)), no reference",
        "arXiv 2403.07691 eq. 6",
        orpo,
        {"beta": Setting(0.1, "Weight lambda of the odds ratio.", above=0), "alpha": _alpha(1.0)},
    ),
    "sft": Objective("-log pi(w)/|w|", f"the SFT baseline of {DNO}", None),
}


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
