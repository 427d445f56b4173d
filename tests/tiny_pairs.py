"""A tiny policy on disk and pairs that it can learn, for tests of training."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tiny_chat import byte_tokenizer
from tiny_models import tiny_model

from nashtune.model.loading import fingerprint
from nashtune.recipe import TrainSection, objective_section
from nashtune.records import Policy
from nashtune.training.job import TrainJob
from nashtune.training.packing import TrainingPair


def tiny_policy(folder: Path, family: str = "llama", seed: int = 0, **overrides: Any) -> Policy:
    """Random weights and a byte tokenizer, saved as a transformers folder."""
    model = tiny_model(family, seed=seed, attn_implementation="eager", **overrides)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return Policy(folder, fingerprint(folder), folder.name)


def learnable_pairs(count: int) -> list[TrainingPair]:
    """Chosen answers are of low tokens, rejected ones of high tokens; all of different lengths."""
    draw = random.Random(7)

    def ids(low: int, high: int, least: int, most: int) -> tuple[int, ...]:
        return tuple(draw.randrange(low, high) for _ in range(draw.randint(least, most)))

    return [
        TrainingPair(f"p{i}", ids(5, 200, 3, 12), ids(5, 60, 1, 14), ids(100, 160, 1, 14), 0.9, 0.2, 5.0, 2.0)
        for i in range(count)
    ]


def tiny_job(
    folder: Path, policy: Policy, pairs: list[TrainingPair], *, initial: Policy | None = None, **changes: Any
) -> TrainJob:
    """A job of small batches, whose references other than "t" are ``initial``; ``changes`` go to the train section, except
    name, alpha, beta, objective (further settings of it) and learning_rate."""
    settings = {key: changes.pop(key) for key in ("name", "alpha", "beta") if key in changes}
    objective = objective_section(**settings, **changes.pop("objective", {}))
    rate = changes.pop("learning_rate", 1e-3)
    section = {"batch_size": 4, "microbatch_tokens": 64, "precision": "float32", "checkpoint_steps": 2} | changes
    return TrainJob(
        pairs=pairs,
        policy=policy,
        references={
            name: policy if name == "t" else initial or policy for name in objective.row.references(objective.settings)
        },
        objective=objective,
        train=TrainSection(**section),
        learning_rate=rate,
        seed=3,
        iteration=1,
        folder=folder / "train",
        output=folder / "policy",
    )


def six_steps(folder: Path, policy: Policy, **changes: Any) -> TrainJob:
    """A job of two epochs of three steps."""
    return tiny_job(folder, policy, learnable_pairs(11), epochs=2, **changes)
