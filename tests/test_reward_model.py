"""The reward model oracle: Bradley-Terry from scalar rewards, whatever shares a batch."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_chat import byte_tokenizer
from tiny_models import SHAPE
from transformers import LlamaConfig, LlamaForSequenceClassification

from nashtune.errors import OracleError
from nashtune.judging.registry import open_oracle
from nashtune.judging.reward_model import RewardModelOracle
from nashtune.recipe import RewardModelOracle as Section
from nashtune.records import Judgment, Message, Prompt, Response

PROMPT = Prompt.make([Message("system", "Be kind."), Message("user", "What is a cave?")])
TEXTS = ["A cave is a hollow.", "Rock.", "", "I do not know, but it is dark in there and bats like it."]


def write_reward_model(folder: Path, *, chat: bool = True, **changes: Any) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(**{**SHAPE, "num_labels": 1, "pad_token_id": 299, **changes})
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer = byte_tokenizer()
    if not chat:
        tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reward_model(tmp_path_factory.mktemp("reward"))


def candidates(texts: list[str]) -> list[Response]:
    return [Response(f"r{k}", PROMPT.id, k, "student", "p", text) for k, text in enumerate(texts)]


def judged(folder: Path | str, texts: list[str] = TEXTS, **settings: Any) -> Judgment:
    oracle = RewardModelOracle(Section(kind="reward_model", model=str(folder), **settings))
    return asyncio.run(oracle.judge(PROMPT, candidates(texts), seed=1))


def test_probabilities_are_bradley_terry_of_the_models_own_rewards(folder: Path) -> None:
    judgment = judged(folder)
    model = LlamaForSequenceClassification.from_pretrained(folder)
    tokenizer = byte_tokenizer()
    for k, text in enumerate(TEXTS):
        turns = [{"role": m.role, "content": m.content} for m in PROMPT.messages]
        chat = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": text}], tokenize=False)
        ids = torch.tensor([tokenizer(chat, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            assert judgment.measures["reward"][k] == pytest.approx(float(model(ids).logits[0, 0]), abs=1e-5)
    rewards = judgment.measures["reward"]
    for i, a in enumerate(rewards):
        for j, b in enumerate(rewards):
            assert judgment.preference(i, j) == pytest.approx(1 / (1 + math.exp(b - a)))
    assert len({round(r, 4) for r in rewards if r is not None}) == len(TEXTS)
    assert judgment.model_requested == str(folder)
    assert judgment.model_returned.startswith(str(folder))
    assert judgment.usage.cost_usd is None


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_neighbours_in_a_batch_change_nothing(folder: Path, batch_size: int) -> None:
    whole, parts = judged(folder), judged(folder, batch_size=batch_size)
    assert parts.measures["reward"] == pytest.approx(whole.measures["reward"], abs=1e-5)
    alone = judged(folder, TEXTS[1:2])
    assert alone.measures["reward"][0] == pytest.approx(whole.measures["reward"][1], abs=1e-5)


def test_a_model_without_padding_is_computed_row_by_row(folder: Path, tmp_path: Path) -> None:
    bare = judged(write_reward_model(tmp_path, pad_token_id=None))
    assert bare.measures["reward"] == pytest.approx(judged(folder).measures["reward"], abs=1e-5)


def test_too_long_candidates_have_no_verdict_and_are_not_cut(folder: Path) -> None:
    judgment = judged(folder, ["Short.", "x" * 400, "Also short."])
    assert judgment.outcome == "ok"
    assert judgment.measures["reward"][1] is None
    assert judgment.preference(0, 1) is None
    assert judgment.win_rates()[1] is None
    assert judgment.preference(0, 2) == pytest.approx(judged(folder, ["Short.", "Also short."]).preference(0, 1))
    unusable = judged(folder, ["Short.", "x" * 400])
    assert unusable.outcome == "unusable"
    assert "too long: 1 of 2" in unusable.reason


def test_other_oracles_go_on_while_the_model_computes(folder: Path) -> None:
    async def both() -> list[str]:
        done: list[str] = []
        oracle = open_oracle(
            Section(kind="reward_model", model=str(folder)), lambda: pytest.fail("no ledger is needed")
        )

        async def model() -> None:
            await asyncio.gather(*(oracle.judge(PROMPT, candidates(TEXTS), seed) for seed in range(3)))
            done.append("model")

        async def quick() -> None:
            await asyncio.sleep(0)
            done.append("quick")

        await asyncio.gather(model(), quick())
        await oracle.aclose()
        return done

    assert asyncio.run(both()) == ["quick", "model"]


def test_unusable_models_are_named(folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OracleError, match=r"oracle\.model: './nowhere' is not a folder"):
        judged("./nowhere")
    with pytest.raises(OracleError, match=r"3 outputs; accepted: reward models with 1"):
        judged(write_reward_model(tmp_path / "three", num_labels=3))
    with pytest.raises(OracleError, match=r"no weights for score\.weight"):
        judged(tiny_folder / "policy")
    with pytest.raises(OracleError, match=r"oracle\.model.*no chat template"):
        judged(write_reward_model(tmp_path / "mute", chat=False))
    with pytest.raises(OracleError, match=r"oracle\.max_tokens is 1000; accepted: at most 256"):
        judged(folder, max_tokens=1000)
