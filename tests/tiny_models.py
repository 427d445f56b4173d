"""Tiny random-weight models of several families, for tests that need a real forward pass."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

WINDOW = 8
SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "initializer_range": 0.25,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ALTERNATING = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": WINDOW,
}
SOFTCAPPED = {"query_pre_attn_scalar": 20, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 6.0}
FAMILIES: dict[str, tuple[type[Any], type[Any], dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": WINDOW}),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, {**ALTERNATING, **SOFTCAPPED, "head_dim": 16}),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM, {**ALTERNATING, "head_dim": 16, "query_pre_attn_scalar": 20}),
    "phi3": (Phi3Config, Phi3ForCausalLM, {}),
}


def tiny_model(family: str, *, attn_implementation: str = "sdpa", seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A model of ``family`` with random fp32 weights (the same for the same seed and shape), in eval mode.

    ``overrides`` change configuration fields. Families with a sliding window have one of ``WINDOW`` tokens.
    """
    config_class, model_class, family_shape = FAMILIES[family]
    config = config_class(**{**SHAPE, **family_shape, **overrides})
    config._attn_implementation = attn_implementation
    torch.manual_seed(seed)
    model = model_class(config).to(torch.float32).eval()
    with torch.no_grad():  # fresh norm weights are all ones or zeros, which would hide a wrong use of them
        for name, weight in model.named_parameters():
            if weight.ndim == 1 and "norm" in name:
                weight.add_(torch.randn_like(weight) * 0.1)
    return model


def tiny_tokenizer(vocab_size: int = 300) -> PreTrainedTokenizerFast:
    """One word per id (``w17``), with the special tokens of the tiny models."""
    words = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(3, vocab_size))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
