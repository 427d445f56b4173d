"""Objectives of single answers, good or bad (legend in ``kernel``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nashtune.objectives.kernel import DNO, PER_TOKEN, Objective, PairTerms, Setting, Settings, Sides, alpha, beta, only

if TYPE_CHECKING:
    from torch import Tensor


def kto(q: Sides, _: PairTerms, s: Settings) -> Tensor:
    """1/2 [desirable (1 - s(beta (q(w) - z))) + undesirable (1 - s(beta (z - q(l))))], z = max(0, mean of q) over the
    micro-batch's answers, without gradient. (The paper estimates z on mismatched prompts and answers, which
    takes forward passes of its own.)"""
    z = ((q.chosen + q.rejected).mean() / 2).clamp(min=0).detach()
    good = 1 - (s["beta"] * (q.chosen - z)).sigmoid()
    bad = 1 - (s["beta"] * (z - q.rejected)).sigmoid()
    return (s["desirable"] * good + s["undesirable"] * bad) / 2


POINTWISE: dict[str, Objective] = {
    "kto": Objective(
        "1/2 [desirable (1 - s(beta (q(w) - z))) + undesirable (1 - s(beta (z - q(l))))], z a batch KL estimate, reference pi_t",
        "arXiv 2402.01306",
        kto,
        {
            "beta": beta(0.1),
            "desirable": Setting(1.0, "Weight lambda_D of good answers.", above=0),
            "undesirable": Setting(1.0, "Weight lambda_U of bad answers.", above=0),
            "alpha": alpha(0.0),
            "per_token": PER_TOKEN,
        },
        only("t"),
    ),
    "sft": Objective("-log pi(w)/|w|", f"the SFT baseline of {DNO}", None),
}
