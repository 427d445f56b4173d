"""The peer of the whole iteration: what a careful user writes with transformers and TRL.

Answers come from ``generate`` in batches sorted by length, training is TRL's DPOTrainer at its best settings, and everything
happens once in one process. Prompts, rules, pair rule and settings are those of the recipe, so both do the same work.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training_parts import TrainingJob, train_with_trl

from nashtune.judging.rules import RulesOracle
from nashtune.pairs import build_pairs
from nashtune.recipe import Recipe
from nashtune.records import Judgment, Prompt, Response, Source
from nashtune.sampling.defects import find_defects
from nashtune.seeds import content_hash

Sets = dict[str, list[Response]]
"""Answers by prompt id."""


@dataclass
class Counts:
    """What was done, to be compared with the other side's."""

    tokens: int = 0
    pairs: int = 0
    trained_tokens: int = 0
    wins: list[float] = field(default_factory=list)


def iterate(recipe: Recipe, model: str, prompts: Sequence[Prompt], held_out: Sequence[Prompt], folder: Path) -> Counts:
    """Iterations 0 and 1 of Algorithm 2: validate, sample, judge, pair, train, validate."""
    counts, oracle = Counts(), RulesOracle(recipe.oracle)  # type: ignore[arg-type]
    n, k = recipe.teacher.n, recipe.validate_.k  # type: ignore[union-attr]
    sampler = _Sampler(recipe, model, counts)
    teacher_held_out = _best(oracle, held_out, sampler.answers(held_out, n, "teacher-validate", "teacher"))
    initial = sampler.answers(held_out, k, "initial", "student")
    _judge_all(oracle, held_out, initial, teacher_held_out)
    teacher = _best(oracle, prompts, sampler.answers(prompts, n, "teacher", "teacher"))
    students = sampler.answers(prompts, recipe.sampling.k, "student", "student")
    del sampler
    gc.collect()
    judged = _judge_all(oracle, prompts, students, teacher)
    pairs = build_pairs(judged, recipe.pairs, 1, recipe.seed).pairs
    counts.pairs = len(pairs)
    text = {r.id: r.text for _, responses, _ in judged for r in responses}
    asked = {prompt.id: prompt.text for prompt in prompts}
    job = TrainingJob(
        model,
        [{"prompt": asked[p.prompt_id], "chosen": text[p.chosen_id], "rejected": text[p.rejected_id]} for p in pairs],
        batch_size=recipe.train.batch_size,
        learning_rate=recipe.learning_rate(1),
        beta=recipe.objective.settings["beta"],
        alpha=recipe.objective.settings["alpha"],
        warmup_steps=recipe.train.warmup_steps,
    )
    _, data = train_with_trl(job, folder, "best")
    counts.trained_tokens = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in data)
    del data
    gc.collect()
    trained = _Sampler(recipe, str(folder), counts).answers(held_out, k, "policy", "student")
    sets = _judge_all(oracle, held_out, trained, initial, teacher_held_out)
    counts.wins = [_wins(judgment, k) for _, _, judgment in sets]
    return counts


class _Sampler:
    """transformers' generate over batches of prompts."""

    def __init__(self, recipe: Recipe, model: str, counts: Counts):
        import torch
        from measure import bf16_is_fast
        from transformers import AutoModelForCausalLM, AutoTokenizer

        dtype = torch.bfloat16 if bf16_is_fast() else torch.float32
        self.recipe, self.counts = recipe, counts
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model, padding_side="left")
        self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, attn_implementation="sdpa").eval()
        torch.manual_seed(recipe.seed)

    def answers(self, prompts: Sequence[Prompt], k: int, purpose: str, source: Source) -> Sets:
        """K answers to each prompt, ROWS sequences at a time."""
        rendered = {p.id: self._render(p) for p in prompts}
        ordered = sorted(prompts, key=lambda p: len(rendered[p.id]))
        size = max(1, ROWS // k)
        sets: Sets = {}
        for start in range(0, len(ordered), size):
            batch = ordered[start : start + size]
            rows = self._generate([rendered[p.id] for p in batch], k)
            for place, prompt in enumerate(batch):
                mine = rows[place * k : (place + 1) * k]
                sets[prompt.id] = [self._response(prompt, i, row, purpose, source) for i, row in enumerate(mine)]
        return sets

    def _render(self, prompt: Prompt) -> list[int]:
        chat = [{"role": m.role, "content": m.content} for m in prompt.messages]
        text = self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _generate(self, batch: list[list[int]], k: int) -> list[list[int]]:
        """Token ids of the answers, prompt by prompt, up to and with the end token."""
        import torch

        settings = self.recipe.sampling
        end = self.tokenizer.eos_token_id
        with torch.inference_mode():
            inputs = self.tokenizer.pad({"input_ids": batch}, return_tensors="pt")
            out = self.model.generate(
                **inputs,
                do_sample=True,
                temperature=settings.temperature,
                top_p=settings.top_p,
                top_k=settings.top_k,
                max_new_tokens=settings.max_new_tokens,
                num_return_sequences=k,
                pad_token_id=end,
            )
        rows = out[:, inputs["input_ids"].shape[1] :].tolist()
        return [row[: row.index(end) + 1] if end in row else row for row in rows]

    def _response(self, prompt: Prompt, k: int, ids: list[int], purpose: str, source: Source) -> Response:
        self.counts.tokens += len(ids)
        finish = "stop" if ids[-1] == self.tokenizer.eos_token_id else "length"
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return Response(
            id=content_hash(purpose, prompt.id, k),
            prompt_id=prompt.id,
            k=k,
            source=source,
            policy=purpose,
            text=text,
            token_ids=tuple(ids),
            finish=finish,
            defects=find_defects(text, finish, self.recipe.sampling.defects),
        )


ROWS = 48
"""Sequences that generate decodes together."""


def _judge_all(
    oracle: RulesOracle, prompts: Sequence[Prompt], *groups: Sets
) -> list[tuple[Prompt, list[Response], Judgment]]:
    """Each prompt with all its candidates and the oracle's word on them."""

    async def judge() -> list[tuple[Prompt, list[Response], Judgment]]:
        sets = [(prompt, [r for group in groups for r in group[prompt.id]]) for prompt in prompts]
        return [(prompt, answers, await oracle.judge(prompt, answers, 0)) for prompt, answers in sets]

    return asyncio.run(judge())


def _best(oracle: RulesOracle, prompts: Sequence[Prompt], pool: Sets) -> Sets:
    """The teacher: the best answer of a pool by the oracle; ties go to the earlier one."""
    best: Sets = {}
    for prompt, answers, judgment in _judge_all(oracle, prompts, pool):
        scores = [-1.0 if score is None else score for score in judgment.scores or ()]
        best[prompt.id] = [answers[scores.index(max(scores))]]
    return best


def _wins(judgment: Judgment, k: int) -> float:
    """Share of contests that the first k answers (the policy's) win against the next k (the initial one's)."""
    contests = [judgment.preference(i, j) for i in range(k) for j in range(k, 2 * k)]
    known = [p for p in contests if p is not None]
    return sum(known) / len(known)
