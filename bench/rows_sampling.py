"""Sampling on the quickstart's model and prompts against generate, generate_batch and vLLM: tokens per CPU-second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import sampling_parts
from harness import Bar, Family, Row, Settings
from measure import Figures
from quickstart_work import quickstart_model, quickstart_prompts, rendered
from sampling_parts import SamplingJob

K = 5
ROWS = 40
"""Sequences decoded together by all engines (8 prompts x K)."""


def family(settings: Settings) -> Family:
    """native, generate, generate-batch, vllm."""
    count, new_tokens = (8, 24) if settings.quick else (32, 64)

    def part(engine: Callable[[SamplingJob], Figures]) -> Callable[[Path], Figures]:
        def run(_: Path) -> Figures:
            model = quickstart_model()
            return engine(SamplingJob(model, rendered(model, quickstart_prompts(count)), K, new_tokens, ROWS))

        return run

    engines = ("native", "generate", "generate_batch", "vllm")
    parts = {name: part(getattr(sampling_parts, name)) for name in engines}
    rate = "tokens_per_cpu_second"
    same = "bf16 where fast, one thread"
    return Family(
        parts,
        [
            Row(
                "sampling vs generate",
                rate,
                "native",
                "generate",
                f"generate, batches of {ROWS // K} prompts x {K}, sorted by length, sdpa, {same}",
                "transformers",
                Bar("at least", 2.5),
            ),
            Row(
                "sampling vs generate_batch",
                rate,
                "native",
                "generate_batch",
                f"generate_batch (continuous batching), {same}",
                "transformers",
                Bar("at least", 1),
            ),
            Row(
                "sampling vs vllm",
                rate,
                "native",
                "vllm",
                f"vLLM offline, prefix caching, compiled, {same}",
                "vllm",
                Bar("at least", 1),
            ),
            Row("sampling memory vs generate", "peak_gb", "native", "generate", f"generate, {same}", "transformers"),
        ],
        repeats=2,
    )
