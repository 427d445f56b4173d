"""How time and memory grow: with prompts (engine and oracle scripted), answer length, K, and the size of the model.

The first are nashtune against itself at another size; the others are against generate at the same size.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import sampling_parts
import training_parts
from harness import Bar, Family, Row, Settings
from measure import Figures, Meter
from quickstart_work import quickstart_prompts
from random_models import model_folder
from sampling_parts import SamplingJob

ROWS = 40
WORDS = [f"word{n}" for n in range(997)]


def family(settings: Settings) -> Family:
    """prompts-N; native and generate at length-N, k-N, size-S; native and trl at train-S."""
    prompts = (100, 1_000, 3_000) if settings.quick else (100, 1_000, 10_000, 100_000)
    lengths, ks = ((16, 64), (1, 4)) if settings.quick else ((32, 128, 512), (1, 4, 16))
    sizes, trained = (("tiny", "30M"), "30M") if settings.quick else (("tiny", "30M", "135M", "360M", "1B"), "360M")
    usual = "30M" if settings.quick else "135M"
    parts: dict[str, Callable[[Path], Figures]] = {}
    rows: list[Row] = []
    for count in prompts:
        parts[f"prompts-{count}"] = lambda _, count=count: pipeline(count)
    rows += prompt_rows(prompts)
    jobs = {f"length-{n}": (usual, 4, 5, n) for n in lengths}
    jobs |= {f"k-{k}": (usual, 8, k, 32) for k in ks}
    jobs |= {f"size-{shape}": (shape, 8, 5, 8) for shape in sizes}
    for name, (shape, count, k, new_tokens) in jobs.items():
        for engine in ("native", "generate"):
            parts[f"{engine}-{name}"] = sampling(engine, shape, count, k, new_tokens)
        what = f"{shape} random weights, {count} prompts x {k} answers of {new_tokens} tokens"
        rows.append(
            Row(
                f"growth: sampling, {name.replace('-', ' ')}",
                "tokens_per_cpu_second",
                f"native-{name}",
                f"generate-{name}",
                f"generate, {what}",
                "transformers",
            )
        )
    for trainer in ("native", "trl"):
        parts[f"{trainer}-train-{trained}"] = training(trainer, trained)
    for title, figure in (("training", "tokens_per_cpu_second"), ("training memory", "peak_gb")):
        peer = f"DPOTrainer at its best, {trained} random weights"
        rows.append(
            Row(f"growth: {title}, {trained}", figure, f"native-train-{trained}", f"trl-train-{trained}", peer, "trl")
        )
    return Family(parts, rows)


def prompt_rows(prompts: tuple[int, ...]) -> list[Row]:
    """Time per prompt and peak memory against the smaller sizes; time per prompt should stay flat."""
    rows = []
    for before, count in pairwise(prompts[1:]):
        names = f"prompts-{count}", f"prompts-{before}"
        title = f"growth: CPU time per prompt, {count:,} prompts"
        rows.append(Row(title, "ms_per_prompt", *names, f"itself at {before:,}", bar=Bar("at most", 1.25)))
    for count in prompts[2:]:
        names = f"prompts-{count}", f"prompts-{prompts[0]}"
        bar = Bar("at most", 1.6) if count <= 10_000 else None
        rows.append(Row(f"growth: memory, {count:,} prompts", "peak_gb", *names, f"itself at {prompts[0]:,}", bar=bar))
    return rows


def pipeline(prompts: int) -> Figures:
    """Everything but the model's own work: prompts read, split, sampled, judged, turned into pairs."""
    from nashtune.recipe import parse_recipe
    from nashtune.run import Run
    from nashtune.stages.judging import judge
    from nashtune.stages.pairing import make_pairs
    from nashtune.stages.teacher import sample

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prompts.jsonl"
        with file.open("w") as stream:
            for n in range(prompts + 1):
                text = " ".join(WORDS[(n * step + step) % 997] for step in range(3, 33))
                stream.write(json.dumps({"prompt": f"Question {n}: {text}?"}) + "\n")
        recipe = parse_recipe(
            {
                "name": "growth",
                "folder": folder,
                "iterations": 1,
                "policy": {"model": "none needed"},
                "prompts": {"source": str(file), "per_iteration": prompts, "validation": {"count": 1}},
                "sampling": {"engine": "scripted", "k": 5, "max_new_tokens": 200, "unit_prompts": 50},
                "teacher": {"kind": "scripted"},
                "oracle": {"kind": "scripted"},
                "pairs": {"max_per_prompt": 2},
            }
        )
        with Meter() as meter, Run.open(recipe) as run:
            pairs = make_pairs(run, judge(run, sample(run, 1)))
    return meter.figures() | {"pairs": len(pairs), "ms_per_prompt": 1000 * meter.cpu / prompts}


def sampling(engine: str, shape: str, prompts: int, k: int, new_tokens: int) -> Callable[[Path], Figures]:
    """An engine on random weights and prompts of 40 tokens, every answer of full length."""

    def run(work: Path) -> Figures:
        folder = model_folder(shape, work)
        asked = [[(7 * n + 13 * i) % 250 for i in range(40)] for n in range(prompts)]
        return getattr(sampling_parts, engine)(SamplingJob(str(folder), asked, k, new_tokens, ROWS, ends=False))

    return run


def training(trainer: str, shape: str) -> Callable[[Path], Figures]:
    """A trainer on random weights: one step of 4 pairs of about 50 to 200 tokens (bytes)."""

    def run(work: Path) -> Figures:
        pairs = training_parts.random_pairs([prompt.text for prompt in quickstart_prompts(4)], words=(10, 40))
        job = training_parts.TrainingJob(str(model_folder(shape, work)), pairs, batch_size=4)
        return training_parts.native(job) if trainer == "native" else training_parts.trl(job, "best")

    return run
