"""Objectives with a logistic loss of the pair's log-ratio difference D (legend in ``kernel``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nashtune.objectives.kernel import (
    DNO,
    PER_TOKEN,
    Objective,
    PairTerms,
    Setting,
    Settings,
    Sides,
    alpha,
    beta,
    between,
    log_sigmoid,
    logistic,
    needing,
    offset,
    only,
    soft_target,
)

if TYPE_CHECKING:
    from torch import Tensor


def settings(beta_default: float, alpha_default: float) -> dict[str, Setting]:
    """What a logistic objective has at the least."""
    return {"beta": beta(beta_default), "alpha": alpha(alpha_default), "offset": offset(), "per_token": PER_TOKEN}


def hard(q: Sides, _: PairTerms, s: Settings) -> Tensor:
    """-log s(beta D - offset)."""
    return logistic(s["beta"] * q.difference - s["offset"])


def soft(q: Sides, terms: PairTerms, s: Settings) -> Tensor:
    """Cross-entropy of s(beta D - offset) against s(r_w - r_l)."""
    return logistic(s["beta"] * q.difference - s["offset"], soft_target(terms))


def regularized(q: Sides, terms: PairTerms, s: Settings) -> Tensor:
    """-log s(eta D - offset), or with ``soft`` the cross-entropy against s(r_w - r_l); the log-ratio is over
    pi_t^(1 - tau/eta) pi_0^(tau/eta)."""
    return logistic(s["eta"] * q.difference - s["offset"], soft_target(terms) if s["soft"] else 1.0)


def robust(q: Sides, _: PairTerms, s: Settings) -> Tensor:
    """[-(1 - noise) log s(m) + noise log s(-m)] / (1 - 2 noise), m = beta D - offset: what -log s(m) is expected to be
    without the flips, where a share ``noise`` of the verdicts is flipped."""
    margin = s["beta"] * q.difference - s["offset"]
    return ((1 - s["noise"]) * logistic(margin) - s["noise"] * logistic(-margin)) / (1 - 2 * s["noise"])


def orpo(_: Sides, terms: PairTerms, s: Settings) -> Tensor:
    """-beta log s(log odds(w) - log odds(l)), odds = p / (1 - p) of the geometric mean probability p of a token."""
    log_odds = []
    for logprob, length in zip(terms.policy, terms.lengths, strict=True):
        mean = (logprob / length).clamp(max=-1e-7)  # p = 1 has no odds
        log_odds.append(mean - (-mean.expm1()).log())
    return -s["beta"] * log_sigmoid(log_odds[0] - log_odds[1])


LOGISTIC: dict[str, Objective] = {
    "dno-prct": Objective("-log s(beta D), reference pi_t", f"{DNO} eq. 13", hard, settings(0.1, 0.005), only("t")),
    "dno": Objective(
        "-[p log s(beta D) + (1 - p) log s(-beta D)], p = s(r_w - r_l), reference pi_t",
        f"{DNO} eq. 8",
        soft,
        settings(0.1, 0.005),
        only("t"),
        needing("win_rates"),
    ),
    "dno-regularized": Objective(
        "-log s(eta D), or the soft target of eq. 8; reference pi_t^(1 - tau/eta) pi_0^(tau/eta)",
        f"{DNO} algorithms 3 and 4",
        regularized,
        {
            "eta": beta(0.1, "; with tau it decides the reference"),
            "tau": Setting(
                0.01, "Strength of the regularisation towards the initial policy; at most eta.", least=0, most="eta"
            ),
            "soft": Setting(False, "Target s(r_w - r_l) instead of 1."),
            "alpha": alpha(0.005),
            "offset": offset(),
            "per_token": PER_TOKEN,
        },
        between("t", "0"),
        lambda s: frozenset({"win_rates"} if s["soft"] else ()),
    ),
    "dpo": Objective("-log s(beta D), reference pi_0", "arXiv 2305.18290 eq. 7", hard, settings(0.1, 0.0), only("0")),
    "robust-dpo": Objective(
        "[-(1 - noise) log s(beta D) + noise log s(-beta D)] / (1 - 2 noise), reference pi_0",
        "arXiv 2403.00409",
        robust,
        {
            "noise": Setting(0.1, "Share of verdicts that are taken to be flipped.", least=0, most=0.49),
            **settings(0.1, 0.0),
        },
        only("0"),
    ),
    "spin": Objective(
        "-log s(beta D), reference pi_t; the chosen answer is the teacher's, unjudged",
        "arXiv 2401.01335 eq. 4.7",
        hard,
        settings(0.1, 0.0),
        only("t"),
    ),
    "simpo": Objective(
        "-log s(beta (log pi(w)/|w| - log pi(l)/|l|) - offset), no reference",
        "arXiv 2405.14734 eq. 6",
        hard,
        {
            "beta": beta(2.0),
            "offset": offset(1.0),
            "alpha": alpha(0.0),
            "per_token": Setting(True, PER_TOKEN.meaning),
        },
    ),
    "cpo": Objective(
        "-log s(beta D) - alpha log pi(w)/|w|, no reference", "arXiv 2401.08417 eq. 3", hard, settings(0.1, 1.0)
    ),
    "orpo": Objective(
        "-alpha log pi(w)/|w| - beta log s(log odds(w) - log odds(l)), no reference",
        "arXiv 2403.07691 eq. 6 and 7",
        orpo,
        {"beta": Setting(0.1, "Weight lambda of the odds ratio.", above=0), "alpha": alpha(1.0)},
    ),
}
