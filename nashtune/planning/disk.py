"""Bytes a run leaves on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nashtune.planning.estimate import Row
from nashtune.recipe import Recipe

SAMPLE_BYTES = 8
"""A sampled token, as text and as id, in parquet."""
REPLY_BYTES = 5
"""A token of a judge's or teacher's reply in the ledger, and in the judgments."""
CALL_BYTES = 1500
"""What else the ledger keeps of a call: request summary, usage, headers of the reply."""
FLOATS = 3
"""fp32 figures of a checkpoint for each trained weight: itself and two moments."""


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes. ``policies`` of all iterations and ``checkpoint`` (of the iteration in training; two while one is written) are
    None where the model's size is not known here."""

    parameters: int | None
    policies: int | None
    checkpoint: int | None
    samples: int
    ledger: int

    @property
    def total(self) -> int | None:
        if self.policies is None or self.checkpoint is None:
            return None
        return self.policies + 2 * self.checkpoint + self.samples + self.ledger


def disk_of(recipe: Recipe, parameters: int | None, rows: Sequence[Row]) -> Disk:
    """From the number of weights and the estimate's rows. ``best/`` is hard-linked; adapters' checkpoints are taken as none."""
    width = 2 if recipe.train.save_dtype == "bfloat16" else 4
    average = 4 if recipe.average == "weights" else 0  # float32
    calls, replies = sum(row.calls for row in rows), sum(row.completion_tokens for row in rows)
    sampled = sum(row.tokens for row in rows if row.stage != "train")
    return Disk(
        parameters=parameters,
        policies=None if parameters is None else parameters * (width * recipe.iterations + average),
        checkpoint=None if parameters is None else 0 if recipe.train.lora else parameters * 4 * FLOATS,
        samples=round(sampled * SAMPLE_BYTES),
        ledger=round(calls * CALL_BYTES + replies * REPLY_BYTES),
    )
