"""Training on pairs of about 20 to 200 tokens against TRL's DPOTrainer: answer tokens per CPU-second, peak memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import training_parts
from harness import Bar, Family, Row, Settings
from measure import Figures
from quickstart_work import quickstart_model, quickstart_prompts
from training_parts import TrainingJob


def family(settings: Settings) -> Family:
    """native, trl-best, trl-default, compiled."""
    count, batch = (4, 4) if settings.quick else (16, 8)

    def part(trainer: Callable[[TrainingJob], Figures]) -> Callable[[Path], Figures]:
        def run(_: Path) -> Figures:
            texts = [prompt.text for prompt in quickstart_prompts(count)]
            pairs = training_parts.random_pairs(texts)
            return trainer(TrainingJob(quickstart_model(), pairs, batch_size=batch))

        return run

    def compiled(_: Path) -> Figures:
        texts = [prompt.text for prompt in quickstart_prompts(6 * batch)]
        job = TrainingJob(quickstart_model(), training_parts.random_pairs(texts), batch_size=batch)
        done = {
            name: training_parts.native(replace(job, compiled=name == "compiled")) for name in ("plain", "compiled")
        }
        return done["compiled"] | {"plain_steps_s": done["plain"]["later_steps_s"]}

    parts = {
        "compiled": compiled,
        "native": part(training_parts.native),
        "trl-best": part(lambda job: training_parts.trl(job, "best")),
        "trl-default": part(lambda job: training_parts.trl(job, "default")),
    }
    rate = "tokens_per_cpu_second"
    best = "DPOTrainer, precomputed reference, no checkpointing, sorted by length, bf16 autocast"
    default = "DPOTrainer, default settings (checkpointing, reference beside the policy), bf16 autocast"
    return Family(
        parts,
        [
            Row("training vs TRL's best", rate, "native", "trl-best", best, "trl", Bar("at least", 3)),
            Row("training vs TRL's default", rate, "native", "trl-default", default, "trl", Bar("at least", 3)),
            Row("training memory vs TRL's best", "peak_gb", "native", "trl-best", best, "trl", Bar("at most", 0.6)),
            Row("training memory vs TRL's default", "peak_gb", "native", "trl-default", default, "trl"),
            Row(
                "steps with train.compile, times fewer seconds",
                "later_steps_s",
                "compiled",
                "compiled",
                "the same job without it, five steps after the first, one process",
                inverse=True,
                theirs_figure="plain_steps_s",
            ),
        ],
        repeats=2,
    )
