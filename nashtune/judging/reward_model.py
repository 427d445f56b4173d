"""The reward model as an oracle: a scalar per answer, and Bradley-Terry's probability that one answer beats another."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nashtune import recipe
from nashtune.errors import ModelError, OracleError
from nashtune.judging.bradley_terry import bradley_terry
from nashtune.judging.fitting import judgment_of_fitting
from nashtune.records import Judgment, Policy, Prompt, Response

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class _Loaded:
    policy: Policy
    model: Any
    tokenizer: PreTrainedTokenizerBase
    longest: int
    """Most tokens of a conversation."""
    padding: int | None
    """The id that fills up shorter rows; None: the model knows none, so its rows are computed one by one."""


class RewardModelOracle:
    """P(i beats j) = sigmoid(s_i - s_j) (Bradley and Terry, 1952) of a reward model's outputs s.

    A candidate is shown as the assistant's turn in the tokenizer's chat template. ``measures["reward"]`` [K] holds s as
    the model gave it. The model is loaded at the first judgment, computes away from the event loop and one prompt at a
    time: which candidates share a batch depends on the candidate set alone, so results repeat. In float32 on a CPU, in
    the dtype of the saved weights on an accelerator.

    A candidate of more than ``max_tokens`` is not cut, because a model that reads the end of a text would score another
    text: it has no verdict. Where fewer than two candidates are left the judgment is unusable. Raises OracleError
    where the model cannot be used at all.
    """

    name = "reward_model"
    needs_logprobs: frozenset[str] = frozenset()

    def __init__(self, section: recipe.RewardModelOracle) -> None:
        self._section = section
        self._loaded: _Loaded | None = None
        self._turn = asyncio.Lock()

    async def judge(self, prompt: Prompt, candidates: Sequence[Response], seed: int) -> Judgment:
        """Judge the candidates one by one; ``seed`` decides nothing, as nobody is shown an order."""
        async with self._turn:
            rewards, model = await asyncio.to_thread(self._rewards, prompt, candidates)
        return judgment_of_fitting(
            prompt,
            candidates,
            [reward is not None for reward in rewards],
            bradley_terry(rewards),
            oracle=self.name,
            reader="reward model",
            models=(self._section.model, model),
            measures={"reward": rewards},
        )

    async def aclose(self) -> None:
        """Let go of the model."""
        self._loaded = None

    def _rewards(self, prompt: Prompt, candidates: Sequence[Response]) -> tuple[list[float | None], str]:
        """The reward of each candidate [K], None where it is too long; and the model's name and fingerprint."""
        loaded = self._loaded = self._loaded or _load(self._section)
        texts = [_conversation(loaded, prompt, c.text) for c in candidates]
        rewards: list[float | None] = [None] * len(texts)
        fitting = [i for i, ids in enumerate(texts) if len(ids) <= loaded.longest]
        size = self._section.batch_size if loaded.padding is not None else 1
        for start in range(0, len(fitting), size):
            places = fitting[start : start + size]
            for i, reward in zip(places, _forward(loaded, [texts[i] for i in places]), strict=True):
                if not math.isfinite(reward):
                    raise OracleError(
                        f"oracle.model: {loaded.policy.name!r} gave the reward {reward} to candidate {candidates[i].id} "
                        f"of prompt {prompt.id}; accepted: finite numbers (weights that are damaged or overflow?)"
                    )
                rewards[i] = reward
        return rewards, f"{loaded.policy.name}@{loaded.policy.fingerprint}"


def _load(section: recipe.RewardModelOracle) -> _Loaded:
    """Raises OracleError naming the field and what is accepted."""
    from transformers import AutoModelForSequenceClassification

    from nashtune.model.loading import context_length, default_device, find_policy, load_tokenizer

    source = recipe.PolicySection(
        model=section.model, revision=section.revision, trust_remote_code=section.trust_remote_code
    )
    device = default_device()
    try:
        policy = find_policy(source)
        tokenizer = load_tokenizer(policy)
        context = context_length(policy)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            policy.folder,
            dtype="float32" if device.type == "cpu" else "auto",
            trust_remote_code=section.trust_remote_code,
            output_loading_info=True,
        )
    except ModelError as error:
        raise OracleError(str(error).replace("policy.model", "oracle.model")) from None
    except (OSError, ValueError, KeyError) as error:
        raise OracleError(f"oracle.model: {section.model!r} cannot be loaded as a reward model: {error}") from error
    if report["missing_keys"]:  # transformers fills them with random numbers, which would judge at random
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise OracleError(
            f"oracle.model: {section.model!r} has no weights for {missing}; accepted: a trained sequence-classification "
            "model, not a plain language model"
        )
    if model.config.num_labels != 1:
        raise OracleError(
            f"oracle.model: {section.model!r} has {model.config.num_labels} outputs; accepted: reward models with 1"
        )
    if section.max_tokens is not None and section.max_tokens > context:
        raise OracleError(
            f"oracle.max_tokens is {section.max_tokens}; accepted: at most {context}, the context of {section.model!r}"
        )
    longest = section.max_tokens or context
    padding = model.config.get_text_config().pad_token_id
    return _Loaded(policy, model.to(device).eval(), tokenizer, longest, padding)


def _conversation(loaded: _Loaded, prompt: Prompt, answer: str) -> list[int]:
    """Token ids of the prompt with ``answer`` as the assistant's turn."""
    chat = [{"role": m.role, "content": m.content} for m in prompt.messages]
    chat.append({"role": "assistant", "content": answer})
    text = str(loaded.tokenizer.apply_chat_template(chat, add_generation_prompt=False, tokenize=False))
    return loaded.tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[return-value]


def _forward(loaded: _Loaded, texts: Sequence[Sequence[int]]) -> list[float]:
    """Rewards of some conversations in one call, filled up on the right."""
    import torch

    longest = max(map(len, texts))
    device: torch.device = loaded.model.device
    ids = torch.full((len(texts), longest), loaded.padding or 0, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
    with torch.inference_mode():
        logits = loaded.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
    return logits[:, 0].float().tolist()
