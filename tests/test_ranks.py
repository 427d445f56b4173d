"""Two ranks that share weights and work (FSDP2, gloo) train as one process does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import train_in_ranks
from safetensors.torch import load_file
from tiny_pairs import learnable_pairs, tiny_job, tiny_policy

from nashtune.recipe import LoraSection
from nashtune.records import Policy
from nashtune.training.job import StepMetrics, TrainJob, finished
from nashtune.training.trainer import train_policy


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return tiny_policy(tmp_path_factory.mktemp("policy") / "zero")


def job_in(folder: Path, policy: Policy, **changes: Any) -> TrainJob:
    return tiny_job(folder, policy, learnable_pairs(11), epochs=2, **changes)


def trace(job: TrainJob) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]


def assert_same(one: TrainJob, two: TrainJob, places: float = 5e-6) -> None:
    for expected, found in zip(trace(one), trace(two), strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], abs=places)
        for name in ("step", "learning_rate", "tokens"):
            assert found[name] == expected[name]


@pytest.mark.parametrize("kind", ["float32", "autocast", "bfloat16"])
def test_same(policy: Policy, tmp_path: Path, kind: str) -> None:
    one, two = (job_in(tmp_path / n, policy, precision=kind) for n in ("one", "two"))
    train_policy(one)
    train_in_ranks(two)
    for a, b in zip(trace(one), trace(two)):
        print(a["loss"], b["loss"], a["grad_norm"], b["grad_norm"])
    assert_same(one, two)
