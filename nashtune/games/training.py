"""Iterations that minimise the very loss that language models are trained with: over all pairs, or over sampled ones.

The policy is a softmax over n logits, the precision float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nashtune.games.algorithms import Algorithm, Sampling, Turn
from nashtune.games.matrices import Array
from nashtune.objectives import OBJECTIVES, PairTerms, Sides, preference_loss

Indices = NDArray[np.int64]
Loss = Callable[[Tensor], Tensor]
"""Logits [n] -> loss."""

NEWTON_STEPS = 60
NEWTON_TOLERANCE = 1e-9
"""Largest change of a logit (nats) in the last Newton step, after which the next would be about its square."""
LONGEST_STEP = 4.0
CURVATURE_FLOOR = 1e-10
FAR_BELOW = -1e6


@dataclass(frozen=True, slots=True)
class Pairs:
    """B pairs as actions [B], with weights that sum to 1 and the oracle's words of both answers [2, B]."""

    chosen: Indices
    rejected: Indices
    weights: Array
    rates: Array
    versus: Array


def pair_loss(how: Algorithm, turn: Turn, pairs: Pairs, population: bool) -> Loss:
    """logits [n] -> weighted mean of the objective over the pairs.

    KTO's z is the batch's plain mean of q, which in the population is E_mu q = -KL(pi_t || pi) <= 0, so z = 0: there, a
    last pair of weight 0 with a far lower q holds it at 0.
    """
    objective = OBJECTIVES[how.name]
    held = population and how.name == "kto"
    chosen, rejected = (torch.as_tensor(side) for side in (pairs.chosen, pairs.rejected))
    weights = torch.as_tensor(pairs.weights)

    def extended(values: Tensor, last: float) -> Tensor:
        return torch.cat([values, values.new_tensor([last])]) if held else values

    def fixed(values: Array) -> Sides:
        both = torch.as_tensor(values)
        return Sides(extended(both[chosen], 0.0), extended(both[rejected], 0.0))

    def words(values: Array) -> Sides:
        return Sides(*(extended(side, 0.0) for side in torch.as_tensor(values)))

    references = {name: fixed(values) for name, values in turn.references.items()}
    ones = fixed(np.ones(len(turn.matrix)))
    scores = fixed(turn.scores) if "scores" in objective.needs(how.settings) else ones
    rates, versus = words(pairs.rates), words(pairs.versus)
    weights = extended(weights, 0.0)

    def loss(logits: Tensor) -> Tensor:
        logs = logits.log_softmax(0)
        policy = Sides(extended(logs[chosen], FAR_BELOW), extended(logs[rejected], FAR_BELOW))
        lengths = Sides(torch.ones_like(weights), torch.ones_like(weights))
        terms = PairTerms(policy, references, rates, scores, versus, lengths)
        return (weights * preference_loss(objective, terms, how.settings).losses).sum()

    return loss


# ---- all pairs ---------------------------------------------------------------------------------------------------------


def all_pairs(how: Algorithm, turn: Turn) -> Pairs:
    """The n^2 ordered pairs with their probabilities: 2 mu(w) mu(l) P(w beats l), or for SPIN, whose chosen answer is the
    teacher's and nobody judges, teacher(w) mu(l)."""
    n, mu = len(turn.matrix), np.exp(turn.sampler)
    chosen, rejected = (side.ravel() for side in np.indices((n, n)))
    weights = np.outer(turn.teacher, mu) if how.name == "spin" else 2 * np.outer(mu, mu) * turn.matrix
    words = np.stack([turn.rates[chosen], turn.rates[rejected]])
    return Pairs(chosen, rejected, weights.ravel(), words, words)


def population_step(how: Algorithm, turn: Turn) -> tuple[Array, bool]:
    """(log pi_{t+1} [n], whether it is a minimiser to NEWTON_TOLERANCE), from pi_t by Newton's method.

    Directions of negative curvature are turned around, and steps are at most LONGEST_STEP nats. False where 60 steps did
    not get there: mostly because the loss falls for ever (a verdict that is certain, KTO), so that the policy is the one
    that 60 steps reach.
    """
    loss = pair_loss(how, turn, all_pairs(how, turn), population=True)
    logits = torch.tensor(turn.policy)
    for _ in range(NEWTON_STEPS):
        step = _newton_direction(loss, logits)
        size = float(step.abs().max())
        value, scale = float(loss(logits)), 1.0
        while size > 1e-6 and float(loss(logits + scale * step)) > value + 1e-14 * abs(value) and scale > 1e-4:
            scale /= 2
        logits = (logits + scale * step).log_softmax(0)
        if size < NEWTON_TOLERANCE:
            return logits.numpy(), True
    return logits.numpy(), False


def _newton_direction(loss: Loss, logits: Tensor) -> Tensor:
    """-|H|^-1 g [n] without its mean (all logits moved alike change nothing), at most LONGEST_STEP.

    Scaled by the diagonal first, as rare actions have tiny curvature; where there is next to none, by the gradient.
    """
    point = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(point), point)
    hessian = torch.autograd.functional.hessian(loss, logits, vectorize=True)
    size = torch.maximum(hessian.diagonal().abs(), 1e-3 * gradient.abs())  # type: ignore[arg-type]
    seen = size > 1e-250
    scale = torch.where(seen, size.clamp(min=1e-250).rsqrt(), 0.0)
    values, vectors = torch.linalg.eigh(scale[:, None] * hessian * scale)
    alike = torch.where(seen, size.clamp(min=1e-250).sqrt(), 0.0)
    slope = scale * gradient
    slope = slope - alike * (alike @ slope) / (alike @ alike)
    step = -scale * (vectors @ ((vectors.T @ slope) / values.abs().clamp(min=CURVATURE_FLOOR)))
    step = torch.where(seen, step - step[seen].mean(), 0.0)
    return step * min(1.0, LONGEST_STEP / max(float(step.abs().max()), 1e-300))


# ---- sampled pairs -----------------------------------------------------------------------------------------------------


def sampled_pairs(how: Algorithm, turn: Turn, sampling: Sampling, rng: np.random.Generator) -> Pairs:
    """All pairs of K draws from the sampler, each judged once by a noisy oracle; a draw's r is its mean verdict against
    the other K - 1, as in Algorithm 2, line 5. SPIN pairs K draws of the teacher with K of pi_t, unjudged."""
    n, k = len(turn.matrix), sampling.candidates
    draws = rng.choice(n, size=k, p=_probabilities(np.exp(turn.sampler)))
    if how.name == "spin":
        teacher = rng.choice(n, size=k, p=_probabilities(turn.teacher))
        nothing = np.full((2, k), np.nan)
        return Pairs(teacher, draws, np.full(k, 1 / k), nothing, nothing)
    one, other = np.triu_indices(k, 1)
    wins = turn.matrix[draws[one], draws[other]]
    wins = wins * (1 - sampling.noise) + (1 - wins) * sampling.noise
    first = rng.uniform(size=len(one)) < wins
    verdicts = np.zeros((k, k))
    verdicts[one, other], verdicts[other, one] = first, ~first
    rates = verdicts.sum(axis=1) / (k - 1)
    chosen, rejected = np.where(first, one, other), np.where(first, other, one)
    words = np.stack([rates[chosen], rates[rejected]])
    return Pairs(draws[chosen], draws[rejected], np.full(len(one), 1 / len(one)), words, words)


def _probabilities(policy: Array) -> Array:
    return policy / policy.sum()


def sampled_step(how: Algorithm, turn: Turn, sampling: Sampling, rng: np.random.Generator) -> Array:
    """log pi_{t+1} [n], trained from pi_t on sampled pairs by L-BFGS with a strong Wolfe line search."""
    loss = pair_loss(how, turn, sampled_pairs(how, turn, sampling, rng), population=False)
    logits = torch.tensor(turn.policy, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits],
        max_iter=sampling.steps,
        tolerance_grad=1e-10,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(logits)
        value.backward()
        return value

    optimizer.step(closure)  # type: ignore[arg-type]
    return logits.detach().log_softmax(0).numpy()
