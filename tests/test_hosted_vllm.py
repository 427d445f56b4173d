"""A judge hosted by vLLM itself, on CPUs; `$NASHTUNE_VLLM_PYTHON` names an interpreter that has it (see test_vllm_real.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hosted_judges import pairwise, write_judge
from test_hosted_judge import judged, request, resources, section, sets
from test_vllm_real import python as python
from tiny_chat import tiny_recipe

from nashtune.judging.chat import Reply
from nashtune.judging.hosted import Host, load
from nashtune.judging.registry import open_oracle
from nashtune.model.loading import load_model, render
from nashtune.recipe import HostedSection, HostedVllm, parse_recipe
from nashtune.records import Judgment, Message
from nashtune.run import Run
from nashtune.stages.judging import judge
from nashtune.stages.local_judge import judge_sets
from nashtune.stages.teacher import sample

pytestmark = pytest.mark.slow
QUICK = {"enforce_eager": True, "cpu_kv_cache_gb": 1, "max_model_len": 2048}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge with heads that vLLM's CPU attention takes."""
    return write_judge(tmp_path_factory.mktemp("hosted-vllm") / "judge", hidden_size=128)


@pytest.fixture(scope="module")
def host(python: str, folder: Path) -> Iterator[Host]:
    """One engine for the tests of the oracles; what it is asked differs."""
    vllm = HostedVllm(python=python, **QUICK)
    host = Host(HostedSection(model=str(folder), dtype="float32", engine="vllm", vllm=vllm))
    yield host
    host.close()


def by(host: Host, oracle: dict[str, Any], python: str, folder: Path) -> list[Judgment]:
    """Judgments of four sets at once by an oracle whose model is ``host``'s."""
    asked = section(oracle | {"hosted": pairwise(folder, engine="vllm", vllm={"python": python, **QUICK})["hosted"]})
    kept = resources()
    opened = open_oracle(asked, kept)
    (chat,) = kept.hosted.values()
    chat.host = host
    return asyncio.run(judge_sets(opened, sets(), 7))


def test_vllm_and_the_native_engine_give_the_same_greedy_verdicts(host: Host, python: str, folder: Path) -> None:
    before = host.work.batches
    served = by(host, {"kind": "pairwise", "max_tokens": 1}, python, folder)
    native, _ = judged(pairwise(folder), [sets()])
    assert host.work.batches == before + 1
    assert [(j.matrix, j.raw, j.usage, j.outcome) for j in served] == [
        (j.matrix, j.raw, j.usage, j.outcome) for j in native
    ]
    assert {value for j in served for row in j.matrix or () for value in row} > {0.5}


def test_log_probs_are_the_models_own(host: Host, python: str, folder: Path) -> None:
    """P("1") of a verdict against transformers' forward pass of the same prompt."""
    found = by(host, {"kind": "pairwise", "max_tokens": 1, "use": "logprobs"}, python, folder)
    values = {p for j in found for row in j.matrix or () for p in row if p is not None}
    assert len(values) > 8, "probabilities, not verdicts"
    assert all(0 <= p <= 1 for p in values)
    reply = host.answer([request("Which is better?", top_logprobs=20)])[0]
    assert isinstance(reply, Reply)
    (choice,) = reply.choices
    loaded = load(HostedSection(model=str(folder), dtype="float32"))
    model: Any = load_model(loaded.policy, torch.float32, attention="sdpa").eval()
    ids = render(loaded.tokenizer, [Message("user", "Which is better?")])
    with torch.inference_mode():
        logs = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    said = loaded.tokenizer.convert_tokens_to_ids(choice.text)
    assert choice.text in ("1", "2")
    assert choice.tokens == (choice.text,)
    assert choice.top_logprobs[0][choice.text] == pytest.approx(float(logs[said]), abs=1e-3)
    assert len(choice.top_logprobs[0]) > 2


def test_sampled_replies_repeat_and_differ_from_each_other(host: Host, python: str, folder: Path) -> None:
    compact = {"kind": "compact", "max_tokens": 12, "replies": 3, "orders": 2}
    before = host.work.replies
    first, again = by(host, compact, python, folder), by(host, compact, python, folder)
    assert first == again
    assert host.work.replies - before == 2 * 4 * 2 * 3
    texts = {text for judgment in first for text in judgment.raw.split("\n")}
    assert len(texts) > 12


def test_a_run_judges_its_units_with_vllm_and_ends_the_process(
    python: str, folder: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    """In one worker process of the judge's own, beside the sampler; no vLLM outlives the stage."""
    oracle = pairwise(folder, engine="vllm", actors=1, vllm={"python": python, **QUICK})
    changes = {"oracle": oracle, "teacher": {"kind": "none"}, "sampling": {"engine": "scripted"}}
    recipe = parse_recipe(tiny_recipe(tiny_folder, **changes) | {"folder": str(tmp_path)})
    before = engines()
    with Run.open(recipe) as run:
        found = [judgment for _, _, judgment in judge(run, sample(run, 1))]
        facts = run.stage(1, "judge").record()["facts"]
        left = engines() - before
    assert (len(found), facts["judgments"], facts["calls"], facts["cost_usd"]) == (12, 12, 72, 0)
    assert facts["engine_seconds"] > 0
    assert all(judgment.outcome == "ok" for judgment in found)
    assert left == set()


def engines() -> set[int]:
    """vLLM processes under this one."""
    children = psutil.Process().children(recursive=True)
    return {c.pid for c in children if c.is_running() and "child.py" in " ".join(c.cmdline())}
