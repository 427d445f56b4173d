"""Steps of few shapes and prepacked weights: the same answers as without them."""

from __future__ import annotations

import pytest
import torch
from test_native import SAMPLED, make_engine, make_requests, run
from tiny_models import tiny_model

from nashtune.errors import ModelError
from nashtune.model import prepacked
from nashtune.model.attention import ATTENTION
from nashtune.model.prepacked import PrepackedLinear, can_prepack, prepack_linears
from nashtune.sampling import decoding
from nashtune.sampling.engine import Request, SamplingParams
from nashtune.sampling.static import StaticDecoder


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("k", [1, 3])
def test_steps_of_static_shape_give_the_same_answers(family: str, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = make_requests(8, k)
    expected = run(make_engine(family, slots=7), requests, SAMPLED)
    made: list[StaticDecoder] = []

    class Recorded(decoding.Decoding):
        def __init__(self, *args: object):
            super().__init__(*args)  # type: ignore[arg-type]
            made.extend(d for d in self.decoders if isinstance(d, StaticDecoder))

    monkeypatch.setattr("nashtune.sampling.native.Decoding", Recorded)
    found = run(make_engine(family, slots=7, static=True), requests, SAMPLED)
    assert {key: c.token_ids for key, c in found.items()} == {key: c.token_ids for key, c in expected.items()}
    for key, completion in found.items():
        assert completion.logprob == pytest.approx(expected[key].logprob, abs=1e-4)
    (decoder,) = made
    assert {shape[0] for shape in decoder.shapes} == {7}, "every step has all rows"
    assert len(decoder.shapes) <= 24, "sizes are rounded to powers of two"


def test_a_static_cache_stays_where_it_is() -> None:
    places: set[tuple[int, ...]] = set()

    def look(_: int) -> None:
        stores = (run_.caches[0].answers, run_.caches[0].prompts)
        places.add(tuple(t.data_ptr() for s in stores for t in (*s.keys, *s.values)))

    engine = make_engine(slots=4, static=True, on_tokens=look)
    run_ = decoding.Decoding(engine, make_requests(5, 2), SamplingParams(temperature=0, max_new_tokens=40))
    with torch.inference_mode():
        list(run_.completions())
    assert len(places - {()}) == 1


def test_a_prompt_is_kept_once_for_its_answers() -> None:
    prompt = tuple(range(3, 203))
    requests = [Request(f"p{i}", (), prompt[i:], tuple(range(6))) for i in range(3)]
    run_ = decoding.Decoding(make_engine(slots=12), requests, SamplingParams(max_new_tokens=16))
    with torch.inference_mode():
        seen = [
            [s.shape[0] * s.shape[2] for s in (run_.caches[0].prompts.keys[0], run_.caches[0].answers.keys[0])]
            for _ in run_.completions()
        ]
    prompts, answers = (max(column) for column in zip(*seen, strict=True))
    assert prompts <= 3 * 208, "each prompt's tokens once"
    assert answers <= 12 * 16, "and none of them in the answers' rows"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prepacked_products_are_the_plain_ones(dtype: torch.dtype) -> None:
    plain, packed = (tiny_model("qwen3", attn_implementation="eager") for _ in range(2))
    for each in (plain, packed):
        each.to(dtype=dtype)  # type: ignore[call-arg]
    if not can_prepack(packed):
        pytest.skip(f"no prepacked products for {dtype} on this machine")
    weights = packed.model.layers[0].mlp.up_proj.weight.clone()
    assert prepack_linears(packed) == 2 * 7 + 1
    assert type(packed.model.layers[0].mlp.up_proj) is PrepackedLinear
    assert torch.equal(packed.model.layers[0].mlp.up_proj.weight, weights)
    ids = torch.randint(300, (3, 17), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = plain(ids).logits, packed(ids).logits
    if dtype == torch.bfloat16:
        assert torch.equal(found, expected)
    else:
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_a_wrong_product_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", attn_implementation=ATTENTION)
    if not can_prepack(model):
        pytest.skip("no prepacked products on this machine")
    monkeypatch.setattr(prepacked.PrepackedLinear, "forward", lambda self, rows: rows @ self.weight.T * 1.001)
    with pytest.raises(ModelError, match=r"LlamaForCausalLM: products of model\.layers\.0\.self_attn\.q_proj"):
        prepack_linears(model)
