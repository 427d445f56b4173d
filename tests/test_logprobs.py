"""Packed, chunked log-probs against the models' own plain forward pass, values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, tiny_model
from transformers import CohereConfig, CohereForCausalLM, PreTrainedModel

from nashtune.errors import ModelError, TrainingError
from nashtune.training import vocabulary
from nashtune.training.logprobs import check_architecture, check_fits, response_logprobs, score_responses
from nashtune.training.packing import pack
from nashtune.training.vocabulary import Ends, Head


def ids(count: int, start: int) -> list[int]:
    return [(start + 7 * i * i) % 290 + 5 for i in range(count)]


ITEMS = [
    (ids(20, 1), [ids(15, 2), ids(23, 3)]),  # longer than the sliding windows
    (ids(1, 4), [ids(1, 5), ids(9, 6)]),
    (ids(6, 7), [ids(12, 8), ids(1, 9)]),
]


def plain_logprobs(model: PreTrainedModel) -> torch.Tensor:
    """Each answer in a row of its own, through the library's attention and its logits."""
    out = []
    for prompt, answers in ITEMS:
        for answer in answers:
            row = torch.tensor([prompt + answer])
            logps = model(row, use_cache=False).logits[0].float().log_softmax(-1)
            steps = torch.arange(len(prompt) - 1, row.shape[1] - 1)
            out.append(logps[steps, row[0, steps + 1]].sum())
    return torch.stack(out)


@pytest.mark.parametrize("kept", ["nothing", "slopes", "everything"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_equal_the_plain_forward(
    family: str, tied: bool, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vocabulary.CHUNK_BYTES, "cpu", 1)  # chunks of 16 tokens: several, the last one smaller
    monkeypatch.setitem(vocabulary.CACHED, True, 300 * 5)
    if kept == "nothing":
        monkeypatch.setitem(vocabulary.KEEP_BYTES, "cpu", 1)
    plain = tiny_model(family, tie_word_embeddings=tied, attn_implementation="eager")
    model = tiny_model(family, tie_word_embeddings=tied, attn_implementation="nashtune")
    ends = Ends(None, model.get_output_embeddings().weight, model.get_input_embeddings().weight)
    ends = ends if kept == "everything" else Ends()
    expected, got = plain_logprobs(plain), response_logprobs(model, pack(ITEMS), ends=ends)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=2e-4)
    weights = torch.tensor([0.3, -0.7, 1.0, -0.2, 0.5, -1.1])
    (expected * weights).sum().backward()
    (got * weights).sum().backward()
    for (name, a), b in zip(plain.named_parameters(), model.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert (a.grad - b.grad).norm() <= 1e-4 * a.grad.norm(), name


def test_chunk_size_does_not_change_values(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gemma2", attn_implementation="nashtune")
    whole = response_logprobs(model, pack(ITEMS))
    monkeypatch.setitem(vocabulary.CHUNK_BYTES, "cpu", 1)
    assert Head.of(model).chunk() == 16
    torch.testing.assert_close(response_logprobs(model, pack(ITEMS)), whole)


def test_scaled_logits() -> None:
    shape: dict[str, Any] = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    models = []
    for attention in ("sdpa", "nashtune"):
        config = CohereConfig(**shape, num_attention_heads=4, num_key_value_heads=2, logit_scale=0.25)
        config._attn_implementation = attention
        torch.manual_seed(0)
        models.append(CohereForCausalLM(config).eval())
    torch.testing.assert_close(response_logprobs(models[1], pack(ITEMS)), plain_logprobs(models[0]))
    models[1].logit_scale = 0.5  # what the configuration does not say
    with pytest.raises(ModelError, match="CohereForCausalLM cannot be used with packed answers"):
        check_architecture(models[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_known_architectures_pass_the_check(family: str) -> None:
    model = tiny_model(family, attn_implementation="nashtune")
    assert check_architecture(model) is None  # raises ModelError where packed and plain log-probs differ
    assert check_architecture(model.bfloat16()) is None


def test_output_layer_with_a_bias_is_refused() -> None:
    model = tiny_model("llama", attn_implementation="nashtune")
    model.lm_head = torch.nn.Linear(64, 300)
    with pytest.raises(ModelError, match="accepted: a Linear without bias or adapter"):
        Head.of(model)


def test_autocast_is_near_fp32() -> None:
    model = tiny_model("llama", attn_implementation="nashtune")
    exact, near = (response_logprobs(model, pack(ITEMS), dtype) for dtype in (None, torch.bfloat16))
    assert near.dtype == torch.float32
    torch.testing.assert_close(near, exact, rtol=0.02, atol=0.3)
    assert not torch.equal(near, exact)


@pytest.mark.parametrize("budget", [1, 30, 1000])
def test_scores_do_not_depend_on_the_budget(budget: int) -> None:
    model = tiny_model("mistral", attn_implementation="nashtune")
    expected = plain_logprobs(tiny_model("mistral")).tolist()
    scores = score_responses(model, ITEMS, microbatch_tokens=budget)
    assert [s for row in scores for s in row] == pytest.approx(expected, rel=1e-5, abs=2e-4)


def test_scores_of_many_and_empty_answers() -> None:
    model = tiny_model("llama", attn_implementation="nashtune")
    prompt, answers = ITEMS[0]
    many = score_responses(model, [(prompt, [answers[0], [], answers[1], answers[0]]), (prompt, [])])
    assert many[1] == []
    assert many[0][1] == 0.0
    assert many[0][0] == pytest.approx(many[0][3], rel=1e-5)
    assert many[0][2] == pytest.approx(score_responses(model, [(prompt, [answers[1]])])[0][0], rel=1e-5)


def test_bad_items_are_refused() -> None:
    model = tiny_model("llama", attn_implementation="nashtune")
    for item, message in (
        (([], [[5]]), "item 0: its prompt has 0 tokens"),
        (([5] * 200, [[5], [5] * 57]), "item 0: 257 tokens .* takes at most 256"),
        (([5], [[5, 300]]), "item 0: token id 300; the model's vocabulary has 300"),
    ):
        with pytest.raises(TrainingError, match=message):
            score_responses(model, [item])
    check_fits(model, [("item", ([5] * 200, [[5] * 56]))])
    with pytest.raises(ModelError, match=r"computes in torch\.float32, asked for torch\.bfloat16"):
        score_responses(model, ITEMS, dtype=torch.bfloat16)
