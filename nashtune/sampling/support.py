"""What an engine on this machine can do: which models, how long a context, which settings and requests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from nashtune.errors import ModelError, SamplingError
from nashtune.model.attention import ATTENTION
from nashtune.sampling.engine import Request, SamplingParams

LAYER_TYPES = {"full_attention", "sliding_attention"}
LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}


def check_params(params: SamplingParams) -> None:
    """Raise SamplingError naming a setting out of range."""
    checks = (
        ("temperature", 0 <= params.temperature < math.inf, "0 (greedy) or more"),
        ("top_p", 0 < params.top_p <= 1, "in (0, 1]"),
        ("top_k", params.top_k >= 0, "0 (off) or more"),
        ("max_new_tokens", params.max_new_tokens >= 1, "1 or more"),
    )
    for name, good, accepted in checks:
        if not good:
            raise SamplingError(f"{name}: {getattr(params, name)}; accepted: {accepted}")


def check_requests(requests: Sequence[Request], params: SamplingParams, limit: int | None, vocabulary: int) -> None:
    """Raise SamplingError naming a request that does not fit a model of ``vocabulary`` tokens and a context of ``limit``."""
    for request in requests:
        who, length = f"prompt {request.prompt_id}", len(request.token_ids)
        if not length:
            raise SamplingError(f"{who}: no token ids; a local engine needs the rendered prompt")
        if limit is not None and length + params.max_new_tokens > limit:
            raise SamplingError(
                f"{who}: {length} prompt tokens + max_new_tokens {params.max_new_tokens} exceed the model's context "
                f"of {limit}"
            )
        if not 0 <= min(request.token_ids) <= max(request.token_ids) < vocabulary:
            raise SamplingError(f"{who}: token ids outside the model's vocabulary [0, {vocabulary})")
        if not all(0 <= seed < 1 << 63 for seed in request.seeds):
            raise SamplingError(f"{who}: seeds {request.seeds}; accepted: integers in [0, 2**63)")


def refuse_unsupported(model: PreTrainedModel) -> None:
    """Raise ModelError for a model whose attention the engine's layouts do not express, or loaded with another one."""
    name, config = type(model).__name__, model.config.get_text_config()
    if model.config._attn_implementation != ATTENTION:
        raise ModelError(
            f"{name}: loaded with attention {model.config._attn_implementation!r}; accepted: {ATTENTION!r}"
        )
    if unknown := set(getattr(config, "layer_types", None) or ()) - LAYER_TYPES:
        raise ModelError(f"{name} has layers of type {sorted(unknown)}; accepted: {sorted(LAYER_TYPES)}")
    if model.config.is_encoder_decoder:
        raise ModelError(f"{name} is an encoder-decoder model; the native engine supports decoder-only models")


def context_limit(config: Any) -> int | None:
    """Most tokens of one sequence, None where the model sets no limit.

    Rotary embeddings that change with the longest sequence of a batch are used only up to where they begin to change,
    as beyond it an answer would depend on its neighbours.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    limit = getattr(config, "max_position_embeddings", None)
    for parameters in [rope] if "rope_type" in rope else rope.values():
        if parameters.get("rope_type") in LENGTH_DEPENDENT_ROPE:
            limit = parameters.get("original_max_position_embeddings") or limit
    return limit
