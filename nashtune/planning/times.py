"""Seconds of stages from a calibration's figures: arithmetic only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nashtune.planning.start import Start

NO_START = "starting processes and loading libraries: not measured by this calibration, left out"


@dataclass(frozen=True, slots=True)
class Times:
    """What a calibration measured on this machine with the recipe's model and settings. Seconds.

    A decoding step of n rows takes ``step + row * n``, the prompt tokens of a unit ``prefill`` each; rates are those of one of
    ``workers`` processes while all of them work.
    """

    machine: str
    workers: int
    slots: int
    step: float
    row: float
    prefill: float
    load_sampler: float
    answer_tokens: float
    """Mean length of an answer (tokens)."""
    answer_characters: float
    longest_answer: float
    prompt_tokens: float
    """Mean length of a prompt (tokens)."""
    answers: int
    """Answers seen."""
    judge: float | None
    """Judging one candidate; None for a judge that is paid or waited for."""
    pairs_per_prompt: float | None
    """New pairs; None where the judge was not asked."""
    train_pair: float
    """Optimizer steps, for each pair."""
    reference_pair: float
    """Reference log-probs, for each pair and reference."""
    train_fixed: float
    """Pairs' tokens looked up, the model loaded, checked and saved, and what the first step takes more than later ones."""
    load_scorer: float
    """Loading a policy that scores answers, checked."""
    score: float
    """Scoring one answer."""
    load_judge: float = 0.0
    """Opening the judge, which each stage of judging does: a model that computes here is loaded. In a calibration made before it
    was measured, it is in ``judge``."""
    start: Start | None = None
    """None: not measured, as in a calibration made before it was; such plans leave it out and say so."""

    def sampling(self, prompts: int, n: int, unit_prompts: int, models: int, *, load: bool) -> float:
        """Drawing ``n`` answers to each prompt, unit by unit, on all workers."""
        costs = [models * self.unit(size, n) for size in _units(prompts, unit_prompts)]
        return self._shared(costs) + (models * self.load_sampler if load else 0.0)

    def scoring(self, prompts: int, n: int, unit_prompts: int) -> float:
        """Log-probs of ``n`` answers to each prompt under another policy."""
        return self._shared([size * n * self.score for size in _units(prompts, unit_prompts)]) + self.load_scorer

    def _shared(self, costs: Sequence[float]) -> float:
        """Units of these costs on all workers."""
        workers = max(1, min(self.workers, len(costs)))
        busy = [0.0] * workers
        for cost in costs:  # each unit goes to the worker that is free first
            busy[busy.index(min(busy))] += cost
        return max(busy)

    def unit(self, prompts: int, n: int) -> float:
        rows = prompts * n
        steps = self.longest_answer + max(0.0, rows - self.slots) * self.answer_tokens / self.slots
        return self.step * steps + self.row * rows * self.answer_tokens + self.prefill * prompts * self.prompt_tokens

    def assumptions(self) -> list[str]:
        """What the predicted seconds rest on."""
        return [
            f"sampling: {1000 * self.step:.1f} ms a step and {1000 * self.row:.2f} ms a row, {self.workers} processes, and later "
            f"policies answer at the first one's length ({self.answer_tokens:.0f} tokens of at most {self.longest_answer:.0f})",
            f"training: {self.train_pair:.2f} s a pair and {self.reference_pair:.2f} s for its reference log-probs, "
            f"{self.train_fixed:.1f} s to load and save; later iterations find as many pairs as the first",
            "stages: each alone, nothing else on the machine; a judge that works beside the sampler hides the shorter of both",
            self.start.assumptions() if self.start else NO_START,
        ]

    def judging(self, sets: int, candidates: int) -> float | None:
        return None if self.judge is None else self.load_judge + sets * candidates * self.judge

    def training(self, pairs: float, references: int, epochs: int) -> float:
        """From looking up the pairs' tokens to the saved policy."""
        return self.train_fixed + pairs * (references * self.reference_pair + epochs * self.train_pair)


def _units(prompts: int, unit_prompts: int) -> list[int]:
    """Prompts of each unit."""
    return [min(unit_prompts, prompts - start) for start in range(0, prompts, unit_prompts)]
