"""What a game's answers are checked against: equilibria, exploitability, Bradley-Terry scores, step-size conditions.

Policies are probabilities over n actions; P is a preference matrix [n, n] of matrices.py.
"""

from __future__ import annotations

import numpy as np

from nashtune.errors import GameError
from nashtune.games.matrices import Array


def exploitability(matrix: Array, policy: Array) -> float:
    """max over actions y of P(y beats policy) - 1/2: 0 exactly for equilibria (von Neumann winners), at most 1/2."""
    return float(((matrix - 0.5) @ policy).max())  # centred first: the policy's sum is 1 only up to rounding


def equilibrium(matrix: Array) -> Array:
    """A symmetric equilibrium [n] by linear programming: max v such that sum_i p_i P(i beats j) >= v for every j. By
    symmetry v = 1/2. Where there are several it is one of them (a vertex). Raises GameError if the solver fails."""
    n = len(matrix)
    return _solve(
        np.append(np.zeros(n), -1.0),
        upper=(np.column_stack([-matrix.T, np.ones(n)]), np.zeros(n)),
        equal=(np.append(np.ones(n), 0.0)[None], np.ones(1)),
    )[:n]


def distance_to_equilibria(matrix: Array, policy: Array) -> float:
    """Total variation from the nearest equilibrium, which need not be unique: by linear programming, minimise
    sum(d) / 2 with d >= |p - policy| over the equilibria p (those with P p <= 1/2)."""
    n = len(matrix)
    eye, zero = np.eye(n), np.zeros((n, n))
    rows = np.block([[matrix, zero], [eye, -eye], [-eye, -eye]])
    bounds = np.concatenate([np.full(n, 0.5), policy, -policy])
    found = _solve(
        np.concatenate([np.zeros(n), np.full(n, 0.5)]),
        upper=(rows, bounds),
        equal=(np.concatenate([np.ones(n), np.zeros(n)])[None], np.ones(1)),
    )
    return float(np.abs(found[:n] - policy).sum() / 2)


def _solve(cost: Array, *, upper: tuple[Array, Array], equal: tuple[Array, Array]) -> Array:
    """The minimiser of cost @ x with x >= 0, upper rows @ x <= bounds, equal rows @ x = bounds; all to 1e-10. The last
    variable of ``equilibrium``, a win rate, is not negative either."""
    from scipy.optimize import linprog

    exact = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    found = linprog(cost, A_ub=upper[0], b_ub=upper[1], A_eq=equal[0], b_eq=equal[1], method="highs", options=exact)
    if found.x is None:
        raise GameError(f"the linear program of the equilibrium was not solved: {found.message}")
    solution = np.clip(found.x, 0.0, None)
    head = equal[0][0] > 0
    solution[head] /= solution[head].sum()
    return solution


def log_normalised(logits: Array) -> Array:
    """logits [..., n] minus their log-sum-exp."""
    top = logits.max(axis=-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))


def regularized_equilibrium(matrix: Array, tau: float, initial: Array) -> Array:
    """The fixed point [n] of pi ~ initial * exp(P pi / tau), the equilibrium of preferences regularised by tau (in win
    rate per nat); it is unique. Newton's method on log pi follows it along its tangent from 1/tau = 0, where it is
    ``initial``. Raises GameError where that stops short of this tau (rounding, at a tau far below 1e-3)."""
    start = np.log(initial)
    logs, strength, step = start, 0.0, 1.0
    while strength < 1 / tau:
        rates, following = matrix @ np.exp(logs), min(strength + step, 1 / tau)
        tangent = np.linalg.solve(_slope(matrix, strength, logs, np.exp(logs)), rates - np.exp(logs) @ rates)
        guess = log_normalised(np.asarray(logs + (following - strength) * tangent, dtype=np.float64))
        tried = _newton_fixed_point(matrix, following, start, guess)
        if tried is not None:
            logs, strength, step = tried, following, 2 * step
        elif (step := step / 4) < 1e-9 * max(strength, 1e-9):
            reached = 1 / max(strength, 1e-9)
            raise GameError(f"tau = {tau:g}: the regularised equilibrium is found down to tau = {reached:.2g} only")
    return np.exp(logs)


def _slope(matrix: Array, strength: float, logs: Array, image: Array) -> Array:
    """d (u - log-normalised(log pi_0 + strength P exp(u))) / du [n, n] at u = ``logs``; ``image`` is exp of what is taken
    away: d log-normalised(x) = (I - 1 image^T) dx."""
    return np.eye(len(matrix)) - strength * (matrix - image @ matrix) * np.exp(logs)


def _newton_fixed_point(matrix: Array, strength: float, start: Array, logs: Array) -> Array | None:
    """log pi one step after a residual of at most 1e-9 nats (or what rounding leaves of log probabilities of that size), so
    with about its square; None where that is not reached."""
    for _ in range(12):
        gap = logs - log_normalised(start + strength * (matrix @ np.exp(logs)))
        step = np.linalg.solve(_slope(matrix, strength, logs, np.exp(logs - gap)), gap)
        if not np.abs(step[np.exp(logs) > 1e-12]).max(initial=0.0) < 8:
            return None
        logs = log_normalised(logs - step)
        if np.abs(gap).max() <= 1e-9 + 1e-14 * strength:
            return logs
    return None


def rotation(matrix: Array, policy: Array) -> float:
    """omega: the largest modulus among the (purely imaginary) eigenvalues of P (diag(pi) - pi pi^T). Near ``policy``,
    win rates turn around it with this angular speed per nat."""
    spread = np.diag(policy) - np.outer(policy, policy)
    return float(np.abs(np.linalg.eigvals((matrix - 0.5) @ spread)).max())


def contraction(matrix: Array, tau: float, eta: float, initial: Array, option: str) -> float:
    """The factor by which regularised DNO's error shrinks (below 1) or grows per iteration near its fixed point.

    Linearising log pi_{t+1} = (1 - tau/eta) log pi_t + (tau/eta) log pi_0 + P pi / eta. Option I: |1 - tau/eta +
    i omega/eta|, so it converges where eta > (tau^2 + omega^2) / (2 tau). Option II, whose P pi is that of the mixture:
    (1 - tau/eta) |1 + i omega/eta|, omega at the mixture.
    """
    share = tau / eta
    if option == "I":
        omega = rotation(matrix, regularized_equilibrium(matrix, tau, initial))
        return float(np.hypot(1 - share, omega / eta))
    omega = rotation(matrix, option_two_limit(matrix, tau, eta, initial)[1]) if share < 1 else 0.0
    return float((1 - share) * np.hypot(1, omega / eta))


def option_two_limit(matrix: Array, tau: float, eta: float, initial: Array) -> tuple[Array, Array]:
    """(fixed point, its mixture with the initial policy) of option II, each [n].

    log pi = log m + P m / eta and log m = (1 - tau/eta) log pi + (tau/eta) log pi_0, up to constants, give
    log m = log pi_0 + P m (1 - tau/eta) / tau: m is the regularised equilibrium for tau / (1 - tau/eta).
    """
    if tau >= eta:
        mixture = initial
    else:
        mixture = regularized_equilibrium(matrix, tau / (1 - tau / eta), initial)
    return np.exp(log_normalised(np.log(mixture) + matrix @ mixture / eta)), mixture


def bradley_terry_scores(matrix: Array, initial: Array) -> Array:
    """Scores R [n], of mean 0 under ``initial``, that a reward model fitted to endless verdicts gives: the maximum
    likelihood of P(i beats j) = s(R_i - R_j) over pairs of independent draws from ``initial``, sum_j initial_j
    (s(R_i - R_j) - P_ij) = 0, by Newton's method to 1e-12. Raises GameError where there is none: an action (or a group)
    that always beats the rest has no finite score, and 25 nats from best to worst count as none."""
    scores = np.zeros(len(matrix))
    for _ in range(200):
        fitted = 1 / (1 + np.exp(-np.clip(scores[:, None] - scores, -700, 700)))
        gap = (fitted - matrix) @ initial
        if np.ptp(scores) > 25:
            break
        if np.abs(gap).max() < 1e-12:
            return scores - initial @ scores
        slope = fitted * (1 - fitted) * initial
        laplacian = np.diag(slope.sum(axis=1)) - slope
        step = np.linalg.lstsq(laplacian + np.outer(np.ones(len(matrix)), initial), gap, rcond=None)[0]
        scores = scores - step * min(1.0, 2.0 / np.abs(step).max())
    raise GameError(
        "Bradley-Terry scores are not finite: some actions never lose to the others; accepted: other matrices"
    )
