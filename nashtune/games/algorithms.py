"""One iteration of every algorithm in a game, exactly: closed forms where the population's minimiser has one.

Everywhere: answers y1, y2 of a pair are independent draws from the sampler mu (equal ones too, a tie), and the verdict is
drawn by P, so that a pair (w, l) has probability 2 mu(w) mu(l) P(w beats l). mu is pi_t; option II of the regularised
algorithm has the mixture pi_t^(1 - tau/eta) pi_0^(tau/eta), normalised. r(y) = P(y beats mu). All policies are kept as log
probabilities, which may be very low. An answer is one token, so per-token variants change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from nashtune.errors import GameError
from nashtune.games import equilibrium
from nashtune.games.matrices import Array, PromptGame
from nashtune.objectives import OBJECTIVES, reference_iteration

POPULATION = "population"
"""Eq. (9) of arXiv 2404.03715 as it stands, without an objective."""
NAMES = (POPULATION, *OBJECTIVES)
STEP = 1.0
TAU = 0.05
OWN_ALPHA = {"cpo", "orpo"}
"""Methods that are their likelihood term as much as their contrast; elsewhere alpha is 0 in games unless set."""


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A row of OBJECTIVES (or POPULATION) with every setting of it. ``option`` is I or II for dno-regularized."""

    name: str
    settings: Mapping[str, float]
    option: str = "I"

    @property
    def limit_temperature(self) -> float | None:
        """tau of the regularised equilibrium that is the closed form's only fixed point; None where it is another's."""
        s = self.settings
        if not self.closed:
            return None
        if self.name == "dno-regularized":
            return s["tau"] if self.option == "I" and s["tau"] else None
        if self.name == "mnpo":
            return s["ratio"] * s["eta"] or None
        return s["tau"] or None if self.name in ("ipo", "inpo") else None

    @property
    def closed(self) -> bool:
        """Whether ``closed_step`` is the minimiser under these settings."""
        s = self.settings
        if s.get("alpha") or s.get("offset"):
            return self.name == "sft"
        if self.name == "dno-regularized":
            return bool(s["soft"])
        return self.name in CLOSED


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an iteration is sampled: K ``candidates`` drawn per prompt, each verdict of the oracle turned with probability
    ``noise``, ``steps`` optimiser steps."""

    candidates: int
    noise: float = 0.0
    steps: int = 50


def scale_of(name: str) -> str:
    """The setting that --eta sets: eta where the formula has one, else tau (ipo) or beta, which is eta in eq. (8)."""
    if name == POPULATION:
        return "eta"
    return next((key for key in ("eta", "tau", "beta") if key in OBJECTIVES[name].settings), "")


def algorithm(
    name: str,
    eta: float | None = None,
    tau: float | None = None,
    option: str | None = None,
    changes: Mapping[str, float] | None = None,
) -> Algorithm:
    """An algorithm with settings from the command line.

    What is not given has the objective's default, but for: eta (``scale_of``) 1, tau 0.05, alpha 0 except for cpo and
    orpo, and the soft target for dno-regularized. Raises GameError naming the setting and what is accepted.
    """
    if name not in NAMES:
        raise GameError(f"algorithm {name!r}; accepted: {', '.join(NAMES)}")
    row = OBJECTIVES.get(name)
    settings: dict[str, float] = {"eta": STEP} if row is None else dict(row.defaults())
    scale = scale_of(name)
    own = {"tau": TAU, "soft": True, scale: STEP} | ({} if name in OWN_ALPHA else {"alpha": 0.0})
    settings |= {key: value for key, value in own.items() if key in settings}
    given = dict(changes or {})
    for flag, key, value in (("eta", scale, eta), ("tau", "tau", tau)):
        if value is None:
            continue
        if key not in settings:
            raise GameError(f"{flag} = {value:g}: {name} has no such setting; accepted: {_accepted(settings)}")
        if key in given and given[key] != value:
            raise GameError(f"{name}'s {key} is given twice, as {given[key]:g} and {value:g}; accepted: one value")
        given[key] = value
    for key, value in given.items():
        _check(
            name, key, value, settings, label=f"eta ({name}'s {key})" if eta == value and key == scale != "eta" else key
        )
    settings |= given
    if settings.get("tau", 0.0) > settings.get("eta", np.inf):
        raise GameError(f"tau = {settings['tau']:g}; accepted: at most eta, which is {settings['eta']:g}")
    if row is not None and (wrong := row.problem(settings)):
        raise GameError(f"{name}: {wrong}")
    if option is not None and (name != "dno-regularized" or option not in ("I", "II")):
        raise GameError(f"option {option!r} with {name}; accepted: I or II, with dno-regularized alone")
    return Algorithm(name, settings, option or "I")


def _accepted(settings: Mapping[str, float]) -> str:
    return ", ".join(settings) or "none"


def _check(name: str, key: str, value: float, settings: Mapping[str, float], label: str) -> None:
    if key not in settings:
        raise GameError(f"{key} = {value}: {name} has no such setting; accepted: {_accepted(settings)}")
    setting = OBJECTIVES[name].settings[key] if name != POPULATION else None
    above, least, most = (setting.above, setting.least, setting.most) if setting else (0.0, None, None)
    low = (above is None or value > above) and (least is None or value >= least)
    if not np.isfinite(value) or not low or (isinstance(most, (int, float)) and value > most):
        bound = f"above {above:g}" if above is not None else f"at least {least:g}" if least is not None else "finite"
        bound += f" and at most {most:g}" if isinstance(most, (int, float)) else ""
        raise GameError(f"{label} = {value:g}; accepted: a number {bound}")


# ---- one iteration -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """What iteration t = 1, 2, ... knows: log probabilities [n] of the policy pi_t, the sampler and the references."""

    matrix: Array
    policy: Array
    sampler: Array
    references: Mapping[str, Array]
    initial: Array = field(repr=False)

    @cached_property
    def rates(self) -> Array:
        """r(y) = P(y beats the sampler) [n]."""
        return self.matrix @ np.exp(self.sampler)

    @cached_property
    def scores(self) -> Array:
        """A reward model's: Bradley-Terry scores fitted once to verdicts on the initial policy's pairs [n]."""
        return equilibrium.bradley_terry_scores(self.matrix, np.exp(self.initial))

    @cached_property
    def teacher(self) -> Array:
        """SPIN's teacher plays the equilibrium of the linear program [n]."""
        return equilibrium.equilibrium(self.matrix)

    def mixed(self, weights: Mapping[str, float]) -> Array:
        """sum_j c_j log pi_j over the references [n]."""
        return sum((c * self.references[name] for name, c in weights.items() if c), np.zeros(len(self.matrix)))


def turn_of(prompt: PromptGame, how: Algorithm, history: Sequence[Array], earlier: Turn | None = None) -> Turn:
    """The turn after ``history`` (log probabilities of pi_1 ... pi_t). What never changes is kept from an ``earlier``."""
    names = OBJECTIVES[how.name].references(how.settings) if how.name != POPULATION else {"t": 1.0}
    references = {name: history[reference_iteration(name, len(history))] for name in names}
    turn = Turn(prompt.matrix, history[-1], history[-1], references, history[0])
    if how.name == "dno-regularized" and how.option == "II":
        turn = Turn(prompt.matrix, history[-1], equilibrium.log_normalised(turn.mixed(names)), references, history[0])
    for kept in ("scores", "teacher"):
        if earlier is not None and kept in earlier.__dict__:
            turn.__dict__[kept] = earlier.__dict__[kept]
    return turn


_Step = Callable[[Mapping[str, float], Turn], Array]


def closed_step(how: Algorithm, turn: Turn) -> Array:
    """log pi_{t+1} [n], the minimiser of the algorithm's population loss (``how.closed``)."""
    return equilibrium.log_normalised(CLOSED[how.name](how.settings, turn))


def _proportional(name: str, divisor: str) -> _Step:
    """pi ~ prod_j pi_j^c_j exp(r / settings[divisor]).

    dno: eq. (8)'s target s(r_w - r_l) is met exactly for every pair by D = (r_w - r_l) / eta, eq. (9). ipo, inpo, comal,
    mnpo: with c = 1 / (2 eta), E[(D - c)^2] over verdicts is E[(q(y1) - q(y2) - c (2 P(y1 beats y2) - 1))^2] plus a
    constant; its gradient in q(y) is 0 where q(y) - E q = 2 c (P(y beats mu) - 1/2), so q = r / eta plus a constant.
    """
    return lambda s, turn: turn.mixed(OBJECTIVES[name].references(s)) + turn.rates / s[divisor]


def _rebel(s: Mapping[str, float], turn: Turn) -> Array:
    """D = eta (R_w - R_l) exactly."""
    return turn.references["t"] + s["eta"] * turn.scores


def _sft(_: Mapping[str, float], turn: Turn) -> Array:
    """Maximum likelihood of the chosen answers, whose distribution is 2 mu(y) P(y beats mu): replicator dynamics."""
    return turn.sampler + np.log(2 * turn.rates)


def _sppo(s: Mapping[str, float], turn: Turn) -> Array:
    """min E_mu (q - a)^2, a = eta (r - 1/2), where pi_t exp(q) sums to 1. Its Lagrange condition q + k exp(q) = a has the
    solution q = a - W(k e^a), W Lambert's function, with one k >= 0 for which it sums to 1: E exp(a) >= 1 by Jensen's
    inequality, so k = 0 gives at least 1, and the sum falls in k. (The paper drops the normalisation: k = 0, rescaled.)
    """
    from scipy.optimize import brentq
    from scipy.special import wrightomega

    a = s["eta"] * (turn.rates - 0.5)

    def ratio(log_k: float) -> Array:
        return a - wrightomega(a + log_k)

    def excess(log_k: float) -> float:
        total = turn.sampler + ratio(log_k)
        return float(total.max() + np.log(np.exp(total - total.max()).sum()))

    low, high = -60.0 - float(np.abs(a).max()), 60.0 + float(np.abs(a).max())
    if excess(low) <= 0:  # r is 1/2 for all that mu plays
        return turn.sampler + a
    return turn.sampler + ratio(float(brentq(excess, low, high, xtol=1e-14)))  # type: ignore[arg-type]


CLOSED: dict[str, _Step] = {
    POPULATION: lambda s, turn: turn.policy + turn.rates / s["eta"],
    "dno": _proportional("dno", "beta"),
    "dno-regularized": _proportional("dno-regularized", "eta"),
    "ipo": _proportional("ipo", "tau"),
    "inpo": _proportional("inpo", "eta"),
    "comal": _proportional("comal", "eta"),
    "mnpo": _proportional("mnpo", "eta"),
    "rebel": _rebel,
    "sft": _sft,
    "sppo": _sppo,
}


def bounded_below(how: Algorithm) -> bool:
    """Whether eq. (9)'s improvement bound, P(pi_{t+1} > pi_t) >= 1/2 + eta KL(pi_{t+1} || pi_t), is promised."""
    return how.name == POPULATION or (how.name == "dno" and how.closed)
