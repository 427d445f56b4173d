"""Log-probs of answers under a model, without ever holding the logits of all tokens.

Shift, mask and sum of answers live here and in ``packing.pack`` alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nashtune.errors import ModelError, TrainingError
from nashtune.model.attention import Block, PackedLayout
from nashtune.model.loading import load_model
from nashtune.records import Policy
from nashtune.training.packing import Answers, PackedBatch, fill, input_tokens, pack
from nashtune.training.vocabulary import NOTHING_KEPT, Ends, Head, embedded, token_logprobs


def response_logprobs(
    model: PreTrainedModel, batch: PackedBatch, autocast: torch.dtype | None = None, ends: Ends = NOTHING_KEPT
) -> Tensor:
    """log p(answer | prompt) of every answer in ``batch``, summed over its tokens in fp32 [batch.responses].

    ``autocast`` is the dtype of matrix products where it differs from the weights'; ``ends`` is what the model being
    trained keeps between micro-batches.
    """
    head = Head.of(model)
    vectors = embedded(model.get_input_embeddings(), batch.input_ids, ends)
    inputs = {"input_ids": batch.input_ids} if vectors is None else {"inputs_embeds": vectors}
    with torch.autocast(head.weight.device.type, autocast) if autocast else contextlib.nullcontext():
        hidden = model.get_decoder()(
            **inputs, position_ids=batch.position_ids, use_cache=False, layout=batch.layout
        ).last_hidden_state[0]
    predicting = hidden.index_select(0, batch.predicting)
    tokens = token_logprobs(predicting, batch.targets, head, autocast or head.weight.dtype, ends)
    sums = torch.zeros(batch.responses, dtype=torch.float32, device=hidden.device)
    return sums.index_add(0, batch.segments, tokens)


@torch.no_grad()
def check_architecture(model: PreTrainedModel) -> None:
    """Compare packed log-probs with the model's own plain forward pass on a few tokens.

    Raises ModelError where they differ: an unknown scaling of logits, or layers (recurrent ones, say) through which one
    packed answer would see another.
    """
    vocabulary = Head.of(model).weight.shape[0]
    prompt, answers = (
        [i % vocabulary for i in (3, 5, 7, 11)],
        [[i % vocabulary for i in ids] for ids in ((13, 17, 19), (23, 29))],
    )
    packed = response_logprobs(model, pack([(prompt, answers), (prompt[1:], answers)], model.device)).tolist()
    tolerance = 2e-3 if model.dtype == torch.float32 else 0.5
    for found, (start, answer) in zip(packed, [(s, a) for s in (prompt, prompt[1:]) for a in answers], strict=True):
        ids = torch.tensor([start + answer], device=model.device)
        layout = PackedLayout([Block(ids.shape[1])], model.device)
        logits = (
            model(input_ids=ids, position_ids=layout.position_ids, use_cache=False, layout=layout).logits[0].float()
        )
        steps = torch.arange(len(start) - 1, ids.shape[1] - 1)
        plain = float(logits.log_softmax(-1)[steps, ids[0, steps + 1]].sum())
        if not abs(plain - found) <= tolerance * (1 + 0.01 * abs(plain)):
            raise ModelError(
                f"{type(model).__name__} cannot be used with packed answers: the log-prob of one is {plain:.4f} alone, "
                f"{found:.4f} packed; accepted: decoders that mix tokens in attention only, with a known logit scaling"
            )


def check_fits(model: PreTrainedModel, items: Iterable[tuple[str, Answers]]) -> None:
    """Raises TrainingError naming the first item with an empty prompt, too many tokens or an unknown token."""
    vocabulary = Head.of(model).weight.shape[0]
    context = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 1 << 62)
    for name, (prompt, responses) in items:
        if not prompt:
            raise TrainingError(f"{name}: its prompt has 0 tokens; accepted: at least 1")
        longest = len(prompt) + max((len(r) for r in responses), default=0)
        if longest > context:
            raise TrainingError(
                f"{name}: {longest} tokens with its prompt; the model's context takes at most {context}"
            )
        largest = max(max(ids, default=0) for ids in (prompt, *responses))
        if largest >= vocabulary:
            raise TrainingError(f"{name}: token id {largest}; the model's vocabulary has {vocabulary}")


def score_responses(
    policy: Policy | PreTrainedModel,
    items: Sequence[Answers],
    *,
    dtype: torch.dtype | None = None,
    microbatch_tokens: int = 4096,
) -> list[list[float]]:
    """log p(answer | prompt) in nats for each item's answers, the prompt computed once for all of them.

    ``dtype`` defaults to float32 for a policy on disk and to the model's own for a loaded one (attention "nashtune").
    Empty answers have log-prob 0. Raises TrainingError for an item that does not fit the model, ModelError where
    the model cannot be packed or a loaded one is not of ``dtype``.
    """
    model = load_model(policy, dtype or torch.float32) if isinstance(policy, Policy) else policy
    if dtype not in (None, model.dtype):
        raise ModelError(f"score_responses: the loaded model computes in {model.dtype}, asked for {dtype}")
    check_architecture(model)
    check_fits(model, ((f"item {i}", answers) for i, answers in enumerate(items)))
    # A prompt whose answers exceed the budget together is computed once for each group of them.
    units: list[tuple[int, tuple[int, ...]]] = []
    for i, (prompt, responses) in enumerate(items):
        cost = [max(len(r) - 1, 0) for r in responses]
        units += [(i, group) for group in fill(range(len(responses)), cost, microbatch_tokens - len(prompt))]
    packed = [(items[i][0], [items[i][1][k] for k in group]) for i, group in units]
    cost = [input_tokens(answers) for answers in packed]
    scores = [[0.0] * len(responses) for _, responses in items]
    for batch in fill(sorted(range(len(units)), key=lambda u: (cost[u], u)), cost, microbatch_tokens):
        with torch.no_grad():
            values = iter(response_logprobs(model, pack([packed[u] for u in batch], model.device)).tolist())
        for i, group in (units[u] for u in batch):
            for k in group:
                scores[i][k] = next(values)
    return scores
