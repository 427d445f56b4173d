"""Drawing tokens: temperature, top-k and exact top-p (nucleus) without sorting the vocabulary, from stateless streams.

Shapes: N rows (one per sequence), V tokens in the vocabulary.
"""

from __future__ import annotations

from itertools import count
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nashtune.sampling.engine import SamplingParams

BLOCK = 128  # tokens summed together in the first level of the inverse CDF
UNIFORM_BITS = 52  # one less than a double's mantissa, so that u * total < total even after rounding


class Draw(NamedTuple):
    """``tokens`` [N]; ``logprobs`` [N], their log p under the raw logits (nats), not finite where those are not."""

    tokens: Tensor
    logprobs: Tensor


class TokenSampler:
    """Draws tokens for a batch of rows. Keeps two [N, V] work areas: fresh ones cost a CPU more than the arithmetic."""

    def __init__(self, params: SamplingParams):
        self.params = params
        self._areas: tuple[Tensor, Tensor] | None = None

    def draw(self, logits: Tensor, seeds: Tensor, steps: Tensor) -> Draw:
        """One token per row of ``logits`` [N, V], decided by the row's logits, seed [N] and step [N] alone.

        The distribution is that of temperature, then top-k, then top-p, as transformers orders them; of tokens tied at
        a border all are kept. Temperature 0 takes the most probable token.
        """
        params = self.params
        scores, weights = self._work_areas(logits)
        scores.copy_(logits)
        torch.softmax(scores, -1, out=weights)
        log_mass = scores.amax(-1) - weights.amax(-1).log()  # log sum exp of the row, as p(best) = exp(best) / sum exp
        if params.temperature == 0:
            tokens = scores.argmax(-1)
        else:
            if params.top_k and params.top_k < scores.shape[-1]:
                border = scores.topk(params.top_k, -1).values[:, -1:]
                scores.masked_fill_(scores < border, float("-inf"))
            if params.top_k or params.temperature != 1:
                torch.softmax(scores.mul_(1 / params.temperature), -1, out=weights)
            tokens = nucleus(weights, seeds, steps, params.top_p)
        return Draw(tokens, logits.gather(-1, tokens[:, None])[:, 0].float() - log_mass)

    def _work_areas(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        rows = logits.shape[0]
        if self._areas is None or self._areas[0].shape[0] < rows:
            fresh = torch.empty_like(logits, dtype=torch.float32)
            self._areas = fresh, torch.empty_like(fresh)
        return self._areas[0][:rows], self._areas[1][:rows]


def nucleus(weights: Tensor, seeds: Tensor, steps: Tensor, top_p: float) -> Tensor:
    """Draw from each row of ``weights`` [N, V] (non-negative, any scale) cut to its nucleus -> tokens [N].

    A token belongs to the nucleus when the mass of strictly more probable tokens is below ``top_p``. A draw from the
    whole row that belongs is a draw from the nucleus; one that does not shows that its equals and all below them are
    outside too, so the next try draws among the tokens above it.
    """
    tokens = inverse_cdf(weights, uniform(seeds, steps, 0))
    if top_p >= 1:
        return tokens
    total, drawn = weights.sum(-1), weights.gather(-1, tokens[:, None])[:, 0]
    border = top_p * total
    rows = (total - drawn >= border).nonzero()[:, 0]  # no more mass than this lies above a token: settles most rows
    weights, drawn = weights[rows], drawn[rows]
    for attempt in count(1):
        weights.mul_(weights > drawn[:, None])
        above = weights.sum(-1)
        outside = ((above >= border[rows]) & (above > 0)).nonzero()[:, 0]
        if not len(outside):
            break
        rows, weights = rows[outside], weights[outside]
        tokens[rows] = again = inverse_cdf(weights, uniform(seeds[rows], steps[rows], attempt))
        drawn = weights.gather(-1, again[:, None])[:, 0]
    return tokens


def inverse_cdf(weights: Tensor, u: Tensor) -> Tensor:
    """The token of each row of ``weights`` [N, V] at the fraction ``u`` [N], in [0, 1), of the row's mass -> [N].

    Two levels (blocks, then tokens in the block) with cumulative sums in double precision; never a token of weight 0.
    """
    short = -weights.shape[-1] % BLOCK
    blocks = (F.pad(weights, (0, short)) if short else weights).unflatten(-1, (-1, BLOCK))
    mass = blocks.sum(-1).double()
    cumulative = mass.cumsum(-1)
    target = u[:, None] * cumulative[:, -1:]
    block = torch.searchsorted(cumulative, target, right=True).clamp_(max=mass.shape[-1] - 1)
    inside = blocks[torch.arange(len(u), device=u.device), block[:, 0]].double().cumsum(-1)
    # What is left of the target in its block goes as a fraction below 1: the block's mass, summed in float32, and the
    # last of `inside` differ by rounding.
    block_mass = mass.gather(-1, block)
    left = target - (cumulative.gather(-1, block) - block_mass)
    fraction = (left / block_mass).clamp_(0, 1 - 2.0**-UNIFORM_BITS)
    token = torch.searchsorted(inside, fraction * inside[:, -1:], right=True).clamp_(max=BLOCK - 1)
    return (block * BLOCK + token).clamp_(max=weights.shape[-1] - 1)[:, 0]


def uniform(seeds: Tensor, steps: Tensor, attempt: int) -> Tensor:
    """The number in [0, 1) of each stream (its seed [N]) at its step [N] and this attempt: a hash, so without state."""
    stream = _scramble(seeds + (steps + 1) * _signed(0x9E3779B97F4A7C15))
    bits = _scramble(stream + _signed((attempt + 1) * 0xD1B54A32D192ED03 % (1 << 64)))
    return _shift_right(bits, 64 - UNIFORM_BITS).double() * 2.0**-UNIFORM_BITS


def _scramble(bits: Tensor) -> Tensor:
    """The output function of SplitMix64 (Steele, Lea and Flood, 2014) on int64, whose products wrap."""
    bits = (bits ^ _shift_right(bits, 30)) * _signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ _shift_right(bits, 27)) * _signed(0x94D049BB133111EB)
    return bits ^ _shift_right(bits, 31)


def _shift_right(bits: Tensor, by: int) -> Tensor:
    """Logical shift: int64's own keeps the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
