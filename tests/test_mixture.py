"""Sampling token by token from the mixed logits of two models: option II of the regularised algorithms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_native import END, GREEDY, SAMPLED, make_requests, run
from tiny_models import tiny_model, tiny_tokenizer

from nashtune.errors import SamplingError
from nashtune.model.attention import ATTENTION
from nashtune.sampling.engine import Completion
from nashtune.sampling.native import Mixture, NativeEngine

REQUESTS = make_requests(8, 3)


def engine(
    seed: int, far: int | None = None, share: float = 0.0, family: str = "llama", **options: Any
) -> NativeEngine:
    first = tiny_model(family, attn_implementation=ATTENTION, seed=seed)
    mixture = None if far is None else Mixture(tiny_model(family, attn_implementation=ATTENTION, seed=far), share)
    return NativeEngine(first, tiny_tokenizer(), (END,), slots=5, prefill_tokens=40, mixture=mixture, **options)


def same(one: dict[Any, Completion], other: dict[Any, Completion]) -> bool:
    return {key: (c.token_ids, c.logprob) for key, c in one.items()} == {
        key: (c.token_ids, c.logprob) for key, c in other.items()
    }


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_mixture_of_0_is_the_policy_and_one_of_1_the_initial_policy_bit_for_bit(family: str) -> None:
    current, initial = (run(engine(seed, family=family), REQUESTS, SAMPLED) for seed in (0, 1))
    assert not same(current, initial)
    assert same(run(engine(0, far=1, share=0.0, family=family), REQUESTS, SAMPLED), current)
    assert same(run(engine(0, far=1, share=1.0, family=family), REQUESTS, SAMPLED), initial)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_greedy_at_one_half_equals_a_loop_over_plain_forward_passes(family: str) -> None:
    found = run(engine(0, far=1, share=0.5, family=family), REQUESTS, GREEDY)
    models = [tiny_model(family, attn_implementation="eager", seed=seed) for seed in (0, 1)]
    for request in REQUESTS[::3]:
        ids, answer = list(request.token_ids), []
        while len(answer) < GREEDY.max_new_tokens and END not in answer:
            with torch.inference_mode():
                logits = [model(torch.tensor([ids + answer])).logits[0, -1] for model in models]
            answer.append(int((0.5 * logits[0] + 0.5 * logits[1]).argmax()))
        assert found[request.prompt_id, 0].token_ids == tuple(answer)


def test_log_probs_are_those_of_the_normalised_geometric_mixture() -> None:
    models = [tiny_model("llama", attn_implementation="eager", seed=seed) for seed in (0, 1)]
    for (prompt_id, _), done in run(engine(0, far=1, share=0.3), REQUESTS, SAMPLED).items():
        prompt = next(r for r in REQUESTS if r.prompt_id == prompt_id).token_ids
        with torch.inference_mode():
            logs = [m(torch.tensor([prompt + done.token_ids])).logits[0].double().log_softmax(-1) for m in models]
        mixed = (0.7 * logs[0] + 0.3 * logs[1])[len(prompt) - 1 : -1].log_softmax(-1)
        expected = mixed.gather(-1, torch.tensor(done.token_ids)[:, None]).sum().item()
        assert done.logprob == pytest.approx(expected, abs=1e-4 * len(done.token_ids))


def test_both_models_are_checked_and_let_go() -> None:
    mixed = engine(0, far=1, share=0.5)
    assert len(mixed.models) == 2
    mixed.check_against_plain_forward()
    mixed.close()
    assert (mixed.model, mixed.mixture) == (None, None)


def test_what_cannot_be_mixed_is_refused() -> None:
    with pytest.raises(SamplingError, match=r"mixture: 1\.5; accepted: from 0 to 1"):
        engine(0, far=1, share=1.5)
    small = tiny_model("llama", attn_implementation=ATTENTION, vocab_size=200)
    big = tiny_model("llama", attn_implementation=ATTENTION)
    with pytest.raises(SamplingError, match="vocabularies of 300 and 200 tokens"):
        NativeEngine(big, tiny_tokenizer(), (END,), mixture=Mixture(small, 0.5))
