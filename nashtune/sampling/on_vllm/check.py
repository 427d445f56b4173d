"""Whether a vLLM engine computes the policy that it was given: log-probs of a fixed text against a plain forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from nashtune.errors import SamplingError
from nashtune.model.loading import default_device, load_model, render
from nashtune.records import Message, Policy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ASKED = "How does a river reach the sea?"
ANSWERED = (
    "A river begins high up, where rain and melting snow gather in small streams. The streams join, the valley grows wide, "
    "and the water slows down until it meets the sea."
)
LONGEST = 96
"""Tokens compared, at most."""
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.15}
"""Largest mean absolute difference of a token's log-prob, in nats. Measured with SmolLM2-135M and vLLM 0.32 on a CPU: 7e-6 in
float32, 0.058 in bfloat16, so that in bfloat16 the check finds another model, but not one training step too few."""


def probe(tokenizer: PreTrainedTokenizerBase, context: int) -> list[int]:
    """Token ids of a short conversation, as many as the context takes beside the one token that scoring samples."""
    ids: Any = tokenizer(ANSWERED, add_special_tokens=False)["input_ids"]
    return [*render(tokenizer, [Message("user", ASKED)]), *ids][: min(LONGEST, context - 1)]


@torch.inference_mode()
def plain_logprobs(policy: Policy, ids: list[int], dtype: torch.dtype, *, on_cpu: bool = False) -> list[float]:
    """log p(ids[i] | ids[:i]) for i = 1, 2, ... by transformers' own forward pass; the model is let go of at once."""
    model: Any = load_model(policy, dtype, torch.device("cpu") if on_cpu else default_device(), attention="sdpa").eval()
    whole = torch.tensor([ids], device=model.device)
    logs = model(whole, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    found = logs.gather(1, whole[0, 1:, None])[:, 0].tolist()
    del model, logs
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


def compare(policy: Policy, plain: list[float], served: list[float], dtype: torch.dtype) -> None:
    """Raise SamplingError where vLLM's log-probs are not those of the policy, to rounding."""
    error = sum(abs(a - b) for a, b in zip(plain, served, strict=True)) / len(plain)
    if not error <= TOLERANCE[dtype]:  # also where it is not a number
        raise SamplingError(
            f"vLLM's log-probs of policy {policy.name!r} differ from its plain forward pass by {error:.3g} nats per token; "
            f"accepted for {dtype}: up to {TOLERANCE[dtype]}. It may compute this architecture otherwise or not have loaded "
            "the weights; sampling.engine: native samples with transformers' own code"
        )
