"""A tiny chat model that gives verdicts: random weights, but for a head that says hardly anything but "1" and "2"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from random_models import byte_tokenizer
from tiny_models import tiny_model

CONTEXT = 4096


def write_judge(folder: Path, seed: int = 3, **shape: Any) -> Path:
    """Save it; returns its folder. It says the one or the other by what it has read, and is not always sure. One of the
    hidden dimensions is the same for all texts, and lifts both words above all others."""
    tokenizer = byte_tokenizer()
    model: Any = tiny_model("llama", seed=seed, max_position_embeddings=CONTEXT, **shape)
    one, two = (tokenizer.convert_tokens_to_ids(word) for word in "12")
    with torch.no_grad():
        direction = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(seed))
        direction[0] = 0
        model.model.embed_tokens.weight[:, 0] = 3
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = layer.mlp.down_proj.weight[0] = 0
        model.lm_head.weight.zero_()
        model.lm_head.weight[one], model.lm_head.weight[two] = direction, -direction
        model.lm_head.weight[[one, two], 0] = 6
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config._attn_implementation = "sdpa"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def hosted(folder: Path, **more: Any) -> dict[str, Any]:
    return {"model": str(folder), "dtype": "float32", **more}


def pairwise(folder: Path, **more: Any) -> dict[str, Any]:
    """A pairwise judge whose replies are one token."""
    return {"kind": "pairwise", "max_tokens": 1, "hosted": hosted(folder, **more)}
