"""Shared fixtures: a tiny chat model on disk and the recipe of a loop that takes seconds."""

from __future__ import annotations

import os

# One thread: tiny models gain nothing from more, and threads that wait for each other on a busy machine cost minutes.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from pathlib import Path

import pytest

from nashtune.records import Policy


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny policy and 40 prompts."""
    from tiny_chat import write_prompts, write_tiny_policy

    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_policy(folder / "policy")
    write_prompts(folder / "prompts.jsonl", 40)
    return folder


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """A tiny policy to train."""
    from tiny_pairs import tiny_policy

    return tiny_policy(tmp_path_factory.mktemp("policy") / "zero")


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """Another one, of the same shape."""
    from tiny_pairs import tiny_policy

    return tiny_policy(tmp_path_factory.mktemp("policy") / "other", seed=1)
