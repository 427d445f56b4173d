"""One preference-training job done by nashtune's trainer and by TRL's, in TRL's default and best settings."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from measure import Figures, Meter, bf16_is_fast, on_cuda

Texts = dict[str, str]
"""A pair: prompt, chosen, rejected."""


@dataclass(frozen=True)
class TrainingJob:
    """Pairs, and what both trainers are told alike: eq. 13 of arXiv 2404.03715 (DPO against the policy itself), AdamW,
    bf16 autocast over fp32 weights where bf16 is fast."""

    model: str
    pairs: Sequence[Texts]
    batch_size: int = 16
    learning_rate: float = 5e-6
    beta: float = 0.1
    alpha: float = 0.0
    """Weight of the chosen answer's NLL per token."""
    warmup_steps: int = 0
    device: str = "cpu"
    compiled: bool = False
    """nashtune's train.compile."""


def random_pairs(prompts: Sequence[str], words: tuple[int, int] = (15, 150)) -> list[Texts]:
    """Answers of random words of the prompts to each of them; with the default, about 20 to 200 tokens long."""
    draw = random.Random(0)
    known = sorted({word for text in prompts for word in text.split()})

    def answer() -> str:
        return " ".join(draw.choices(known, k=draw.randint(*words)))

    return [{"prompt": text, "chosen": answer(), "rejected": answer()} for text in prompts]


def native(job: TrainingJob) -> Figures:
    """nashtune's trainer: tokens in, reference log-probs, steps, the saved policy."""
    from nashtune.model.loading import find_policy, load_tokenizer, render
    from nashtune.recipe import PolicySection, TrainSection, objective_section
    from nashtune.records import Message
    from nashtune.training.job import StepMetrics, TrainJob
    from nashtune.training.packing import TrainingPair
    from nashtune.training.trainer import train_policy

    policy = find_policy(PolicySection(model=job.model))
    tokenizer: Any = load_tokenizer(policy)
    steps: list[StepMetrics] = []

    def ids(text: str) -> tuple[int, ...]:
        return (*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)

    with tempfile.TemporaryDirectory() as folder, Meter() as meter:
        pairs = [
            TrainingPair(
                str(number),
                tuple(render(tokenizer, [Message("user", row["prompt"])])),
                ids(row["chosen"]),
                ids(row["rejected"]),
                1.0,
                0.0,
                None,
                None,
            )
            for number, row in enumerate(job.pairs)
        ]
        result = train_policy(
            TrainJob(
                pairs=pairs,
                policy=policy,
                references={"t": policy},
                objective=objective_section("dno-prct", alpha=job.alpha, beta=job.beta),
                train=TrainSection(batch_size=job.batch_size, warmup_steps=job.warmup_steps, compile=job.compiled),
                learning_rate=job.learning_rate,
                seed=0,
                iteration=1,
                folder=Path(folder) / "work",
                output=Path(folder) / "policy",
            ),
            steps.append,
        )
    read = sum(len(p.prompt_ids) for p in pairs)
    later = sum(step.seconds for step in steps[1:])  # the first one has the compiling in it
    return meter.figures(result.tokens) | {
        "prompt_tokens": read,
        "mean_loss": result.metrics["loss"],
        "later_steps_s": later,
    }


def trl(job: TrainingJob, settings: Literal["default", "best"]) -> Figures:
    """TRL's DPOTrainer: tokenise, reference log-probs, steps, the saved policy."""
    with tempfile.TemporaryDirectory() as folder, Meter() as meter:
        done, data = train_with_trl(job, Path(folder), settings)
    tokens = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in data)
    read = sum(len(row["prompt_ids"]) for row in data)
    return meter.figures(tokens) | {"prompt_tokens": read, "mean_loss": done.training_loss}


def train_with_trl(job: TrainingJob, folder: Path, settings: Literal["default", "best"]) -> tuple[Any, Any]:
    """Train and save to ``folder``; returns TRL's result and the data set as it tokenised it.

    best: reference log-probs computed once, no checkpointing, and pairs sorted by length, so that little is padding.
    (``padding_free`` is disabled in TRL 1.16: it warns and pads.) default: what DPOConfig says, at the job's batch size.
    """
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    best = settings == "best"
    per_step = min(BEST_BATCH if best else 8, job.batch_size)  # 8 is DPOConfig's default
    pairs = sorted(job.pairs, key=_length) if best else job.pairs
    chat = [
        {"prompt": [{"role": "user", "content": row["prompt"]}]}
        | {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
        for row in pairs
    ]
    options: dict[str, Any] = {}
    if best:
        options = {"gradient_checkpointing": False, "precompute_ref_log_probs": True}
        options |= {"precompute_ref_batch_size": per_step, "train_sampling_strategy": "sequential"}
    if job.alpha:  # DPO plus alpha NLL: what older versions called rpo_alpha
        options |= {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, job.alpha]}
    config = DPOConfig(
        output_dir=str(folder),
        use_cpu=not on_cuda(),
        bf16=bf16_is_fast(),
        beta=job.beta,
        learning_rate=job.learning_rate,
        lr_scheduler_type="constant_with_warmup" if job.warmup_steps else "constant",
        warmup_steps=job.warmup_steps,
        adam_beta2=0.95,
        per_device_train_batch_size=per_step,
        gradient_accumulation_steps=job.batch_size // per_step,
        num_train_epochs=1,
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        **options,
    )
    tokenizer: Any = AutoTokenizer.from_pretrained(job.model)
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype="float32", attn_implementation="sdpa")
    trainer = DPOTrainer(model=model, args=config, train_dataset=Dataset.from_list(chat), processing_class=tokenizer)
    done = trainer.train()
    trainer.save_model(str(folder))
    return done, trainer.train_dataset


BEST_BATCH = 1
"""Pairs computed at once by TRL at its best: of 1, 2, 4, 8 and 16 the fastest on a CPU for short and long answers alike, and the
leanest (README.md has the figures). Its batches are padded to their longest answer."""


def _length(pair: Texts) -> int:
    return max(len(pair["chosen"]), len(pair["rejected"]))
