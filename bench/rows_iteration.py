"""A whole iteration of the quickstart (one process, one thread) against the same steps with generate and TRL: seconds, memory.

Counted from the recipe to the last judgment, with libraries loaded before and models on the way; the initial policy's
validation belongs to it, as in any first iteration.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import fmean
from typing import Any

from harness import Bar, Family, Row, Settings
from measure import Figures, Meter
from quickstart_work import QUICKSTART, quickstart_model


def family(settings: Settings) -> Family:
    """native, plain-loop."""
    prompts, held_out, new_tokens = (8, 8, 32) if settings.quick else (36, 24, 64)

    def recipe(work: Path) -> Any:
        from nashtune.recipe import load_recipe

        changes = [
            f"folder={work}",
            f"name=run-{time.time_ns()}",
            "iterations=1",
            f"policy.model={quickstart_model()}",
            f"prompts.per_iteration={prompts}",
            f"prompts.validation.count={held_out}",
            f"sampling.max_new_tokens={new_tokens}",
            "scale.workers=1",
        ]
        if settings.quick:  # so short an answer seldom ends by itself
            changes.append("sampling.defects.truncated=false")
        return load_recipe(QUICKSTART, changes)

    def native(work: Path) -> Figures:
        from nashtune.loop import improve

        chosen = recipe(work)
        with Meter() as meter:
            improve(chosen)
        return meter.figures() | _counts(work / chosen.name)

    def plain(work: Path) -> Figures:
        import datasets  # noqa: F401
        import trl  # noqa: F401
        from plain_loop import iterate

        from nashtune.records import Prompt
        from nashtune.run import Run
        from nashtune.stages.prepare import prompt_part, validation_part
        from nashtune.store import tables

        chosen = recipe(work)
        with Run.open(chosen) as run:  # the very prompts that the other side gets
            asked = tables.read(Prompt, prompt_part(run, 1).file), tables.read(Prompt, validation_part(run).file)
        with Meter() as meter:
            done = iterate(chosen, chosen.policy.model, *asked, work / f"{chosen.name}-policy")
        counts = {"tokens": done.tokens, "pairs": done.pairs, "trained_tokens": done.trained_tokens}
        return meter.figures() | counts | {"win_rate": fmean(done.wins)}

    peer = "generate in batches sorted by length, TRL's DPOTrainer at its best, same prompts, rules, pair rule and settings"
    return Family(
        {"native": native, "plain-loop": plain},
        [
            Row(
                "iteration: CPU-seconds, times fewer",
                "cpu_seconds",
                "native",
                "plain-loop",
                peer,
                "trl",
                AT_LEAST,
                True,
            ),
            Row("iteration: seconds, times fewer", "seconds", "native", "plain-loop", peer, "trl", AT_LEAST, True),
            Row("iteration: memory", "peak_gb", "native", "plain-loop", peer, "trl", Bar("at most", 0.6)),
        ],
        repeats=2,
    )


AT_LEAST = Bar("at least", 3)


def _counts(folder: Path) -> Figures:
    """What the run did: tokens sampled, pairs, tokens trained on, wins over the initial policy."""
    from nashtune.run import Run

    zero, one = Run.read(folder).summaries()
    sampled = [zero.tokens, one.tokens]
    tokens = sum(count for found in sampled for name, count in found.items() if name.endswith(("sample", "pool")))
    assert one.win_rate_vs_initial is not None
    return {
        "tokens": tokens,
        "pairs": sum(one.pairs.values()),
        "trained_tokens": one.tokens["train"],
        "win_rate": one.win_rate_vs_initial.value,
    }
