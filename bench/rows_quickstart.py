"""The whole quickstart as users run it, two workers and all, against the seconds that it may take."""

from __future__ import annotations

import os
from pathlib import Path

from harness import Bar, Family, Row, Settings
from measure import Figures, Meter
from quickstart_work import QUICKSTART

SECONDS = 360


def family(settings: Settings) -> Family:
    """run."""

    def run(work: Path) -> Figures:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # as many threads as users get
            os.environ.pop(name, None)
        from nashtune.loop import improve
        from nashtune.recipe import load_recipe
        from nashtune.run import Run

        changes = [f"folder={work}"]
        if settings.quick:
            changes += ["iterations=1", "prompts.per_iteration=12", "prompts.validation.count=12", "sampling.k=3"]
        recipe = load_recipe(QUICKSTART, changes)
        with Meter() as meter:
            best = improve(recipe)
        stages = {summary.iteration: dict(summary.seconds) for summary in Run.read(work / recipe.name).summaries()}
        found = {"allowed": SECONDS, "best": best.iteration if best else None, "seconds_per_stage": stages}
        return meter.figures() | found

    bar = None if settings.quick else Bar("at most", 1)
    peer = f"the {SECONDS} s that it may take"
    return Family(
        {"run": run}, [Row("quickstart: seconds", "seconds", "run", "run", peer, bar=bar, theirs_figure="allowed")]
    )
