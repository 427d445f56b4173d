"""A whole chat model of a few thousand weights on disk: byte tokenizer, chat template, random Llama."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from random_models import byte_tokenizer
from tiny_models import tiny_model

__all__ = ["byte_tokenizer", "tiny_recipe", "write_prompts", "write_tiny_policy"]


def write_tiny_policy(folder: Path, seed: int = 0, family: str = "llama") -> Path:
    """Save a tiny chat model; returns its folder."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(seed)
    model = tiny_model(family, seed=seed)
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config._attn_implementation = "sdpa"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_prompts(file: Path, count: int) -> Path:
    """``count`` different prompts as JSONL."""
    rows = [{"prompt": f"Question {n}: what is {n * n % 97} plus {n}?"} for n in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def tiny_recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    """A recipe whose whole loop takes seconds; sections in ``changes`` are merged into it."""
    recipe: dict[str, Any] = {
        "name": "tiny",
        "folder": str(folder / "runs"),
        "seed": 1,
        "iterations": 2,
        "policy": {"model": str(folder / "policy")},
        "prompts": {"source": str(folder / "prompts.jsonl"), "per_iteration": 12, "validation": {"count": 8}},
        "sampling": {"k": 3, "max_new_tokens": 12, "slots": 8, "unit_prompts": 4, "dtype": "float32"}
        | {"defects": {"truncated": False, "max_repeat_share": 1.0}},
        "oracle": {"kind": "scripted"},
        "teacher": {"kind": "best_of_n", "n": 2},
        "pairs": {"rule": "all", "max_per_prompt": 2},
        "train": {
            "batch_size": 4,
            "learning_rate": 1e-3,
            "precision": "float32",
            "microbatch_tokens": 256,
            "checkpoint_steps": 2,
        },
    }
    for key, value in changes.items():
        recipe[key] = recipe.get(key, {}) | value if isinstance(value, dict) and "kind" not in value else value
    return recipe
