"""The settings of prompts: where they come from, which are left out, how they are divided."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from nashtune.recipe.base import ADDED, Rate, Section


class DedupeSection(Section):
    """Removal of repeated prompts."""

    exact: bool = True
    """Drop prompts equal after NFC and whitespace folding."""
    near: Rate | None = 0.9
    """Drop prompts whose word 5-gram Jaccard similarity with a kept one is at least this; null keeps them."""


class ValidationSplit(Section):
    """Held-out prompts; never trained on."""

    count: int = Field(default=64, ge=1)
    """Number of prompts held out."""
    source: str | None = None
    """A separate source for validation prompts (same formats); null holds out a part of `prompts.source`."""


class ContaminationSection(Section):
    """Training prompts that share a run of words with the prompts of evaluations."""

    against: tuple[str, ...] = Field(min_length=1)
    """The evaluations' prompts: sources of the same kinds as `prompts.source`."""
    words: int = Field(default=10, ge=3)
    """Length of a run of words that counts; a shorter evaluation prompt counts as a whole."""
    drop: bool = True
    """Leave such prompts out of training; false only counts them."""


class PromptsSection(Section):
    """What the policy is asked."""

    source: str
    """A file (.jsonl, .json, .parquet, .csv, .txt), a folder of them, a saved data set folder, a Hugging Face data set
    name, or `nashtune:constraints` (the built-in verifiable instructions)."""
    split: str = "train"
    """Split of a Hugging Face data set."""
    prompt_column: str | None = None
    """Column with a string or a list of chat messages; null takes the first of messages, prompt, instruction,
    question, text that exists."""
    system: str | None = None
    """System prompt put before prompts that bring none."""
    teacher_column: str | None = None
    """Column with the teacher's answer."""
    on_bad_row: Literal["strict", "skip"] = "strict"
    """strict: a bad row ends the run with its line and reason; skip: it is counted and left out."""
    dedupe: DedupeSection = DedupeSection()
    contamination: ContaminationSection | None = Field(default=None, json_schema_extra=ADDED)
    """Look for overlap with evaluations; null does not."""
    max_prompt_tokens: int = Field(default=1024, ge=8)
    """Prompts longer than this after the chat template are left out and counted (tokens)."""
    per_iteration: int | None = Field(default=None, ge=1)
    """Prompts in each iteration's part (disjoint); null divides all prompts evenly among the iterations."""
    validation: ValidationSplit = ValidationSplit()
    streaming: bool = Field(default=False, json_schema_extra=ADDED)
    """Read, deduplicate and split on disk rather than in memory, for millions of prompts. Needs dedupe.near null, and chance
    rather than an even spread decides each part's share of the verifiable instructions."""

    @model_validator(mode="after")
    def _can_stream(self) -> PromptsSection:
        if not self.streaming:
            return self
        if self.dedupe.near is not None:
            raise ValueError(
                f"streaming is true, but near duplicates (dedupe.near {self.dedupe.near:g}) are found only among prompts held "
                "in memory; accepted: dedupe.near null, or streaming false"
            )
        if (built_in := self.source).startswith("nashtune:"):
            raise ValueError(f"streaming is true, but {built_in!r} is small and not read from a file; accepted: false")
        return self
