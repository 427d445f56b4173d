"""Matrix games: what theory says of each algorithm, against the exact equilibrium; tolerances are derived beside each test.

ROUNDING is for sums of at most some thousand float64 terms of size 1 (1e-16 each).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from nashtune.cli import app
from nashtune.errors import GameError
from nashtune.games import equilibrium as known
from nashtune.games.algorithms import CLOSED, NAMES, POPULATION, Sampling, algorithm, closed_step, turn_of
from nashtune.games.matrices import (
    GAMES,
    Array,
    Game,
    PromptGame,
    builtin_game,
    contextual,
    game_of,
    preference_matrix,
    rock_paper_scissors,
)
from nashtune.games.play import Play, cycling, play
from nashtune.games.training import population_step, sampled_step

ROUNDING = 1e-12
RUNNER = CliRunner()
SKEWED = [0.2, 0.3, 0.5]


def single(matrix: Array, initial: list[float] | None = None) -> Game:
    n = len(matrix)
    return Game("test", (PromptGame(matrix, 1.0, np.full(n, 1 / n) if initial is None else np.array(initial)),))


def random_matrix(n: int, seed: int) -> Array:
    upper = np.triu(np.random.default_rng(seed).uniform(size=(n, n)), 1)
    return upper + np.tril(1 - upper.T, -1) + np.eye(n) / 2


def only(game: Game, name: str, iterations: int, **settings: float | str) -> Play:
    return play(game, algorithm(name, **settings), iterations).plays[0]  # type: ignore[arg-type]


# ---- equilibria --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(50))
def test_equilibrium_of_random_matrices_against_its_certificate_and_against_averaged_play(seed: int) -> None:
    # No pure deviation wins more than 1/2, the value by symmetry: that alone proves an equilibrium. The solver is asked
    # for 1e-10 per constraint.
    n = 3 + seed % 8
    matrix = random_matrix(n, seed)
    found = known.equilibrium(matrix)
    assert found.min() >= 0
    assert found.sum() == pytest.approx(1, abs=ROUNDING)
    assert known.exploitability(matrix, found) <= 1e-9
    assert (0.5 - matrix @ found)[
        found > 1e-6
    ].max() <= 1e-9 / 1e-6  # what is played earns 1/2 (complementary slackness)
    # Exponential weights with step 1/eta on gains in [0, 1] have regret at most eta log n + T / (8 eta); at
    # eta = sqrt(T / (8 log n)) the average's exploitability is at most sqrt(log n / (2 T)).
    rounds = 1000
    average = only(single(matrix), "dno", rounds, eta=float(np.sqrt(rounds / (8 * np.log(n))))).average
    bound = np.sqrt(np.log(n) / (2 * rounds))
    assert -ROUNDING <= known.exploitability(matrix, average) <= bound
    assert (
        abs(average @ matrix @ found - 0.5) <= bound
    )  # nobody gains more against the other than either is exploitable


def test_weighted_rock_paper_scissors_plays_each_in_proportion_to_the_margin_of_the_other_two() -> None:
    matrix = rock_paper_scissors(rock_scissors=0.1, scissors_paper=0.2, paper_rock=0.5)
    # Rock : paper : scissors = (scissors over paper) : (rock over scissors) : (paper over rock).
    assert known.equilibrium(matrix) == pytest.approx(np.array([0.2, 0.1, 0.5]) / 0.8, abs=1e-9)


def test_distance_is_to_the_nearest_of_many_equilibria() -> None:
    rps = rock_paper_scissors(0.5, 0.5, 0.5)
    twice = np.block([[rps, rps], [rps, rps]])  # every action has a twin: how they share does not matter
    assert known.distance_to_equilibria(twice, np.array([0.3, 0, 1 / 3, 1 / 30, 1 / 3, 0])) == pytest.approx(
        0, abs=1e-9
    )
    assert known.distance_to_equilibria(twice, np.eye(6)[0]) == pytest.approx(2 / 3, abs=1e-9)


def test_builtin_games_are_what_they_say() -> None:
    for name in GAMES:
        first, again = (builtin_game(name, seed=3).prompts[0].matrix for _ in range(2))
        assert (first == again).all()
        preference_matrix(first.tolist(), name)
    assert (builtin_game("random-intransitive-6").prompts[0].matrix < 0.5).any(axis=1).all()
    assert known.equilibrium(builtin_game("condorcet").prompts[0].matrix) == pytest.approx([1, 0, 0, 0, 0], abs=1e-9)
    cyclic = builtin_game("cyclic-4").prompts[0].matrix
    assert ((cyclic > 0.5).sum(axis=1) == 1).all()
    assert cyclic[0, 2] == cyclic[1, 3] == 0.5


# ---- dno ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["population", "dno"])
@pytest.mark.parametrize("eta", [0.3, 1.0, 10.0])
@pytest.mark.parametrize("game", ["rps", "cyclic-7", "random-intransitive", "condorcet", "ties"])
def test_average_of_dno_is_within_the_regret_bound_and_every_step_improves_by_eq_9(
    name: str, eta: float, game: str
) -> None:
    played = play(builtin_game(game, seed=1), algorithm(name, eta), 400)
    found = played.plays[0]
    rounds = np.arange(1, 401)
    bound = eta * np.log(len(found.equilibrium)) / rounds + 1 / (8 * eta)
    assert (found.exploitability_average[1:] <= bound + ROUNDING).all()
    assert played.bound is not None
    assert (found.win_rate >= played.bound - ROUNDING).all()
    assert found.kl.max() > 0
    # It is an equality with both divergences: <pi' - pi, r> = eta (KL(pi' || pi) + KL(pi || pi')).
    logs = np.log(np.maximum(found.policies, 1e-300))
    back = (found.policies[:-1] * (logs[:-1] - logs[1:])).sum(axis=1)
    safe = found.policies.min(axis=1)[1:] > 1e-250
    assert found.win_rate[safe] == pytest.approx((0.5 + eta * (found.kl + back))[safe], abs=1e-10)


def test_dnos_last_iterate_moves_away_from_a_mixed_equilibrium_while_its_average_comes_near() -> None:
    # For an equilibrium p of full support P(p beats pi_t) = 1/2 for every pi_t, so KL(p || pi_{t+1}) - KL(p || pi_t) =
    # log E_pi_t exp(r / eta) - 1 / (2 eta) > 0 by Jensen's inequality: never nearer than at the start.
    game, eta, rounds = builtin_game("rps", seed=0), 5.0, 20_000
    found = only(game, "dno", rounds, eta=eta)
    p = found.equilibrium
    distances = (p * (np.log(p) - np.log(found.policies))).sum(axis=1)
    assert (np.diff(distances) > -ROUNDING).all()
    assert distances[-1] > distances[0] + 0.1
    assert found.cycles
    # Telescoping: P(y > average) - 1/2 = eta / T * (the growth of log pi(y) less that of p's mean), which is exact.
    growth = np.log(found.last) - np.log(found.policies[0])
    identity = (eta / rounds * (growth - p @ growth)).max()
    assert found.exploitability_average[-1] == pytest.approx(identity, abs=1e-9)
    assert found.exploitability_average[-1] < 2e-3 < 0.02 < found.exploitability_last[-2000:].max()


def test_dnos_last_iterate_reaches_a_condorcet_winner() -> None:
    # KL(p || pi) with p the winner falls by at least ((r_0 - 1/2) - 1 / (8 eta)) / eta a step (Hoeffding's lemma), where
    # r_0 - 1/2 >= 0.05 (1 - pi_0): it goes on until 1 - pi_0 <= 1 / (0.4 eta).
    found = only(builtin_game("condorcet", seed=2), "dno", 20_000, eta=100.0)
    assert 1 - found.last[0] <= 1 / 40
    assert found.exploitability_last[-1] <= 0.5 * (1 / 40)  # others win at most all of what the winner does not play
    assert not found.cycles


# ---- regularised -------------------------------------------------------------------------------------------------------

TAU = 0.05
RANDOM = builtin_game("random-intransitive-10", seed=0)
PROMPT = RANDOM.prompts[0]
STAR = known.regularized_equilibrium(PROMPT.matrix, TAU, PROMPT.initial)


@pytest.mark.parametrize(("seed", "tau"), [(seed, tau) for seed in range(5) for tau in (1.0, 0.05, 0.001, 1e-6)])
def test_regularised_equilibrium_is_the_fixed_point(seed: int, tau: float) -> None:
    matrix, initial = random_matrix(8, seed), np.random.default_rng(seed).dirichlet(np.ones(8))
    found = known.regularized_equilibrium(matrix, tau, initial)
    again = known.log_normalised(np.log(initial) + matrix @ found / tau)
    # Rounding of P pi, some 1e-16, is divided by tau. Log probabilities below -700 have no float64 probability.
    shown = again > -700
    assert np.abs(np.log(found[shown]) - again[shown]).max() <= 1e-9 + 1e-14 / tau
    assert found[~shown].max(initial=0.0) < 1e-300
    # No deviation gains in regularised preference, so exploitability is at most tau times the largest -log pi_0.
    assert known.exploitability(matrix, found) <= tau * -np.log(initial.min())


@pytest.mark.parametrize(("eta", "iterations"), [(0.3, 400), (1.0, 1000), (10.0, 8000)])
@pytest.mark.parametrize("option", ["I", "II"])
def test_regularised_dno_converges_in_the_last_iterate(option: str, eta: float, iterations: int) -> None:
    # Errors shrink by the contraction factor c each iteration: c^iterations is below 1e-15 here, so rounding remains.
    factor = known.contraction(PROMPT.matrix, TAU, eta, PROMPT.initial, option)
    assert factor**iterations < 1e-15
    limit = STAR if option == "I" else known.option_two_limit(PROMPT.matrix, TAU, eta, PROMPT.initial)[0]
    found = only(RANDOM, "dno-regularized", iterations, eta=eta, tau=TAU, option=option)
    assert np.abs(found.last - limit).max() < ROUNDING
    assert not found.cycles


@pytest.mark.parametrize("option", ["I", "II"])
def test_with_steps_too_large_the_regularised_options_cycle(option: str) -> None:
    # The fixed point of option I attracts where eta > (tau^2 + omega^2) / (2 tau), and repels below. Option II's edge is
    # near: (1 - tau/eta)^2 (1 + omega^2 / eta^2) = 1 at eta = omega^2 / (2 tau) to first order in tau / omega, 0.07 here.
    matrix, tau = builtin_game("rps", seed=0).prompts[0].matrix, 0.01
    initial = np.full(3, 1 / 3)
    omega = known.rotation(matrix, known.regularized_equilibrium(matrix, tau, initial))
    edge = (tau**2 + omega**2) / (2 * tau)
    assert known.contraction(matrix, tau, edge, initial, "I") == pytest.approx(1, abs=1e-9)
    small, large = 0.5 * edge, 1.5 * edge
    assert known.contraction(matrix, tau, small, initial, option) > 1.003
    assert known.contraction(matrix, tau, large, initial, option) < 0.998
    # A factor of 1.003 grows 400-fold in 2000 iterations; 0.998^10000 is 2e-9, of which KL is the square.
    assert only(single(matrix), "dno-regularized", 2000, eta=small, tau=tau, option=option).cycles
    settled = only(single(matrix), "dno-regularized", 10_000, eta=large, tau=tau, option=option)
    assert not settled.cycles
    assert settled.kl[-1] < ROUNDING


def test_option_two_close_to_tau_converges_where_option_one_does_not() -> None:
    # With eta = tau the mixture is pi_0 whatever pi_t is, so option II stands still after one iteration.
    matrix, initial = builtin_game("rps", seed=0).prompts[0].matrix, np.full(3, 1 / 3)
    assert known.contraction(matrix, TAU, TAU, initial, "II") == 0
    assert known.contraction(matrix, TAU, TAU, initial, "I") > 1
    found = only(single(matrix), "dno-regularized", 3, eta=TAU, tau=TAU, option="II")
    assert np.abs(np.diff(found.policies[1:], axis=0)).max() < ROUNDING
    assert only(single(matrix), "dno-regularized", 2000, eta=TAU, tau=TAU, option="I").cycles


def test_option_twos_gap_falls_like_one_over_eta() -> None:
    # arXiv 2404.03715's regularised algorithms, a 10-action random game, tau 0.05; orders of magnitude known from another
    # random game, so within a factor of 2.
    gaps = {}
    for eta, expected in {1.0: 2e-2, 3.0: 7e-3, 10.0: 2e-3, 50.0: 4e-4}.items():
        limit, _ = known.option_two_limit(PROMPT.matrix, TAU, eta, PROMPT.initial)
        gaps[eta] = np.abs(limit - STAR).sum() / 2
        assert expected / 2 <= gaps[eta] <= expected * 2
    # To first order: the mixture is off pi by d = -(tau/eta) pi (log(pi / pi_0) - its mean), and x = J P (x + d) / tau with
    # J = diag(pi) - pi pi^T. The next order is smaller by about log(pi / pi_0) tau / eta: 3 nats * 1e-3 at eta = 50.
    spread = np.diag(STAR) - np.outer(STAR, STAR)
    d = -TAU / 50 * spread @ np.log(STAR / PROMPT.initial)
    slope = spread @ PROMPT.matrix / TAU
    predicted = np.linalg.solve(np.eye(10) - slope, slope @ d)
    assert gaps[50.0] == pytest.approx(np.abs(predicted).sum() / 2, rel=0.02)


@pytest.mark.parametrize(("name", "tau"), [("inpo", 0.05), ("mnpo", 0.1), ("ipo", 0.3)])
def test_relatives_settle_at_their_regularised_equilibrium(name: str, tau: float) -> None:
    # inpo is option I; mnpo pi ~ pi_0 exp(P pi / (ratio eta)) once its history is constant; ipo is option I with eta = tau.
    settings = {"inpo": {"eta": 1.0, "tau": tau}, "mnpo": {"eta": 3 * tau}, "ipo": {"eta": tau}}[name]
    found = only(RANDOM, name, 3000, **settings)
    star = known.regularized_equilibrium(PROMPT.matrix, tau, PROMPT.initial)
    assert found.last == pytest.approx(star, abs=1e-9)
    assert algorithm(name, **settings).limit_temperature == pytest.approx(tau)


def test_inpo_in_the_population_is_regularised_dno_option_one_step_by_step() -> None:
    one, two = (only(RANDOM, name, 50, eta=0.5, tau=TAU).policies for name in ("inpo", "dno-regularized"))
    assert one == pytest.approx(two, abs=ROUNDING)


def test_replacing_the_reference_takes_comal_to_the_equilibrium_itself() -> None:
    # Each block of iterations settles at the regularised equilibrium of the reference before it, a proximal point step of
    # a monotone game: KL(p || reference) falls with every block by KL(next || reference) at least.
    how = algorithm("comal", 0.5, TAU, changes={"replace_every": 150})
    found = play(RANDOM, how, 6000).plays[0]
    blocks, p = found.policies[::150], found.equilibrium
    played = p > 1e-9
    distances = [(p[played] * np.log(p[played] / block[played])).sum() for block in blocks]
    assert np.diff(distances).max() < 1e-5  # a block ends 0.96^150 = 2e-3 of its error away from where it heads
    assert found.exploitability_last[-1] < 1e-3 < 1e-2 < known.exploitability(PROMPT.matrix, STAR)


# ---- rewards do not do -------------------------------------------------------------------------------------------------


def test_rebel_follows_the_scores_to_an_exploitable_action() -> None:
    game = builtin_game("rps", seed=0)
    matrix, initial = game.prompts[0].matrix, game.prompts[0].initial
    scores = known.bradley_terry_scores(matrix, initial)
    fitted = 1 / (1 + np.exp(-(scores[:, None] - scores)))
    assert (fitted - matrix) @ initial == pytest.approx(0, abs=1e-10)
    best = int(scores.argmax())
    lead = scores[best] - np.delete(scores, best).max()
    found = only(game, "rebel", 3000, eta=1.0)
    # pi_{T+1} ~ pi_1 exp(T R): all but 2 exp(-T lead) on the best score, which another action beats.
    assert 1 - found.last[best] <= 2 * np.exp(-3000 * lead)
    beaten = matrix[:, best].max() - 0.5
    assert beaten > 0.1
    # The average has played the rest for at most 2 / lead iterations' worth, by the geometric series' sum plus the first.
    for last_or_average in (found.exploitability_last[-1], found.exploitability_average[-1]):
        assert last_or_average >= beaten - (2 / (1 - np.exp(-lead))) / 3000


def test_dpo_is_a_bradley_terry_fit_and_stays_away_from_a_mixed_equilibrium() -> None:
    game = builtin_game("rps", seed=0)
    matrix, initial = game.prompts[0].matrix, game.prompts[0].initial
    found = only(game, "dpo", 60, eta=1.0)
    # On the initial policy's pairs, beta (log pi / pi_0) is the fitted score itself.
    first = known.log_normalised(np.log(initial) + known.bradley_terry_scores(matrix, initial))
    assert np.log(found.policies[1]) == pytest.approx(first, abs=1e-8)
    # At a fixed point sum_j pi_j s(q_i - q_j) = (P pi)_i. At the equilibrium the right side is 1/2 for all, the left
    # increases in q_i, so q would be constant: only pi_0 itself. Settled here, so it is another point.
    assert found.kl[-1] < 1e-9
    assert found.exploitability_last[-1] > 0.05
    assert found.exploitability_average[-1] > 0.05
    # dno on the same game, same number of iterations, eta of the regret bound:
    eta = float(np.sqrt(60 / (8 * np.log(3))))
    assert only(game, "dno", 60, eta=eta).exploitability_average[-1] < found.exploitability_average[-1] / 2


# ---- closed forms against the training code ------------------------------------------------------------------------------


CASES = [(name, option) for name in CLOSED if name != POPULATION for option in ("I", "II")]


@pytest.mark.parametrize(("name", "option"), [c for c in CASES if c[1] == "I" or c[0] == "dno-regularized"])
@pytest.mark.parametrize("seed", [0, 1])
def test_closed_forms_minimise_the_very_loss_that_trains_language_models(name: str, option: str, seed: int) -> None:
    # Newton's method ends with a step below 1e-9 nats.
    rng = np.random.default_rng(seed)
    history = [np.log(rng.dirichlet(np.ones(5))) for _ in range(4)]
    prompt = PromptGame(random_matrix(5, seed), 1.0, np.exp(history[0]))
    how = algorithm(name, None if name == "sft" else 0.7, option=option if name == "dno-regularized" else None)
    turn = turn_of(prompt, how, history)
    numeric, attained = population_step(how, turn)
    assert attained
    assert numeric == pytest.approx(closed_step(how, turn), abs=1e-8)


@pytest.mark.parametrize("name", ["dno-prct", "dpo", "dno-regularized"])
def test_hard_targets_are_met_on_average_over_opponents(name: str) -> None:
    # d/dq_i of E[-log s(beta D)] over verdicts: sum_j mu_j (s(beta (q_i - q_j)) - P_ij) = 0 for every i.
    history = [np.log(np.full(5, 0.2)), np.log([0.1, 0.3, 0.2, 0.15, 0.25])]
    prompt = PromptGame(random_matrix(5, 3), 1.0, np.full(5, 0.2))
    how = algorithm(name, 0.5, changes={"soft": 0.0} if name == "dno-regularized" else None)
    logs, attained = population_step(how, turn_of(prompt, how, history))
    near = {"dno-prct": 1.0, "dpo": 0.0, "dno-regularized": 1 - TAU / 0.5}[name]
    q = logs - near * history[1] - (1 - near) * history[0]
    fitted = 1 / (1 + np.exp(-0.5 * (q[:, None] - q)))
    assert attained
    assert (fitted - prompt.matrix) @ np.exp(history[1]) == pytest.approx(0, abs=1e-9)


def test_alpha_moves_dno_off_its_closed_form_towards_the_winners() -> None:
    game = builtin_game("rps", seed=0)
    plain, pulled = algorithm("dno", 1.0), algorithm("dno", 1.0, changes={"alpha": 0.5})
    assert plain.closed
    assert not pulled.closed
    turn = turn_of(game.prompts[0], pulled, [np.log(game.prompts[0].initial)])
    logs, attained = population_step(pulled, turn)
    assert attained
    # The likelihood term alone has the minimiser 2 mu r; the sum's lies between the two in that term.
    winners = 2 * np.exp(turn.sampler) * turn.rates
    nll = [-(winners * each).sum() for each in (closed_step(plain, turn), logs, np.log(winners))]
    assert nll[0] > nll[1] > nll[2]


def test_sppo_is_dno_to_first_order_and_kept_normalised() -> None:
    # Its answer to a target a = eta (r - 1/2) of size eta / 2 differs from a's shift by the normalisation in second order:
    # |q - (a - mean)| <= a few (eta/2)^2.
    prompt = builtin_game("random-intransitive", seed=1).prompts[0]
    turn = turn_of(prompt, algorithm("sppo"), [np.log(prompt.initial)])
    for eta in (0.1, 0.01):
        sppo, dno = closed_step(algorithm("sppo", eta), turn), closed_step(algorithm("dno", 1 / eta), turn)
        assert np.exp(sppo).sum() == pytest.approx(1, abs=ROUNDING)
        assert 0 < np.abs(sppo - dno).max() <= eta**2
    assert np.exp(closed_step(algorithm("sppo", 1000.0), turn)).sum() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_every_algorithm_plays_exactly_and_by_sampling(name: str) -> None:
    game = builtin_game("rps", seed=4)
    how = algorithm(name)
    plays = [play(game, how, 3)] + ([] if name == POPULATION else [play(game, how, 3, Sampling(12), seed=1)])
    for played in plays:
        policies = played.plays[0].policies
        assert policies.shape == (4, 3)
        assert policies.sum(axis=1) == pytest.approx(1, abs=1e-9)
        assert np.abs(np.diff(policies, axis=0)).max() > 1e-4
    again = play(game, how, 3, None if name == POPULATION else Sampling(12), seed=1)
    assert (again.plays[0].policies == plays[-1].plays[0].policies).all()


def test_kto_and_spin_are_told_apart_as_losses_without_a_minimum() -> None:
    # KTO's population loss is linear in s(beta q(y)) with the sign of 1/2 - r(y): losing actions go down for ever.
    found = only(builtin_game("rps", seed=0), "kto", 1)
    rates = found.prompt.matrix @ found.policies[0]
    assert found.unattained == 1
    assert found.last[rates < 0.5].max() < 1e-6
    # SPIN's fixed point is its teacher, here the mixed equilibrium.
    spun = only(builtin_game("rps", seed=0), "spin", 40)
    assert spun.unattained == 0
    assert spun.exploitability_last[-1] < 1e-3


# ---- sampling ----------------------------------------------------------------------------------------------------------


def sampled_error(candidates: int, seed: int, noise: float = 0.0, exact_eta: float = 1.0) -> Array:
    """Errors [2] of dno's log-ratios to action 0 after one iteration with K samples, against exact play."""
    prompt = PromptGame(rock_paper_scissors(0.1, 0.3, 0.4), 1.0, np.array(SKEWED))
    turn = turn_of(prompt, algorithm("dno", 1.0), [np.log(prompt.initial)])
    got = sampled_step(algorithm("dno", 1.0), turn, Sampling(candidates, noise), np.random.default_rng(seed))
    error = got - closed_step(algorithm("dno", exact_eta), turn)
    return error[1:] - error[0]


def test_sampled_dno_approaches_exact_dno_like_one_over_the_root_of_k() -> None:
    # r(y) is a mean over K - 1 opponents, so errors are normal with a spread ~ 1/sqrt(K): 16 times the samples, a quarter
    # of the RMS. From 60 seeds x 2 values each RMS is known to about 1 / sqrt(2 * 60) = 9 % (the two correlate), the ratio
    # to 13 %: within 4 standard errors of 4, as the bias of the sigmoid's curvature is of order 1/K.
    few = np.sqrt(np.mean([sampled_error(30, seed) ** 2 for seed in range(60)]))
    many = np.sqrt(np.mean([sampled_error(480, seed) ** 2 for seed in range(60, 120)]))
    assert 4 * (1 - 0.52) <= few / many <= 4 * (1 + 0.52)
    # Hoeffding: |r error| <= sqrt(log(2 n / delta) / (2 K)) for all n = 3 with probability 1 - delta; log-ratios hold two.
    assert many <= 2 * np.sqrt(np.log(6 / 1e-3) / (2 * 480))


def test_noise_of_the_oracle_is_a_larger_eta() -> None:
    # P becomes (1 - 2 noise) P + noise, so r's differences shrink by 1 - 2 noise: with 0.25, eta 2. The mean over 40 seeds
    # at K = 300 has a standard error of about sqrt(2 * 0.25 / 300 / 40) = 0.0065 for a log-ratio.
    errors = np.mean([sampled_error(300, seed, noise=0.25, exact_eta=2.0) for seed in range(40)], axis=0)
    wrong = np.mean([sampled_error(300, seed, noise=0.25, exact_eta=1.0) for seed in range(40)], axis=0)
    assert np.abs(errors).max() <= 4 * 0.0065
    assert np.abs(wrong).max() > 4 * 0.0065


def test_option_two_samples_from_the_mixture() -> None:
    prompt = PromptGame(rock_paper_scissors(0.1, 0.3, 0.4), 1.0, np.array([0.01, 0.01, 0.98]))
    history = [np.log(prompt.initial), np.log([0.98, 0.01, 0.01])]
    turn = turn_of(prompt, algorithm("dno-regularized", 1.0, 0.5, "II"), history)
    # Half-way between the two in logs, by hand: sqrt(0.98 * 0.01) : 0.01 : sqrt(0.98 * 0.01).
    by_hand = np.array([np.sqrt(0.0098), 0.01, np.sqrt(0.0098)])
    assert np.exp(turn.sampler) == pytest.approx(by_hand / by_hand.sum(), abs=ROUNDING)


# ---- contextual games, cycling, input -----------------------------------------------------------------------------------


def test_a_contextual_game_is_its_prompts_weighed() -> None:
    one, two = random_matrix(4, 0), random_matrix(3, 1)
    both = game_of({"prompts": [{"matrix": one.tolist(), "weight": 3}, {"matrix": two.tolist()}]}, "x")
    played = play(both, algorithm("dno", 1.0), 50)
    alone = [only(single(matrix), "dno", 50, eta=1.0) for matrix in (one, two)]
    expected = 0.75 * alone[0].exploitability_last + 0.25 * alone[1].exploitability_last
    assert played.mean("exploitability_last") == pytest.approx(expected, abs=ROUNDING)
    assert played.plays[1].last == pytest.approx(alone[1].last, abs=ROUNDING)
    assert len(builtin_game("rps", prompts=3).prompts) == 3
    assert contextual("x", both.prompts).contextual


def test_cycling_tells_turning_from_settling_spiralling_in_and_walking_off() -> None:
    t = np.linspace(0, 12 * np.pi, 400)
    away = np.array([[1.0, -1.0, 0.0], [0.5, 0.5, -1.0]]) / 5

    def path(radius: Array) -> tuple[Array, Array]:
        turn = radius[:, None] * (np.cos(t)[:, None] * away[0] + np.sin(t)[:, None] * away[1])
        return 1 / 3 + turn, radius

    assert cycling(*path(np.ones(400)))
    assert not cycling(*path(np.exp(-t / 10)))
    assert not cycling(np.full((400, 3), 1 / 3), np.zeros(400))
    straight = 1 / 3 + np.linspace(0, 1, 400)[:, None] * away[0]
    assert not cycling(straight, np.ones(400))


GOOD = [[0.5, 0.8, 0.1], [0.2, 0.5, 0.7], [0.9, 0.3, 0.5]]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([[0.5]], "at least 2 rows"),
        ("rps", "at least 2 rows"),
        ([[0.5, 1], [0.0]], "row 1 has 1 entries; accepted: 2"),
        ([[0.5, 1.2], [-0.2, 0.5]], r"entry \[0\]\[1\] is 1.2; accepted: a number from 0 to 1"),
        ([[0.5, None], [0.2, 0.5]], r"entry \[0\]\[1\] is None"),
        ([[0.5, float("nan")], [0.2, 0.5]], r"entry \[0\]\[1\] is nan"),
        ([[0.5, True], [0, 0.5]], r"entry \[0\]\[1\] is True"),
        ([[0.5, 0.9], [0.2, 0.5]], r"\[0\]\[1\] \+ \[1\]\[0\] = 0.9 \+ 0.2"),
        ([[0.5, 0.9], [0.1, 0.4]], r"entry \[1\]\[1\] is 0.4; accepted: 0.5"),
        ({"prompts": []}, "at least one prompt"),
        ({"prompts": [GOOD]}, r"prompts\[0\] is .*; accepted: an object"),
        ({"prompts": [{"matrix": GOOD, "weight": 0}]}, "weight is 0; accepted: a number above 0"),
        ({"prompts": [{"matrix": GOOD, "wieght": 1}]}, "unknown key 'wieght'; accepted: initial, matrix, weight"),
        ({"matrix": GOOD, "initial": [1, 0, 0]}, "initial is .* accepted: 3 probabilities above 0"),
        ({"initial": [0.5, 0.5]}, "matrix is missing"),
    ],
)
def test_bad_matrices_are_refused_with_the_entry_and_what_is_accepted(data: object, words: str) -> None:
    with pytest.raises(GameError, match=words) as refused:
        game_of(data, "bad.json")
    assert str(refused.value).startswith("bad.json")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--eta", "0"], "eta (dno's beta) = 0; accepted: a number above 0"),
        (["--eta=-1", "--algorithm", "inpo"], "eta = -1; accepted: a number above 0"),
        (["--set", "beta=nan"], "beta = nan; accepted: a number above 0"),
        (["--algorithm", "dno-regularized", "--tau", "-1"], "tau = -1; accepted: a number at least 0"),
        (
            ["--algorithm", "dno-regularized", "--eta", "0.1", "--tau", "0.2"],
            "tau = 0.2; accepted: at most eta, which is 0.1",
        ),
        (["--algorithm", "mnpo", "--set", "ratio=2"], "ratio"),
        (["--tau", "0.1"], "dno has no such setting; accepted: beta, alpha, offset, per_token"),
        (["--option", "II"], "accepted: I or II, with dno-regularized alone"),
        (["--algorithm", "dno-regularized", "--option", "2"], "option '2'"),
        (["--iterations", "0"], "iterations = 0; accepted: at least 1"),
        (["--algorithm", "ppo"], "algorithm 'ppo'; accepted: population, dno-prct, dno"),
        (["--algorithm", "sft", "--eta", "1"], "sft has no such setting"),
        (["--game", "chess"], "game 'chess'; accepted: rps, cyclic"),
        (["--game", "rps-4"], "4 actions; accepted: 3"),
        (["--matrix", "missing.json"], "missing.json: cannot be read"),
        (["--matrix", "m.json", "--game", "rps"], "accepted: one of the two"),
        (["--set", "beta"], "accepted: KEY=VALUE"),
        (["--set", "beta=2", "--eta", "1"], "given twice"),
        (["--samples", "1"], "samples = 1; accepted: at least 2"),
        (["--samples", "4", "--noise", "0.5"], "noise = 0.5"),
        (["--noise", "0.1"], "without --samples"),
        (["--samples", "4", "--algorithm", "population"], "accepted: an algorithm with an objective"),
        (["--plot", "x.png"], "ends in .svg or .html"),
    ],
)
def test_bad_words_on_the_command_line_are_one_clear_line(arguments: list[str], words: str) -> None:
    done = RUNNER.invoke(app, ["games", *arguments])
    assert done.exit_code == 1
    assert words in done.output
    assert "Traceback" not in done.output


def test_a_reward_model_without_finite_scores_is_refused() -> None:
    sure = np.array([[0.5, 1, 1], [0, 0.5, 0.5], [0, 0.5, 0.5]])
    with pytest.raises(GameError, match="never lose"):
        only(single(sure), "rebel", 1)


# ---- the command -------------------------------------------------------------------------------------------------------


def test_the_command_prints_one_json_object_for_a_file_of_ours(tmp_path: Path) -> None:
    file = tmp_path / "ours.json"
    file.write_text(json.dumps(GOOD))
    command = ["games", "--matrix", str(file), "--algorithm", "dno-regularized", "--eta", "2", "--tau", "0.1"]
    command += ["--option", "II", "--iterations", "300", "--json"]
    done = subprocess.run([sys.executable, "-m", "nashtune.cli", *command], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    matrix = np.array(GOOD)
    for kind in ("average", "last"):
        policy = np.array(found[f"policy_{kind}"])
        assert found[f"exploitability_{kind}"] == pytest.approx(known.exploitability(matrix, policy), abs=ROUNDING)
    assert known.exploitability(matrix, np.array(found["equilibrium"])) <= 1e-9
    # The file's margins: 0 over 1 by 0.3, 1 over 2 by 0.2, 2 over 0 by 0.4.
    assert found["equilibrium"] == pytest.approx(np.array([0.2, 0.4, 0.3]) / 0.9, abs=1e-9)
    assert found["policy_last"] == pytest.approx(found["regularized_equilibrium"], abs=found["contraction"] ** 300)
    assert found["rows"][0]["iteration"] == 0
    assert found["rows"][-1]["iteration"] == 300
    assert found["rows"][-1]["policy"] == found["policy_last"]
    assert (found["option"], found["settings"]["eta"], found["settings"]["tau"]) == ("II", 2.0, 0.1)


def test_the_command_prints_a_table_and_draws(tmp_path: Path) -> None:
    for name in ("play.svg", "play.html"):
        done = RUNNER.invoke(app, ["games", "--iterations", "200", "--plot", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
    assert "the last iterate cycles" in done.output
    assert "bound (eq. 9)" in done.output
    drawing = (tmp_path / "play.svg").read_text()
    assert drawing.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert drawing.count('class="line') == 3
    assert "<h1>dno on rps</h1>" in (tmp_path / "play.html").read_text()


def test_the_command_plays_contextual_games_by_sampling() -> None:
    command = ["games", "--game", "cyclic", "--prompts", "2", "--algorithm", "inpo", "--tau", "0.1", "--samples", "20"]
    found = json.loads(RUNNER.invoke(app, [*command, "--noise", "0.1", "--iterations", "5", "--json"]).output)
    assert [len(policy) for policy in found["policy_last"]] == [5, 5]
    assert (found["samples"], found["noise"], found["cycles"]) == (20, 0.1, None)
