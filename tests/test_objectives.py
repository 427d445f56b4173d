"""Every objective: an example worked by hand, and the algebra."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from nashtune.errors import TrainingError
from nashtune.objectives import (
    OBJECTIVES,
    LossTerms,
    Objective,
    PairTerms,
    Sides,
    log_ratios,
    preference_loss,
    reference_iteration,
)

LN2 = math.log(2)
NAMES = list(OBJECTIVES)
START_LN2 = ["dno", "dno-prct", "dno-regularized", "dpo", "spin"]


def sides(chosen: float | list[float], rejected: float | list[float]) -> Sides:
    return Sides(*(torch.tensor(v if isinstance(v, list) else [v], dtype=torch.double) for v in (chosen, rejected)))


def terms(policy: Sides, *, of: dict[str, Sides] | None = None, **rest: Sides) -> PairTerms:
    """Terms of a batch; ``of`` are references, absent ones are the policy's equals at zero."""
    ones = sides([1.0] * len(policy.chosen), [1.0] * len(policy.chosen))
    words = {"win_rates": ones, "scores": ones, "versus_policy": ones, "lengths": ones} | rest
    return PairTerms(policy, of or {}, **words)


def loss(name: str, given: PairTerms, **settings: float) -> LossTerms:
    row = OBJECTIVES[name]
    return preference_loss(row, given, {**row.defaults(), **settings})


def swapped(given: PairTerms) -> PairTerms:
    def turn(side: Sides) -> Sides:
        return Sides(side.rejected, side.chosen)

    columns = ("win_rates", "scores", "versus_policy", "lengths")
    return PairTerms(
        turn(given.policy),
        {name: turn(side) for name, side in given.references.items()},
        **{name: turn(getattr(given, name)) for name in columns},
    )


def random_terms(count: int = 7, seed: int = 0) -> PairTerms:
    draw = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Sides:
        return Sides(*(low + (high - low) * torch.rand(2, count, generator=draw, dtype=torch.double)))

    names = ("t", "0", "t-1", "t-2", "every-12", "every-5")
    lengths = Sides(*torch.randint(3, 30, (2, count), generator=draw).double())
    return PairTerms(
        uniform(-30, -5),
        {name: uniform(-30, -5) for name in names},
        uniform(0, 1),
        uniform(1, 6),
        uniform(0, 1),
        lengths,
    )


# ---- examples worked by hand --------------------------------------------------------------------------------------------

# Policy: w -10, l -14. t: w -12, l -13, so q_t(w) = 2, q_t(l) = -1, D = 3. 0: w -9, l -12, so q_0(w) = -1, q_0(l) = -2, D = 1.
# t-1: w -11, l -13, so D_{t-1} = 2. Lengths 5 and 7. r 0.8 and 0.2, scores 5 and 3, P against pi_t 0.75 and 0.25.
GIVEN = terms(
    sides(-10, -14),
    of={"t": sides(-12, -13), "0": sides(-9, -12), "t-1": sides(-11, -13), "every-12": sides(-9, -12)},
    win_rates=sides(0.8, 0.2),
    scores=sides(5, 3),
    versus_policy=sides(0.75, 0.25),
    lengths=sides(5, 7),
)
WORKED: dict[str, list[tuple[dict[str, float], float]]] = {
    # log(1 + e^-1.5) = 0.2014133, and log(1 + e^1.5) = 1.7014133; NLL per token 10 / 5 = 2.
    "dno-prct": [
        ({"beta": 0.5, "alpha": 0.0}, 0.2014133),
        ({"beta": 0.5, "alpha": 0.1}, 0.2014133 + 0.2),
        ({"beta": 0.5, "alpha": 0.0, "offset": 1.5}, LN2),
        # q(w)/5 - q(l)/7 = 0.4 + 1/7 = 0.5428571
        ({"beta": 2.0, "alpha": 0.0, "per_token": 1}, math.log(1 + math.exp(-1.0857143))),
    ],
    # target s(0.6) = 0.6456563
    "dno": [({"beta": 0.5, "alpha": 0.0}, 0.6456563 * 0.2014133 + 0.3543437 * 1.7014133)],
    # tau/eta = 1/4: D = 4 - (3/4) 1 - (1/4) 3 = 2.5
    "dno-regularized": [
        ({"eta": 0.4, "tau": 0.1, "alpha": 0.0}, math.log(1 + math.exp(-1.0))),
        ({"eta": 0.4, "tau": 0.1, "alpha": 0.0, "soft": 1}, math.log(1 + math.exp(-1.0)) + 0.3543437),
        ({"eta": 0.4, "tau": 0.1, "alpha": 0.0, "offset": 1.0}, LN2),
    ],
    "dpo": [({"beta": 1.5}, 0.2014133)],
    # [0.75 * 0.2014133 - 0.25 * 1.7014133] / 0.5
    "robust-dpo": [({"beta": 1.5, "noise": 0.25}, -0.5485867), ({"beta": 1.5, "noise": 0.0}, 0.2014133)],
    "spin": [({"beta": 0.5}, 0.2014133)],
    # 2 (-10/5 + 14/7) - 1 = -1
    "simpo": [({}, math.log(1 + math.e)), ({"offset": 0.0}, LN2)],
    # beta * 4 = 2, and the likelihood term 2
    "cpo": [({"beta": 0.5}, math.log(1 + math.exp(-2)) + 2)],
    # mean log p: -2 and -2, so equal odds: ln 2 / 10, and the likelihood term 2
    "orpo": [({}, 0.1 * LN2 + 2)],
    # 1 - 1/(2 * 0.25) = -1
    "ipo": [({"tau": 0.25}, 1.0), ({"tau": 0.5, "per_token": 1}, (-1 / 5 + 2 / 7 - 1) ** 2)],
    # D = 2.5 as above, 1/(2 eta) = 1
    "inpo": [({"eta": 0.5, "tau": 0.125}, 1.5**2)],
    "comal": [({"eta": 0.5, "tau": 0.125}, 1.5**2)],
    # 4 - (1/2) 3 - (1/4) 1 - (1/4) 2 = 1.75, less 1
    "mnpo": [({"eta": 0.5, "ratio": 0.5, "history": 2}, 0.75**2)],
    # 3 - 0.5 * 2
    "rebel": [({"eta": 0.5}, 4.0)],
    # ((2 - 4 * 0.25)^2 + (-1 + 4 * 0.25)^2) / 2
    "sppo": [({"eta": 4.0}, 0.5)],
    # SPPO's 0.5; reverse 0.2/2 * (1 + 4) = 0.5; forward: w weight min(e^3, 1) = 1 gives 10, l min(e^1, 1) = 1 gives 14
    "rspo": [
        ({"eta": 4.0, "reverse": 0.2, "forward": 0.0}, 1.0),
        ({"eta": 4.0, "reverse": 0.0, "forward": 0.1}, 0.5 + 2.4),
        ({"eta": 4.0, "reverse": 0.0, "forward": 0.1, "clip": 3.0}, 0.5 + 0.1 * (3 * 10 + math.e * 14)),
    ],
    # z = max(0, (2 - 1) / 2) = 0.5: 1 - s(0.15) = 0.4625702 and 1 - s(0.15)
    "kto": [
        ({}, 0.4625702),
        ({"desirable": 2.0}, 0.4625702 * 1.5),
        ({"undesirable": 3.0, "alpha": 0.5}, 0.4625702 * 2 + 1),
    ],
    "sft": [({}, 2.0)],
}


@pytest.mark.parametrize("name", WORKED)
def test_examples_worked_by_hand(name: str) -> None:
    for settings, expected in WORKED[name]:
        assert loss(name, GIVEN, **settings).losses.item() == pytest.approx(expected, abs=1e-6), settings


def test_every_objective_has_an_example_a_source_and_a_formula() -> None:
    assert set(WORKED) == set(NAMES)
    for name, row in OBJECTIVES.items():
        assert "arXiv" in row.source, name
        assert row.formula, name
        assert row.loss is None or (row.loss.__doc__ or "").strip(), name
        assert all(setting.meaning.endswith(".") for setting in row.settings.values()), name
        assert row.loss is None or "alpha" in row.settings, name


def test_terms_of_a_worked_example() -> None:
    got = loss("dno-prct", GIVEN, beta=0.5)
    assert got.margin is not None
    assert got.log_ratio is not None
    assert got.correct is not None
    assert (got.log_ratio.item(), got.margin.item(), got.nll.item(), got.correct.item()) == (3.0, 1.5, 2.0, 1.0)


# ---- algebra ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", START_LN2)
def test_before_training_every_hard_or_soft_logistic_loss_is_ln_2(name: str) -> None:
    given = random_terms()
    same = replace(given, references=dict.fromkeys(given.references, given.policy))
    assert loss(name, same, alpha=0.0).losses.tolist() == pytest.approx([LN2] * 7, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "settings"), [("dno", {}), ("dno-regularized", {"soft": 1}), ("rebel", {}), ("sppo", {})]
)
def test_objectives_that_know_how_good_both_are_do_not_mind_their_order(name: str, settings: dict[str, float]) -> None:
    given = random_terms()
    one, other = (loss(name, each, **settings, alpha=0.0).losses for each in (given, swapped(given)))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["dno-prct", "dpo", "spin", "cpo", "simpo"])
def test_hard_losses_of_a_pair_and_its_swap_differ_by_the_margin(name: str) -> None:
    # -log s(m) + log s(-m) = -m
    given = random_terms()
    one, other = (loss(name, each, alpha=0.0, offset=0.0) for each in (given, swapped(given)))
    assert one.margin is not None
    torch.testing.assert_close(one.losses - other.losses, -one.margin, rtol=0, atol=1e-10)


def test_dno_with_hard_targets_is_dno_prct() -> None:
    given = random_terms()
    certain = replace(given, win_rates=sides([800.0] * 7, [0.0] * 7))
    torch.testing.assert_close(loss("dno", certain).losses, loss("dno-prct", certain).losses, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        loss("dno-regularized", certain, soft=1).losses, loss("dno-regularized", certain).losses, rtol=0, atol=1e-12
    )


def test_robust_dpo_without_noise_is_dpo_and_its_mean_over_flips_is_dpo() -> None:
    given = random_terms()
    torch.testing.assert_close(loss("robust-dpo", given, noise=0.0).losses, loss("dpo", given).losses)
    right, flipped = (loss("robust-dpo", each, noise=0.2).losses for each in (given, swapped(given)))
    torch.testing.assert_close(0.8 * right + 0.2 * flipped, loss("dpo", given).losses)


@pytest.mark.parametrize("seed", range(3))
def test_robust_dpo_equals_trls(seed: int) -> None:
    pytest.importorskip("trl")
    from test_trl_equality import ours, trl_dpo

    expected = trl_dpo("robust", seed, 0.3, label_smoothing=0.2)
    assert ours("robust-dpo", seed, beta=0.3, noise=0.2).mean().item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_dno_prct_at_the_first_iteration_is_dpo() -> None:
    given = random_terms()
    first = replace(given, references={"t": given.references["0"], "0": given.references["0"]})
    assert reference_iteration("t", 1) == reference_iteration("0", 1) == 0
    ours, dpo = loss("dno-prct", first, alpha=0.0), loss("dpo", first)
    torch.testing.assert_close(ours.losses, dpo.losses, rtol=0, atol=0)


@pytest.mark.parametrize(("mixed", "plain"), [("dno-regularized", "dno-prct"), ("inpo", None)])
def test_limits_of_tau(mixed: str, plain: str | None) -> None:
    """tau 0 forgets the initial policy, tau = eta forgets the current one."""
    given, row = random_terms(), OBJECTIVES[mixed]
    for tau, reference in ((0.0, "t"), (0.2, "0")):
        settings = {**row.defaults(), "tau": tau, "eta": 0.2}
        assert row.references(settings) == {reference: 1.0}
        expected = given.policy.difference - given.references[reference].difference
        torch.testing.assert_close(log_ratios(row, given, settings).difference, expected)
    if plain:
        without = loss(mixed, given, tau=0.0, eta=0.2, alpha=0.0).losses
        torch.testing.assert_close(without, loss(plain, given, beta=0.2, alpha=0.0).losses)


@pytest.mark.parametrize("name", START_LN2)
def test_as_beta_goes_to_0_nothing_is_learned_and_as_it_grows_only_order_counts(name: str) -> None:
    given, scale = random_terms(), "eta" if name == "dno-regularized" else "beta"
    more = {"tau": 0.0} if name == "dno-regularized" else {}
    small = loss(name, given, alpha=0.0, **more, **{scale: 1e-9})
    assert small.losses.tolist() == pytest.approx([LN2] * 7, abs=1e-6)
    if name != "dno":
        large = loss(name, given, alpha=0.0, **more, **{scale: 1e4})
        assert large.log_ratio is not None
        expected = 1e4 * (-large.log_ratio).clamp(min=0)
        torch.testing.assert_close(large.losses, expected, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize(("name", "setting"), [("ipo", "tau"), ("inpo", "eta"), ("mnpo", "eta")])
def test_as_the_step_goes_to_0_the_log_ratio_asked_for_is_0(name: str, setting: str) -> None:
    given = random_terms()
    got = loss(name, given, **{setting: 1e12})
    assert got.log_ratio is not None
    torch.testing.assert_close(got.losses, got.log_ratio**2)


def test_comal_and_mnpo_are_inpo_where_they_should_be() -> None:
    given = random_terms()
    same = replace(given, references={**given.references, "every-12": given.references["0"]})
    torch.testing.assert_close(loss("comal", same).losses, loss("inpo", same).losses)
    one = loss("mnpo", given, history=1, ratio=0.25, eta=0.02).losses
    torch.testing.assert_close(one, loss("inpo", given, eta=0.02, tau=0.005).losses)
    torch.testing.assert_close(loss("mnpo", given, ratio=1.0, eta=0.02).losses, loss("ipo", given, tau=0.02).losses)


def test_rspo_without_its_divergences_is_sppo() -> None:
    given = random_terms()
    torch.testing.assert_close(loss("rspo", given, forward=0.0, reverse=0.0).losses, loss("sppo", given).losses)


def test_rspos_penalties_have_the_gradients_of_the_divergences() -> None:
    """Exactly, over all answers of a small policy: with pi = pi_t the reverse penalty's mean gradient is that of
    KL(pi || pi_0), the forward one's that of KL(pi_0 || pi)."""
    draw = torch.Generator().manual_seed(3)
    start, initial = torch.randn(2, 6, generator=draw, dtype=torch.double).unbind(0)
    t, zero = start.log_softmax(0), initial.log_softmax(0)
    for settings, divergence in (
        ({"reverse": 1.0, "forward": 0.0}, lambda pi: (pi.exp() * (pi - zero)).sum()),
        ({"reverse": 0.0, "forward": 1.0}, lambda pi: (zero.exp() * (zero - pi)).sum()),
    ):
        theta = start.clone().requires_grad_()
        pi = theta.log_softmax(0)
        given = terms(Sides(pi, pi), of={"t": Sides(t, t), "0": Sides(zero, zero)})
        penalty = loss("rspo", given, **settings, clip=1e9).losses - loss("sppo", given).losses
        (t.exp() * penalty / 2).sum().backward()  # both sides hold the same answer
        other = start.clone().requires_grad_()
        divergence(other.log_softmax(0)).backward()
        assert theta.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(theta.grad, other.grad)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"sft"}))
def test_gradients_point_towards_the_better_answer(name: str) -> None:
    """From where policy and references are equal, the chosen answer is raised and the rejected one lowered."""
    chosen, rejected = (torch.tensor([-8.0], dtype=torch.double, requires_grad=True) for _ in range(2))
    same = Sides(chosen.detach(), rejected.detach())
    names = ("t", "0", "t-1", "t-2", "every-12")
    words = {"win_rates": sides(0.9, 0.1), "scores": sides(5, 2), "versus_policy": sides(0.9, 0.1)}
    given = terms(Sides(chosen, rejected), of=dict.fromkeys(names, same), **words, lengths=sides(4, 4))
    extra = {"forward": 0.0} if name == "rspo" else {}
    loss(name, given, alpha=0.0, **extra).losses.sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.item() < 0 < rejected.grad.item()


def test_dno_gradient_vanishes_where_margin_meets_the_win_rates() -> None:
    # Eq. (8) is least where beta * (D_pi - D_t) = r_w - r_l; below it the margin is pushed up, above it down.
    gradients = []
    for log_ratio in (0.4, 0.6, 0.8):
        chosen = torch.tensor([log_ratio], dtype=torch.double, requires_grad=True)
        zero = sides(0.0, 0.0)
        given = terms(Sides(chosen, zero.rejected), of={"t": zero}, win_rates=sides(0.8, 0.2))
        loss("dno", given, beta=1.0, alpha=0.0).losses.sum().backward()
        assert chosen.grad is not None
        gradients.append(chosen.grad.item())
    assert gradients[0] < 0 < gradients[2]
    assert gradients[1] == pytest.approx(0.0, abs=1e-12)


def test_gradient_is_beta_times_the_sigmoid_of_minus_the_margin() -> None:
    chosen, rejected = (torch.tensor([v], dtype=torch.double, requires_grad=True) for v in (-10.0, -14.0))
    given = replace(GIVEN, policy=Sides(chosen, rejected))
    loss("dno-prct", given, beta=0.5, alpha=0.1).losses.sum().backward()
    slope = 0.5 / (1 + math.exp(1.5))
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.item() == pytest.approx(-slope - 0.1 / 5)
    assert rejected.grad.item() == pytest.approx(slope)


def test_ktos_estimate_carries_no_gradient_and_is_never_negative() -> None:
    chosen = torch.tensor([3.0, 1.0], dtype=torch.double, requires_grad=True)
    given = terms(Sides(chosen, torch.zeros(2, dtype=torch.double)), of={"t": sides([0.0, 0.0], [0.0, 0.0])})
    loss("kto", given, beta=1.0).losses.sum().backward()
    s = torch.sigmoid(chosen.detach() - 1.0)  # z = (3 + 1 + 0 + 0) / 4
    torch.testing.assert_close(chosen.grad, -s * (1 - s) / 2)
    far = terms(sides(-5.0, -5.0), of={"t": sides(0.0, 0.0)})  # the mean log-ratio is -5, z is 0
    expected = (1 - 1 / (1 + math.exp(5)) + 1 - 1 / (1 + math.exp(-5))) / 2
    assert loss("kto", far, beta=1.0).losses.item() == pytest.approx(expected)


@pytest.mark.parametrize("name", NAMES)
def test_alpha_adds_the_likelihood_per_token_and_huge_numbers_stay_finite(name: str) -> None:
    given, row = random_terms(), OBJECTIVES[name]
    if "alpha" in row.settings:
        none, some = (loss(name, given, alpha=alpha) for alpha in (0.0, 0.3))
        torch.testing.assert_close(some.losses - none.losses, 0.3 * -given.policy.chosen / given.lengths.chosen)
    far = replace(given, policy=sides([-1e5, -1e-9], [-1e-9, -1e5]))
    columns = {
        c: Sides(*(v[:2] for v in getattr(given, c))) for c in ("win_rates", "scores", "versus_policy", "lengths")
    }
    cut = {n: Sides(s.chosen[:2], s.rejected[:2]) for n, s in given.references.items()}
    assert torch.isfinite(loss(name, replace(far, references=cut, **columns)).losses).all()


def test_a_missing_reference_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"'t' are missing; given: \[\]"):
        loss("dno-prct", terms(sides(-1.0, -2.0)))


def test_sft_is_the_likelihood_alone_and_ignores_the_rejected_answer() -> None:
    got = loss("sft", terms(sides([-10.0, -9.0], [math.nan, math.nan]), lengths=sides([5.0, 3.0], [0.0, 0.0])))
    assert got.losses.tolist() == [2.0, 3.0]
    assert got.margin is None
    assert got.correct is None


def test_a_new_objective_is_one_row() -> None:
    row = Objective(
        "test", "test", lambda q, _, s: (q.difference - s["target"]) ** 2, references=lambda _: {"t": 0.75, "0": 0.25}
    )
    policy, t, initial = sides(-1.0, -4.0), sides(-1.0, -3.0), sides(-2.0, -6.0)
    got = preference_loss(row, terms(policy, of={"t": t, "0": initial}), {"target": 2.0, "alpha": 0.0})
    assert got.losses.item() == pytest.approx((3 - 0.75 * 2 - 0.25 * 4 - 2) ** 2)
