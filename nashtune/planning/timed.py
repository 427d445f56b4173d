"""Work-unit roles that tell what their work took: of a calibration."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nashtune.sampling.role import Opened, Sampler
from nashtune.scale.local import Facts, Unit
from nashtune.stages.sampling import Scorer


@dataclass(frozen=True, slots=True)
class TimedSampler:
    """A sampler's unit, with the seconds of each step."""

    sampler: Sampler

    def key(self) -> str:
        return "timed " + self.sampler.key()

    def open(self) -> tuple[Opened, float]:
        import nashtune.sampling.native  # noqa: F401 - a run loads its libraries once, not with each policy

        started = time.perf_counter()
        return self.sampler.open(), time.perf_counter() - started

    def work(self, opened: tuple[Opened, float], unit: Unit) -> Facts:
        """Sample the unit and commit it; facts hold the fitted seconds (``Times``)."""
        inside, load = opened
        engine: Any = inside.engine
        rows: list[tuple[float, int, int]] = []

        def told(tokens: int) -> None:
            rows.append((time.perf_counter(), tokens, engine.prefilled_tokens))

        rows.append((time.perf_counter(), 0, engine.prefilled_tokens))
        engine.on_tokens = told
        try:
            facts = self.sampler.work(inside, unit)
        finally:
            engine.on_tokens = None
        step, row, prefill = fit_steps(rows)
        return {**facts, "load": load, "step": step, "row": row, "prefill": prefill}


def fit_steps(rows: Sequence[tuple[float, int, int]]) -> tuple[float, float, float]:
    """(time, tokens of the step, prompt tokens computed so far) per step -> seconds per step, per row of a step and per
    prompt token, by least squares; none below 0, and their total that of the steps."""
    import numpy as np

    values = np.array(rows, dtype=float)
    seconds, prefilled = np.diff(values[:, 0]), np.diff(values[:, 2])
    # Where prompts were computed, the step's tokens are the first of their answers, whose cost is the prompt's.
    columns = np.stack([prefilled == 0, np.where(prefilled == 0, values[1:, 1], 0), prefilled], 1).astype(float)
    kept = list(range(3))
    found = np.zeros(3)
    while kept:
        part, *_ = np.linalg.lstsq(columns[:, kept], seconds, rcond=None)
        if (part >= 0).all():
            found[kept] = part
            break
        kept.pop(int(part.argmin()))
    total = float((columns @ found).sum())
    found *= float(seconds.sum()) / total if total > 0 else 0.0
    return float(found[0]), float(found[1]), float(found[2])


@dataclass(frozen=True, slots=True)
class TimedScorer:
    """A scorer's unit, with the seconds of its loading."""

    scorer: Scorer

    def key(self) -> str:
        return "timed " + self.scorer.key()

    def open(self) -> tuple[Any, float]:
        import nashtune.training.logprobs  # noqa: F401 - as above

        started = time.perf_counter()
        return self.scorer.open(), time.perf_counter() - started

    def work(self, opened: tuple[Any, float], unit: Unit) -> Facts:
        """Score the unit and commit it."""
        started = time.perf_counter()
        facts = self.scorer.work(opened[0], unit)
        return {**facts, "load": opened[1], "seconds": time.perf_counter() - started}
