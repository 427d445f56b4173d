"""Training on one GPU: nashtune's trainer against TRL's DPOTrainer, in answer tokens per second; FLOP utilisation, memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import training_parts
from flops import FORWARD, FORWARD_AND_BACKWARD, check_fits, with_utilisation
from harness import Family, Row, Settings
from measure import Figures
from random_models import model_folder
from training_parts import TrainingJob

TRAINERS: dict[str, Callable[[TrainingJob], Figures]] = {
    "native": training_parts.native,
    "trl": lambda job: training_parts.trl(job, "best"),
}
BYTES_PER_WEIGHT = 16
"""fp32 weights, gradients and two moments."""


def family(settings: Settings) -> Family:
    """TRAINER-MODEL of both trainers and every model."""
    pairs, batch, words = (2, 2, (3, 6)) if settings.tiny else (64, 32, (40, 120))
    if settings.quick:
        pairs = batch

    def part(trainer: str, model: str) -> Callable[[Path], Figures]:
        def run(work: Path) -> Figures:
            folder = model_folder(model, work, settings.device)
            check_fits(folder, BYTES_PER_WEIGHT)
            prompts = [f"Question {n}: what is {n * n % 97} plus {n}, and why does it matter?" for n in range(pairs)]
            job = TrainingJob(str(folder), training_parts.random_pairs(prompts, words), batch, device=settings.device)
            figures = TRAINERS[trainer](job)
            # The reference pass and the training pass over every answer; prompts once a pair.
            computed = figures["tokens"] + figures["prompt_tokens"]
            return with_utilisation(figures, folder, FORWARD + FORWARD_AND_BACKWARD, computed)

        return run

    names = {model: Path(model).name for model in settings.models}
    parts = {f"{trainer}-{names[model]}": part(trainer, model) for model in settings.models for trainer in TRAINERS}
    rows: list[Row] = []
    for name in names.values():
        both = (f"native-{name}", f"trl-{name}", f"DPOTrainer at its best, {pairs} pairs, batches of {batch}", "trl")
        rows.append(Row(f"training, {name}: tokens/s vs TRL", "tokens_per_second", *both))
        rows.append(Row(f"training, {name}: memory vs TRL", "peak_gb", *both))
        for trainer, package in (("native", "nashtune"), ("trl", "trl")):
            part_name = f"{trainer}-{name}"
            title, peer = (
                f"training, {name}: FLOP utilisation, {trainer}",
                f"dense bf16 peak of the device, reached by {package}",
            )
            rows.append(Row(title, "flops", part_name, part_name, peer, package, theirs_figure="peak_flops"))
    return Family(parts, rows)
