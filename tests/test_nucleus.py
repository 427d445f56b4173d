"""Token sampling: exact distributions, log-probabilities and stateless random streams."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nashtune.sampling.engine import SamplingParams
from nashtune.sampling.nucleus import BLOCK, TokenSampler, inverse_cdf, nucleus, uniform

DRAWS = 200_000


def streams(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1 << 62, (n,), generator=generator), torch.arange(n) % 7


def sorted_reference(logits: Tensor, params: SamplingParams) -> Tensor:
    """The distribution by the textbook route: sort, cut, renormalise (no ties in these logits)."""
    order = (logits.double() / params.temperature).argsort(descending=True)
    p = (logits.double() / params.temperature)[order].softmax(-1)
    if params.top_k:
        p = p * (torch.arange(len(p)) < params.top_k)
        p = p / p.sum()
    p = p * (p.cumsum(-1) - p < params.top_p)
    return torch.zeros_like(p).scatter(0, order, p / p.sum())


@pytest.mark.parametrize("vocabulary", [50, 2 * BLOCK + 3])
@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"),
    [(1.0, 1.0, 0), (0.7, 0.95, 0), (1.3, 0.5, 0), (1.0, 0.1, 0), (1.0, 1.0, 5), (0.7, 0.8, 12), (1.0, 0.9, 10_000)],
)
def test_draws_follow_the_sorted_reference(vocabulary: int, temperature: float, top_p: float, top_k: int) -> None:
    params = SamplingParams(temperature, top_p, top_k)
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(3)) * 1.5
    expected = sorted_reference(logits, params)
    counts = torch.zeros(vocabulary, dtype=torch.double)
    sampler = TokenSampler(params)
    for seed in range(10):
        draw = sampler.draw(logits.expand(DRAWS // 10, -1), *streams(DRAWS // 10, seed))
        counts += torch.bincount(draw.tokens, minlength=vocabulary)
    assert counts[expected == 0].sum() == 0, "a token outside the nucleus was drawn"
    likely = expected * DRAWS >= 5
    chi_square = ((counts - expected * DRAWS)[likely] ** 2 / (expected * DRAWS)[likely]).sum().item()
    freedom = int(likely.sum()) - 1
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom) + 5


def test_hand_worked_nucleus() -> None:
    weights = torch.tensor([0.15, 0.5, 0.02, 0.3, 0.03]).expand(20_000, -1)
    drawn = torch.bincount(nucleus(weights.clone(), *streams(20_000), 0.9), minlength=5) / 20_000
    # 0.5 and 0.3 leave 0.8 < 0.9 above the token of 0.15, which is kept; 0.95 lie above the next, which is not.
    torch.testing.assert_close(drawn, torch.tensor([0.15, 0.5, 0, 0.3, 0]) / 0.95, atol=0.015, rtol=0)


def test_tied_tokens_stay_together() -> None:
    drawn = nucleus(torch.tensor([0.4, 0.2, 0.2, 0.2]).repeat(5000, 1), *streams(5000), 0.5)
    assert set(drawn.tolist()) == {0, 1, 2, 3}
    drawn = nucleus(torch.tensor([0.4, 0.2, 0.2, 0.2]).repeat(5000, 1), *streams(5000), 0.4)
    assert set(drawn.tolist()) == {0}


def test_inverse_cdf_ends_and_zero_weights() -> None:
    weights = torch.zeros(4, 3 * BLOCK)
    weights[:, [5, BLOCK + 1, BLOCK + 2]] = torch.tensor([1e-3, 0.25, 0.749])
    u = torch.tensor([0.0, 1.01e-3, 0.2510001, 1 - 2.0**-52], dtype=torch.double)
    assert inverse_cdf(weights, u).tolist() == [5, BLOCK + 1, BLOCK + 2, BLOCK + 2]
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(50, 1000, generator=generator) * (torch.rand(50, 1000, generator=generator) < 0.02)
    for step in range(200):
        u = uniform(streams(50)[0], torch.full((50,), step), 0)
        assert (weights.gather(-1, inverse_cdf(weights, u)[:, None]) > 0).all()
    assert (
        weights.gather(-1, inverse_cdf(weights, torch.full((50,), 1 - 2.0**-52, dtype=torch.double))[:, None]) > 0
    ).all()


def test_uniform_is_uniform_and_depends_on_all_its_parts() -> None:
    seeds, steps = torch.arange(100_000), torch.zeros(100_000, dtype=torch.long)
    variants = [
        uniform(seeds, steps, 0),
        uniform(seeds, steps + 1, 0),
        uniform(seeds, steps, 1),
        uniform(steps, seeds, 0),
    ]
    for u in variants:
        assert u.min() >= 0
        assert u.max() < 1
        counts = torch.histc(u.float(), 50, 0, 1)
        assert ((counts - 2000) ** 2 / 2000).sum() < 49 + 5 * math.sqrt(98)
    correlations = torch.corrcoef(torch.stack(variants)) - torch.eye(4)
    assert correlations.abs().max() < 0.02
    assert torch.equal(uniform(seeds, steps, 0), variants[0])


def test_splitmix_reference_value() -> None:
    # Published first outputs of SplitMix64 from state 0: the scramble of the golden-ratio increment.
    from nashtune.sampling.nucleus import _scramble, _signed

    golden = torch.tensor([_signed(0x9E3779B97F4A7C15), _signed(0x3C6EF372FE94F82A)])
    assert [x % (1 << 64) for x in _scramble(golden).tolist()] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    logits = torch.randn(30, 400, generator=torch.Generator().manual_seed(1)) * 2
    seeds, steps = streams(30)
    params = SamplingParams(temperature=0.9, top_p=0.6)
    together = TokenSampler(params).draw(logits, seeds, steps)
    sampler = TokenSampler(params)
    alone = [sampler.draw(logits[i : i + 1], seeds[i : i + 1], steps[i : i + 1]).tokens.item() for i in range(30)]
    assert together.tokens.tolist() == alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("params", [SamplingParams(0), SamplingParams(0.5, 0.8, 3), SamplingParams(1.0, 1.0)])
def test_logprobs_are_those_of_the_raw_logits(dtype: torch.dtype, params: SamplingParams) -> None:
    logits = (torch.randn(20, 333, generator=torch.Generator().manual_seed(2)) * 6 + 40).to(dtype)
    draw = TokenSampler(params).draw(logits, *streams(20))
    expected = logits.double().log_softmax(-1).gather(-1, draw.tokens[:, None])[:, 0]
    torch.testing.assert_close(draw.logprobs.double(), expected, atol=1e-4, rtol=0)
    if params.temperature == 0:
        assert torch.equal(draw.tokens, logits.argmax(-1))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0, 0.7])
def test_damaged_logits_show_in_their_own_row_only(bad: float, temperature: float) -> None:
    logits = torch.randn(3, 200, generator=torch.Generator().manual_seed(5))
    logits[1, 7] = bad
    draw = TokenSampler(SamplingParams(temperature, 0.9)).draw(logits, *streams(3))
    assert draw.logprobs.isfinite().tolist() == [True, False, True]
    assert ((draw.tokens >= 0) & (draw.tokens < 200)).all()
