"""The quickstart's parts against their usual tools, as ratios in one run.

    python bench/loop.py [--json] [--run RUNS/quickstart]

Seconds per stage come from a whole quickstart run (made afresh unless --run names a finished one). Sampling is compared with
transformers' batched ``generate`` at the same settings, training with TRL's DPOTrainer at its best settings here (reference
log-probs precomputed, no checkpointing, bf16 autocast). Each part runs alone, with one thread, in a process of its own.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bars import Meter, Row, arguments, finish, measure

PROMPTS, K, NEW_TOKENS = 32, 6, 64
PAIRS, BATCH = 32, 16
QUICKSTART = Path(__file__).parent.parent / "recipes" / "quickstart.yaml"


def chat_model() -> tuple[Any, Any]:
    from nashtune.model.loading import find_policy, load_tokenizer
    from nashtune.recipe import load_recipe

    policy = find_policy(load_recipe(QUICKSTART).policy)
    return policy, load_tokenizer(policy)


def prompts(tokenizer: Any) -> list[tuple[Any, list[int]]]:
    """Prompts of the quickstart with their token ids."""
    from itertools import islice

    from nashtune.model.loading import render
    from nashtune.prompt_sets import PROMPT_SETS

    chosen = [item.prompt for item in islice(PROMPT_SETS["constraints"](0), 0, 9 * PROMPTS, 9)]
    return [(prompt, render(tokenizer, prompt.messages)) for prompt in chosen]


def sample_native() -> Row:
    import torch

    from nashtune.sampling.engine import Request, SamplingParams
    from nashtune.sampling.native import open_native
    from nashtune.seeds import seed_for

    policy, tokenizer = chat_model()
    engine = open_native(policy, torch.bfloat16, slots=40)
    params = SamplingParams(0.7, 0.95, 0, NEW_TOKENS)
    requests = [
        Request(p.id, p.messages, tuple(ids), tuple(seed_for("bench", p.id, k) for k in range(K)))
        for p, ids in prompts(tokenizer)
    ]
    list(engine.generate(requests[:2], params))
    with Meter() as meter:
        tokens = sum(len(done.token_ids) for done in engine.generate(requests, params))
    return meter.row(tokens)


def sample_generate() -> Row:
    """Batches of 8 prompts x K answers, sorted by length, as a careful user would."""
    import torch

    from nashtune.model.loading import load_model

    policy, tokenizer = chat_model()
    model: Any = load_model(policy, torch.bfloat16, attention="sdpa").eval()
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.eos_token
    rows = sorted((ids for _, ids in prompts(tokenizer)), key=len)
    settings = {"do_sample": True, "temperature": 0.7, "top_p": 0.95, "top_k": 0, "max_new_tokens": NEW_TOKENS}

    def answer(batch: list[list[int]]) -> int:
        inputs = tokenizer.pad({"input_ids": batch}, return_tensors="pt")
        width = inputs["input_ids"].shape[1]
        out = model.generate(**inputs, **settings, num_return_sequences=K, pad_token_id=tokenizer.eos_token_id)
        ends = out[:, width:] == tokenizer.eos_token_id
        lengths = torch.where(ends.any(1), ends.int().argmax(1) + 1, torch.tensor(out.shape[1] - width))
        return int(lengths.sum())

    torch.manual_seed(0)
    with torch.inference_mode():
        answer(rows[:1])
        with Meter() as meter:
            tokens = sum(answer(rows[i : i + 8]) for i in range(0, len(rows), 8))
    return meter.row(tokens)


def training_texts() -> list[dict[str, str]]:
    """Pairs of answers of about 20 to 200 tokens to prompts of the quickstart."""
    from itertools import islice

    from nashtune.prompt_sets import PROMPT_SETS

    draw = random.Random(0)
    asked = [item.prompt.text for item in islice(PROMPT_SETS["constraints"](0), 0, 9 * PAIRS, 9)]
    words = sorted({word for text in asked for word in text.split()})

    def answer() -> str:
        return " ".join(draw.choices(words, k=draw.randint(15, 150)))

    return [{"prompt": text, "chosen": answer(), "rejected": answer()} for text in asked]


def train_native() -> Row:
    from nashtune.model.loading import render
    from nashtune.recipe import TrainSection, objective_section
    from nashtune.records import Message
    from nashtune.training.packing import TrainingPair
    from nashtune.training.trainer import TrainJob, train_policy

    policy, tokenizer = chat_model()

    def ids(text: str) -> tuple[int, ...]:
        return (*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)

    def pair(number: int, row: dict[str, str]) -> TrainingPair:
        prompt = tuple(render(tokenizer, [Message("user", row["prompt"])]))
        return TrainingPair(str(number), prompt, ids(row["chosen"]), ids(row["rejected"]), 1.0, 0.0, None, None)

    pairs = [pair(number, row) for number, row in enumerate(training_texts())]
    settings = TrainSection(batch_size=BATCH, learning_rate=5e-6, precision="autocast")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        objective = objective_section("dno-prct", alpha=0.0)
        job = TrainJob(pairs, policy, {"t": policy}, objective, settings, 5e-6, 0, 1, place / "work", place / "policy")
        with Meter() as meter:
            result = train_policy(job)
    return meter.row(result.tokens) | {"mean_loss": round(result.metrics["loss"], 4)}


def train_trl() -> Row:
    """The whole job as a TRL user would run it: tokenise, reference pass, train, save."""
    import torch
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from nashtune.model.loading import load_model

    policy, tokenizer = chat_model()
    rows = [
        {"prompt": [{"role": "user", "content": row["prompt"]}]}
        | {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
        for row in sorted(training_texts(), key=lambda row: len(row["chosen"]) + len(row["rejected"]))  # little padding
    ]
    model: Any = load_model(policy, torch.float32, attention="sdpa")
    with tempfile.TemporaryDirectory() as folder:
        settings = DPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=True,
            beta=0.1,
            learning_rate=5e-6,
            lr_scheduler_type="constant",
            per_device_train_batch_size=8,
            gradient_accumulation_steps=BATCH // 8,
            num_train_epochs=1,
            gradient_checkpointing=False,
            precompute_ref_log_probs=True,
            precompute_ref_batch_size=8,
            train_sampling_strategy="sequential",
            save_strategy="no",
            logging_steps=1,
            report_to=[],
            disable_tqdm=True,
        )
        with Meter() as meter:
            data = Dataset.from_list(rows)
            trainer = DPOTrainer(model=model, args=settings, train_dataset=data, processing_class=tokenizer)
            done = trainer.train()
            trainer.save_model(folder)
        tokens = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in trainer.train_dataset)
    return meter.row(tokens) | {"mean_loss": round(done.training_loss, 4)}


PARTS = {f.__name__.replace("_", "-"): f for f in (sample_native, sample_generate, train_native, train_trl)}


def quickstart(finished: str | None) -> Row:
    """Seconds per stage of each iteration."""
    from nashtune.run import Run
    from nashtune.show import status_json

    if finished:
        return status_json(Run.read(finished))
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).with_name("nashtune")), "run", str(QUICKSTART), f"folder={folder}"]
        subprocess.run(command, check=True, stdout=sys.stderr)
        return status_json(Run.read(Path(folder) / "quickstart"))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--run", help="a finished quickstart run to read the stages' seconds from")
    options = parser.parse_args()
    if options.part:
        import json

        print(json.dumps(PARTS[options.part]()))
        return
    rows = {name: measure(__file__, name) for name in PARTS}
    stages = {row["iteration"]: row["seconds"] for row in quickstart(options.run)["iterations"]}
    if not options.json:
        for name, row in rows.items():
            print(f"{name:<16} {row['tokens_per_cpu_second']:>8} tokens per CPU-second   {row['peak_gb']:>6} GB")
        for iteration, seconds in stages.items():
            print(f"iteration {iteration}: " + ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()))
    rate = {name: row["tokens_per_cpu_second"] for name, row in rows.items()}
    memory = rows["train-native"]["peak_gb"] / rows["train-trl"]["peak_gb"]
    bars = {
        "sampling vs generate": (rate["sample-native"] / rate["sample-generate"], lambda x: x >= 2, "at least 2"),
        "training vs TRL": (rate["train-native"] / rate["train-trl"], lambda x: x >= 3, "at least 3"),
        "training memory vs TRL": (memory, lambda x: x <= 0.6, "at most 0.6"),
        "quickstart seconds": (sum(sum(s.values()) for s in stages.values()), lambda x: x <= 360, "at most 360"),
    }
    finish({"parts": rows, "seconds_per_stage": stages}, bars, options.json)


if __name__ == "__main__":
    main()
