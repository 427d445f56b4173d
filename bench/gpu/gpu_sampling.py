"""Sampling on one GPU: nashtune's engine against vLLM and generate, in tokens per second; FLOP utilisation and memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import sampling_parts
from flops import FORWARD, with_utilisation
from harness import Family, Row, Settings
from measure import Figures
from random_models import model_folder
from sampling_parts import SamplingJob

ENGINES = {"native": "nashtune", "vllm": "vllm", "generate": "transformers"}


def family(settings: Settings) -> Family:
    """ENGINE-MODEL of every engine and model."""
    prompts, k, new_tokens, rows = (3, 2, 4, 4) if settings.tiny else (64, 8, 128, 256)
    if settings.quick:
        prompts, new_tokens = max(2, prompts // 4), max(4, new_tokens // 4)

    def part(engine: str, model: str) -> Callable[[Path], Figures]:
        def run(work: Path) -> Figures:
            folder = model_folder(model, work, settings.device)
            asked = [[(7 * n + 13 * i) % 250 for i in range(100)] for n in range(prompts)]
            job = SamplingJob(str(folder), asked, k, new_tokens, rows, ends=False, device=settings.device)
            figures = getattr(sampling_parts, engine)(job)
            computed = figures.get("tokens", 0) + sum(map(len, asked))  # a prompt is needed once for its K answers
            return with_utilisation(figures, folder, FORWARD, computed)

        return run

    names = {model: Path(model).name for model in settings.models}
    parts = {f"{engine}-{names[model]}": part(engine, model) for model in settings.models for engine in ENGINES}
    rows_: list[Row] = []
    for name in names.values():
        ours = f"native-{name}"
        for engine in ("vllm", "generate"):
            peer = f"{engine}, {prompts} prompts x {k} answers of {new_tokens} tokens, {rows} rows"
            both = (ours, f"{engine}-{name}", peer, ENGINES[engine])
            rows_.append(Row(f"sampling, {name}: tokens/s vs {engine}", "tokens_per_second", *both))
            rows_.append(Row(f"sampling, {name}: memory vs {engine}", "peak_gb", *both))
        for engine, package in ENGINES.items():
            part_name = f"{engine}-{name}"
            title, peer = (
                f"sampling, {name}: FLOP utilisation, {engine}",
                f"dense bf16 peak of the device, reached by {package}",
            )
            rows_.append(Row(title, "flops", part_name, part_name, peer, package, theirs_figure="peak_flops"))
    return Family(parts, rows_)
