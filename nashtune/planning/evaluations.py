"""What evaluations by suites will ask, of the policy and of judges; by the published data's sizes."""

from __future__ import annotations

from collections.abc import Iterator

from nashtune.planning.bills import Bill
from nashtune.recipe import Recipe, SuiteSection
from nashtune.summaries import AVERAGE

WORST_BYTES = 4
"""Bytes of a token, each of which counts as one where a budget reserves."""


def evaluations_of(recipe: Recipe, iteration: int) -> Iterator[SuiteSection]:
    """The suites that an iteration is evaluated by; at the end those of the exported policy, taken to be the last one."""
    last = AVERAGE if recipe.average == "weights" else recipe.iterations
    for section in recipe.evaluate:
        ends = (0, last)
        if iteration in ends or (section.when == "each" and iteration != AVERAGE):
            yield section


def evaluation_bills(section: SuiteSection, answer_tokens: float) -> list[Bill]:
    """Each judge's bill for one call, ``answer_tokens`` being the expected length of the policy's answers."""
    asks = section.asks()
    if asks is None:
        return []
    longest = getattr(section, "max_new_tokens", 0)
    return [
        Bill(
            engine=engine,
            calls=1,
            prompt_tokens=asks.tokens + asks.answers * answer_tokens,
            completion_tokens=asks.reply,
            worst_prompt=WORST_BYTES * (asks.tokens + asks.answers * longest),
            worst_completion=asks.longest,
        )
        for engine in section.judges
    ]
