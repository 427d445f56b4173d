"""The kernel of losses: a worked example, the algebra of eq. (8), and bad input."""

from __future__ import annotations

import math

import pytest
import torch
from nashtune.training.objectives import OBJECTIVES, LossTerms, Objective, PairTerms, Sides, preference_loss

from nashtune.errors import TrainingError

LN2 = math.log(2)


def sides(chosen: list[float], rejected: list[float]) -> Sides:
    return Sides(torch.tensor(chosen), torch.tensor(rejected))


def terms(
    policy: Sides, reference: Sides | None = None, *, r: Sides | None = None, lengths: Sides | None = None
) -> PairTerms:
    ones = sides([1.0] * len(policy.chosen), [1.0] * len(policy.chosen))
    references = {} if reference is None else {"t": reference, "0": reference}
    return PairTerms(policy, references, r or ones, ones, lengths or ones)


def loss(name: str, given: PairTerms, beta: float = 0.1, alpha: float = 0.0) -> LossTerms:
    return preference_loss(OBJECTIVES[name], given, beta=beta, alpha=alpha)


def test_worked_example() -> None:
    # Policy: w -10, l -14, D = 4. Reference: w -12, l -13, D = 1. Margin 0.5 * (4 - 1) = 1.5.
    # -log s(1.5) = log(1 + e^-1.5) = 0.2014133; NLL per token 10 / 5 = 2; alpha 0.1 adds 0.2.
    given = terms(sides([-10.0], [-14.0]), sides([-12.0], [-13.0]), lengths=sides([5.0], [7.0]))
    got = loss("dno-prct", given, beta=0.5, alpha=0.1)
    assert got.margin is not None
    assert got.margin.item() == pytest.approx(1.5)
    assert got.nll.item() == pytest.approx(2.0)
    assert got.losses.item() == pytest.approx(0.4014133, abs=1e-6)
    assert got.correct is not None
    assert got.correct.tolist() == [1.0]


def test_worked_example_with_soft_target() -> None:
    # q = s(0.8 - 0.2) = 0.6456563; -[q log s(1.5) + (1 - q) log s(-1.5)] = 0.6456563 * 0.2014133 + 0.3543437 * 1.7014133
    given = terms(sides([-10.0], [-14.0]), sides([-12.0], [-13.0]), r=sides([0.8], [0.2]))
    expected = 0.6456563 * 0.2014133 + 0.3543437 * 1.7014133
    assert loss("dno", given, beta=0.5).losses.item() == pytest.approx(expected, abs=1e-6)


def test_sft_is_the_likelihood_alone_and_ignores_the_rejected_answer() -> None:
    given = terms(sides([-10.0, -9.0], [math.nan, math.nan]), lengths=sides([5.0, 3.0], [0.0, 0.0]))
    got = loss("sft", given, alpha=0.7)
    assert got.losses.tolist() == [2.0, 3.0]
    assert got.margin is None
    assert got.correct is None


@pytest.mark.parametrize("name", ["dno", "dno-prct", "dpo"])
def test_before_training_every_loss_is_ln_2(name: str) -> None:
    same = sides([-3.0, -40.5], [-7.25, -1.0])
    got = loss(name, terms(same, same, r=sides([1.0, 0.3], [0.0, 0.1])))
    assert got.losses.tolist() == pytest.approx([LN2, LN2], abs=1e-7)


def test_references_differ_between_objectives() -> None:
    policy, zero = sides([-3.0], [-5.0]), sides([0.0], [0.0])
    mixed = PairTerms(policy, {"t": policy, "0": zero}, zero, zero, sides([1.0], [1.0]))
    t, initial = loss("dno-prct", mixed, beta=1.0).margin, loss("dpo", mixed, beta=1.0).margin
    assert t is not None
    assert initial is not None
    assert (t.item(), initial.item()) == (0.0, 2.0)


def test_soft_target_becomes_the_hard_one_as_the_win_rates_part() -> None:
    policy, reference = sides([-10.0, -8.0], [-14.0, -6.0]), sides([-12.0, -9.0], [-13.0, -8.0])
    far = terms(policy, reference, r=sides([40.0, 40.0], [0.0, 0.0]))
    torch.testing.assert_close(loss("dno", far).losses, loss("dno-prct", far).losses)


def test_dno_is_symmetric_in_the_two_answers() -> None:
    policy, reference, r = sides([-10.0], [-14.0]), sides([-12.0], [-13.0]), sides([0.9], [0.3])
    swapped = terms(Sides(*reversed(policy)), Sides(*reversed(reference)), r=Sides(*reversed(r)))
    torch.testing.assert_close(loss("dno", terms(policy, reference, r=r)).losses, loss("dno", swapped).losses)


def test_dno_gradient_vanishes_where_margin_meets_the_win_rates() -> None:
    # Eq. (8) is least where beta * (D_pi - D_t) = r_w - r_l; below it the margin is pushed up, above it down.
    gradients = []
    for log_ratio in (0.4, 0.6, 0.8):
        chosen = torch.tensor([log_ratio], requires_grad=True)
        given = terms(Sides(chosen, torch.zeros(1)), sides([0.0], [0.0]), r=sides([0.8], [0.2]))
        loss("dno", given, beta=1.0).losses.sum().backward()
        assert chosen.grad is not None
        gradients.append(chosen.grad.item())
    assert gradients[0] < 0 < gradients[2]
    assert gradients[1] == pytest.approx(0.0, abs=1e-7)


def test_gradient_is_beta_times_the_sigmoid_of_minus_the_margin() -> None:
    chosen, rejected = torch.tensor([-10.0], requires_grad=True), torch.tensor([-14.0], requires_grad=True)
    given = terms(Sides(chosen, rejected), sides([-12.0], [-13.0]), lengths=sides([5.0], [7.0]))
    loss("dpo", given, beta=0.5, alpha=0.1).losses.sum().backward()
    slope = 0.5 / (1 + math.exp(1.5))
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.item() == pytest.approx(-slope - 0.1 / 5)
    assert rejected.grad.item() == pytest.approx(slope)


def test_huge_margins_stay_finite() -> None:
    given = terms(sides([1e5, -1e5], [0.0, 0.0]), sides([0.0, 0.0], [0.0, 0.0]), r=sides([1.0, 1.0], [0.0, 0.0]))
    assert loss("dno-prct", given).losses.tolist() == pytest.approx([0.0, 1e4])
    assert torch.isfinite(loss("dno", given).losses).all()


def test_a_missing_reference_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"'t' are missing; given: \[\]"):
        loss("dno-prct", terms(sides([-1.0], [-2.0])))


def test_a_new_objective_is_one_row() -> None:
    def squared(margin: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (margin - target) ** 2

    inpo = Objective("test", {"t": 0.75, "0": 0.25}, squared, lambda given: torch.full_like(given.policy.chosen, 2.0))
    policy, t, initial = sides([-1.0], [-4.0]), sides([-1.0], [-3.0]), sides([-2.0], [-6.0])
    got = preference_loss(inpo, PairTerms(policy, {"t": t, "0": initial}, t, t, t), beta=1.0, alpha=0.0)
    assert got.losses.item() == pytest.approx((3 - 0.75 * 2 - 0.25 * 4 - 2) ** 2)
