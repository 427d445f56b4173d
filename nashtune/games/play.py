"""Playing a game: T iterations of an algorithm on every prompt, and what came of them.

The policy is a table, so prompts share nothing: each is played for itself, and figures are means by prompt weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nashtune.errors import GameError
from nashtune.games import equilibrium
from nashtune.games.algorithms import POPULATION, Algorithm, Sampling, bounded_below, closed_step, turn_of
from nashtune.games.matrices import Array, Game, PromptGame
from nashtune.seeds import seed_for

CYCLING_TRAVEL = 0.1
"""Total variation that the policy must travel in the last half of the iterations to count as moving at all."""
CYCLING_FALL = 0.9


@dataclass(frozen=True, slots=True)
class Play:
    """One prompt's play. ``policies`` holds pi_1 ... pi_{T+1} [T+1, n]; arrays [T+1] belong to them, arrays [T] to the
    steps from pi_t to pi_{t+1}."""

    prompt: PromptGame
    equilibrium: Array
    policies: Array
    exploitability_average: Array
    """[T+1]: after t iterations, of the mean of the t policies improved on, pi_1 ... pi_t; of pi_1 where t = 0."""
    exploitability_last: Array
    """[T+1]: of pi_t."""
    kl: Array
    """[T]: KL(pi_{t+1} || pi_t), nats."""
    win_rate: Array
    """[T]: P(pi_{t+1} > pi_t)."""
    unattained: int
    """Iterations whose loss has no minimiser that was reached (population_step)."""
    cycles: bool

    @property
    def average(self) -> Array:
        """The uniform mixture of pi_1 ... pi_T, which Algorithm 1 returns [n]."""
        return self.policies[:-1].mean(axis=0)

    @property
    def last(self) -> Array:
        """pi_{T+1} [n]."""
        return self.policies[-1]


@dataclass(frozen=True, slots=True)
class Played:
    """A whole game, prompt by prompt, in the game's order."""

    game: Game
    algorithm: Algorithm
    iterations: int
    sampling: Sampling | None
    plays: tuple[Play, ...]

    def mean(self, name: str) -> Array:
        """The weighted mean over prompts of an array of Play."""
        return np.sum([p.prompt.weight * getattr(p, name) for p in self.plays], axis=0)

    @property
    def bound(self) -> Array | None:
        """[T]: 1/2 + eta KL(pi_{t+1} || pi_t), eq. (9)'s least win rate; None for algorithms that do not promise it."""
        if self.sampling is not None or not bounded_below(self.algorithm):
            return None
        eta = self.algorithm.settings["eta" if self.algorithm.name == POPULATION else "beta"]
        return 0.5 + eta * self.mean("kl")

    @property
    def cycles(self) -> bool | None:
        """Whether any prompt's last iterate cycles; None in sampled play, where noise alone makes a policy travel."""
        return None if self.sampling else any(p.cycles for p in self.plays)


def play(game: Game, how: Algorithm, iterations: int, sampling: Sampling | None = None, seed: int = 0) -> Played:
    """T = ``iterations`` of the algorithm, exactly (population) or, with ``sampling``, on sampled verdicts.

    Raises GameError for iterations below 1, too few candidates or a noise outside [0, 1/2), and where the
    algorithm has no word for the game (Bradley-Terry scores that are not finite).
    """
    if iterations < 1:
        raise GameError(f"iterations = {iterations}; accepted: at least 1")
    if sampling is not None:
        if how.name == POPULATION:
            raise GameError(f"samples with {POPULATION}; accepted: an algorithm with an objective, as dno")
        if sampling.candidates < 2:
            raise GameError(
                f"samples = {sampling.candidates}; accepted: at least 2 (a draw is judged against the others)"
            )
        if not 0 <= sampling.noise < 0.5:
            raise GameError(f"noise = {sampling.noise:g}; accepted: at least 0 and below 0.5")
        if sampling.steps < 1:
            raise GameError(f"steps = {sampling.steps}; accepted: at least 1")
    plays = [
        _play(prompt, how, iterations, sampling, seed_for("play", seed, x)) for x, prompt in enumerate(game.prompts)
    ]
    return Played(game, how, iterations, sampling, tuple(plays))


def _play(prompt: PromptGame, how: Algorithm, iterations: int, sampling: Sampling | None, seed: int) -> Play:
    history, turn, unattained = [np.log(prompt.initial)], None, 0
    rng = np.random.default_rng(seed)
    for _ in range(iterations):
        turn = turn_of(prompt, how, history, turn)
        if sampling is not None:
            from nashtune.games.training import sampled_step

            history.append(sampled_step(how, turn, sampling, rng))
        elif how.closed:
            history.append(closed_step(how, turn))
        else:
            from nashtune.games.training import population_step

            logs, attained = population_step(how, turn)
            history.append(logs)
            unattained += not attained
    return measured(prompt, np.array(history), unattained)


def measured(prompt: PromptGame, logs: Array, unattained: int = 0) -> Play:
    """The figures of a play from its log policies [T+1, n]."""
    policies = np.exp(logs)
    rates = policies @ prompt.matrix.T  # [T+1, n]: P(y beats pi_t)
    sums = np.cumsum(policies[:-1], axis=0) / np.arange(1, len(policies))[:, None]
    means = np.concatenate([policies[:1], sums])
    average, last = ((each @ (prompt.matrix - 0.5).T).max(axis=1) for each in (means, policies))
    kl = (policies[1:] * (logs[1:] - logs[:-1])).sum(axis=1)
    win_rate = (policies[1:] * rates[:-1]).sum(axis=1)
    found = equilibrium.equilibrium(prompt.matrix)
    return Play(prompt, found, policies, average, last, kl, win_rate, unattained, cycling(policies, last))


def cycling(policies: Array, exploitabilities: Sequence[float] | Array) -> bool:
    """Whether the last iterate goes on turning: in the last half of the iterations, policies [T+1, n] travel (total
    variation, step by step) at least CYCLING_TRAVEL and at least twice as far as from the half's start to its end, while
    the mean exploitability of its second half is at least CYCLING_FALL of its first half's. A policy that settles does
    not travel; one that spirals in grows less exploitable; one that walks off does not come back. Runs too short to turn
    once cannot tell."""
    half, scores = policies[len(policies) // 2 :], np.asarray(exploitabilities)[len(policies) // 2 :]
    if len(half) < 4:
        return False
    travelled = np.abs(np.diff(half, axis=0)).sum() / 2
    net = np.abs(half[-1] - half[0]).sum() / 2
    middle = len(scores) // 2
    stays = scores[middle:].mean() >= CYCLING_FALL * scores[:middle].mean()
    return bool(travelled >= CYCLING_TRAVEL and travelled >= 2 * net and stays)
