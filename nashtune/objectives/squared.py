"""Objectives that regress log-ratios on a target, by a squared loss (legend in ``kernel``)."""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from typing import TYPE_CHECKING

from nashtune.objectives.kernel import (
    PER_TOKEN,
    Objective,
    PairTerms,
    Setting,
    Settings,
    Sides,
    alpha,
    between,
    needing,
    only,
)

if TYPE_CHECKING:
    from torch import Tensor


def settings(**own: Setting) -> dict[str, Setting]:
    """An objective's own settings, and what every one here has."""
    return {**own, "alpha": alpha(0.0), "per_token": PER_TOKEN}


def ipo(q: Sides, _: PairTerms, s: Settings) -> Tensor:
    """(D - 1 / (2 tau))^2."""
    return (q.difference - 1 / (2 * s["tau"])) ** 2


def inpo(q: Sides, _: PairTerms, s: Settings) -> Tensor:
    """(D - 1 / (2 eta))^2; INPO, COMAL and MNPO differ in what the log-ratio is over."""
    return (q.difference - 1 / (2 * s["eta"])) ** 2


def rebel(q: Sides, terms: PairTerms, s: Settings) -> Tensor:
    """(D - eta (score_w - score_l))^2."""
    return (q.difference - s["eta"] * terms.scores.difference) ** 2


def sppo(q: Sides, terms: PairTerms, s: Settings) -> Tensor:
    """1/2 sum over y of (q(y) - eta (P(y beats pi_t) - 1/2))^2."""
    chosen, rejected = (ratio - s["eta"] * (p - 0.5) for ratio, p in zip(q, terms.versus_policy, strict=True))
    return (chosen**2 + rejected**2) / 2


def rspo(q: Sides, terms: PairTerms, s: Settings) -> Tensor:
    """SPPO + sum over y of [reverse/2 (log pi/pi_0)^2 - forward min(pi_0/pi_t, clip) log pi].

    The paper's abstract gives the form SPPO + lambda R with R a mix of both KL divergences from pi_0, no estimator; these two are
    ours. For y ~ pi_t their gradients are those of KL(pi || pi_0) at pi = pi_t and of KL(pi_0 || pi), the latter by
    importance weights of whole answers, clipped. Pairs of a rule that selects are not a plain sample of pi_t.
    """
    loss = sppo(q, terms, s)
    for pi, t, initial in zip(terms.policy, terms.references["t"], terms.references["0"], strict=True):
        weight = (initial - t).clamp(max=log(s["clip"])).exp()
        loss = loss + s["reverse"] / 2 * (pi - initial) ** 2 - s["forward"] * weight * pi
    return loss


ETA_SPPO = Setting(
    1000.0, "Scale of the target: P(y beats pi_t) - 1/2 times this is the log-ratio asked for (nats).", above=0
)
ETA_INPO = Setting(0.0075, "Step size: the log-ratio difference asked for is 1 / (2 eta) nats.", above=0)
TAU_INPO = Setting(0.0025, "Pull to the initial policy; at most eta.", least=0, most="eta")


def mnpo_weights(s: Settings) -> Mapping[str, float]:
    """``ratio`` on pi_0, the rest evenly on pi_t and the policies before it."""
    count = int(s["history"])
    past = {"t" if j == 0 else f"t-{j}": (1 - s["ratio"]) / count for j in range(count)}
    return {"0": s["ratio"], **past}


SQUARED: dict[str, Objective] = {
    "ipo": Objective(
        "(D - 1/(2 tau))^2, reference pi_0",
        "arXiv 2310.12036 eq. 17",
        ipo,
        settings(tau=Setting(0.1, "The log-ratio difference asked for is 1 / (2 tau) nats.", above=0)),
        only("0"),
    ),
    "inpo": Objective(
        "(D - 1/(2 eta))^2, reference pi_t^(1 - tau/eta) pi_0^(tau/eta)",
        "arXiv 2407.00617",
        inpo,
        settings(eta=ETA_INPO, tau=TAU_INPO),
        between("t", "0"),
    ),
    "comal": Objective(
        "INPO, its pi_0 replaced by pi_t every replace_every iterations",
        "arXiv 2410.23223",
        inpo,
        settings(
            eta=ETA_INPO,
            tau=TAU_INPO,
            replace_every=Setting(12, "Iterations after which the current policy becomes the far reference.", least=1),
        ),
        lambda s: between("t", f"every-{int(s['replace_every'])}")(s),
    ),
    "mnpo": Objective(
        "(D - 1/(2 eta))^2, reference pi_0^ratio times an even mixture of the last `history` policies^(1 - ratio)",
        "arXiv 2509.23102",
        inpo,
        settings(
            eta=ETA_INPO,
            ratio=Setting(1 / 3, "Weight of the initial policy in the reference.", least=0, most=1),
            history=Setting(3, "Past policies in the reference, the current one among them.", least=1),
        ),
        mnpo_weights,
    ),
    "rebel": Objective(
        "(D - eta (score_w - score_l))^2, reference pi_t",
        "arXiv 2404.16767",
        rebel,
        settings(eta=Setting(1.0, "Nats of log-ratio difference asked for per point of score.", above=0)),
        only("t"),
        needing("scores"),
    ),
    "sppo": Objective(
        "1/2 sum over y in {w, l} of (q(y) - eta (P(y beats pi_t) - 1/2))^2, reference pi_t",
        "arXiv 2405.00675 eq. 4.7",
        sppo,
        settings(eta=ETA_SPPO),
        only("t"),
        needing("versus_policy"),
    ),
    "rspo": Objective(
        "SPPO + sum over y of [reverse/2 (log pi/pi_0)^2 - forward min(pi_0/pi_t, clip) log pi]",
        "arXiv 2503.00030 (its form; the estimators are ours)",
        rspo,
        settings(
            eta=ETA_SPPO,
            forward=Setting(0.1, "Weight of the forward divergence KL(pi_0 || pi).", least=0),
            reverse=Setting(0.1, "Weight of the reverse divergence KL(pi || pi_0).", least=0),
            clip=Setting(1.0, "Largest importance weight pi_0 / pi_t in the forward divergence.", above=0),
        ),
        lambda _: {"t": 1.0, "0": 0.0},
        needing("versus_policy"),
    ),
}
