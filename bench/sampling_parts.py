"""One sampling job done by each engine: nashtune's, transformers' generate and generate_batch, vLLM."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measure import Figures, Meter, Missing, bf16_is_fast, run_json


@dataclass(frozen=True)
class SamplingJob:
    """K answers to each prompt. ``rows``: sequences decoded together. Without ``ends`` every answer has new_tokens tokens."""

    model: str
    prompts: list[list[int]]
    k: int
    new_tokens: int
    rows: int
    ends: bool = True
    device: str = "cpu"
    temperature: float = 0.7
    top_p: float = 0.95


def native(job: SamplingJob) -> Figures:
    """nashtune's own engine."""
    engine, requests, params = open_native_job(job)
    list(engine.generate(requests[:2], params))
    with Meter() as meter:
        tokens = sum(len(done.token_ids) for done in engine.generate(requests, params))
    return meter.figures(tokens)


def open_native_job(job: SamplingJob) -> tuple[Any, list[Any], Any]:
    """Engine, requests and parameters."""
    import torch

    from nashtune.model.loading import find_policy, load_tokenizer
    from nashtune.recipe import PolicySection
    from nashtune.sampling.engine import Request, SamplingParams
    from nashtune.sampling.native import open_native
    from nashtune.seeds import seed_for

    policy = find_policy(PolicySection(model=job.model))
    engine = open_native(policy, _dtype(), slots=job.rows, device=torch.device(job.device))
    if not job.ends:
        engine.stop_token_ids = ()
    tokenizer: Any = load_tokenizer(policy)
    ends = (tokenizer.eos_token_id,) if job.ends else ()
    params = SamplingParams(job.temperature, job.top_p, 0, job.new_tokens, ends)
    requests = [
        Request(str(n), (), tuple(ids), tuple(seed_for("bench", n, k) for k in range(job.k)))
        for n, ids in enumerate(job.prompts)
    ]
    return engine, requests, params


def generate(job: SamplingJob) -> Figures:
    """transformers' generate in batches of prompts sorted by length, each with K answers."""
    run = open_generate(job)
    run(job.prompts[:1])
    batch = max(1, job.rows // job.k)
    ordered = sorted(job.prompts, key=len)
    with Meter() as meter:
        tokens = sum(run(ordered[i : i + batch]) for i in range(0, len(ordered), batch))
    return meter.figures(tokens)


def open_generate(job: SamplingJob) -> Any:
    """A function that answers a batch of prompts and returns the number of tokens, padding after an end left out."""
    import torch

    model, tokenizer = _plain_model(job)
    tokenizer.padding_side = "left"
    end = tokenizer.eos_token_id
    settings = {"do_sample": True, "temperature": job.temperature, "top_p": job.top_p, "top_k": 0}
    settings |= {"max_new_tokens": job.new_tokens, "num_return_sequences": job.k, "pad_token_id": end}
    torch.manual_seed(0)

    @torch.inference_mode()
    def run(batch: list[list[int]]) -> int:
        inputs = tokenizer.pad({"input_ids": batch}, return_tensors="pt").to(job.device)
        new = model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]
        if not job.ends:
            return new.numel()
        ended = new == end
        lengths = torch.where(ended.any(1), ended.int().argmax(1) + 1, new.shape[1])
        return int(lengths.sum())

    return run


def generate_batch(job: SamplingJob) -> Figures:
    """transformers' continuous batching, its start (cache, thread) included as in each call of it."""
    from transformers import GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    model, tokenizer = _plain_model(job)
    end = tokenizer.eos_token_id
    sizes: dict[str, Any] = {}
    if job.device == "cpu":  # on a GPU they are inferred
        longest = max(map(len, job.prompts)) + job.new_tokens
        page = 32
        sizes = {"page_size": page, "num_blocks": job.rows * (longest // page + 2), "max_batch_tokens": 512}
        sizes |= {"max_requests_per_batch": job.rows}
    settings = GenerationConfig(
        do_sample=True,
        temperature=job.temperature,
        top_p=job.top_p,
        top_k=0,
        max_new_tokens=job.new_tokens,
        num_return_sequences=job.k,
        eos_token_id=end if job.ends else -1,
        pad_token_id=end,
    )

    def run(prompts: list[list[int]]) -> int:
        config = ContinuousBatchingConfig(**sizes, seed=0)
        done = model.generate_batch(inputs=prompts, generation_config=settings, continuous_batching_config=config)
        if len(done) != len(prompts) * job.k:
            raise RuntimeError(f"generate_batch answered {len(done)} of {len(prompts) * job.k} requests")
        return sum(len(output.generated_tokens) for output in done.values())

    run(job.prompts[:1])
    with Meter() as meter:
        tokens = run(job.prompts)
    return meter.figures(tokens)


def vllm(job: SamplingJob) -> Figures:
    """vLLM in the environment whose Python NASHTUNE_VLLM_PYTHON names, or in this one."""
    python = os.environ.get("NASHTUNE_VLLM_PYTHON")
    if not python:
        if importlib.util.find_spec("vllm") is None:
            raise Missing(
                "no vllm here, and NASHTUNE_VLLM_PYTHON (the Python of an environment that has it) is not set"
            )
        python = sys.executable
    script = Path(__file__).with_name("vllm_part.py")
    values = asdict(job) | {"dtype": "bfloat16" if bf16_is_fast() else "float32"}
    gpu = job.device != "cpu"
    return run_json([python, str(script)], threads=None if gpu else 1, gpu=gpu, stdin=json.dumps(values))


def _plain_model(job: SamplingJob) -> tuple[Any, Any]:
    """transformers' model as it is, with sdpa attention, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(job.model)
    tokenizer.pad_token = tokenizer.eos_token
    model: Any = AutoModelForCausalLM.from_pretrained(job.model, dtype=_dtype(), attn_implementation="sdpa")
    if not job.ends:
        model.generation_config.eos_token_id = None
    return model.to(job.device).eval(), tokenizer


def _dtype() -> Any:
    import torch

    return torch.bfloat16 if bf16_is_fast() else torch.float32
