"""How large work units should be: minutes of work, and enough of them for every worker."""

from __future__ import annotations

import math

from nashtune.planning.times import Times

SHORTEST, LONGEST = 120.0, 300.0
"""Seconds that a unit should take: shorter ones cost scheduling and requests, longer ones are lost with a worker."""
UNITS_EACH = 4
"""Units that each worker should have in a stage, so that the last ones do not leave most workers idle."""


def unit_advice(times: Times, prompts: int, n: int, unit_prompts: int, models: int = 1) -> str:
    """One sentence about ``unit_prompts`` for a stage that draws ``n`` answers to each of ``prompts`` prompts."""
    size = min(unit_prompts, prompts)
    seconds = _seconds(times, size, n, models)
    said = f"a unit of {size} prompts takes {seconds / 60:.1f} minutes of sampling, and 2 to 5 are advised"
    if SHORTEST <= seconds <= LONGEST:
        return f"{said}: sampling.unit_prompts is right"
    best = best_size(times, prompts, n, models)
    if best == size:
        return f"{said}, but {prompts} prompts give {times.workers} workers too few units as it is"
    return (
        f"{said}: sampling.unit_prompts={best} ({_seconds(times, best, n, models) / 60:.1f} minutes, at least {UNITS_EACH} units "
        "for each worker; settled when a run begins)"
    )


def best_size(times: Times, prompts: int, n: int, models: int = 1) -> int:
    """Prompts of a unit that takes between SHORTEST and LONGEST, or of the largest that leaves UNITS_EACH to every worker."""
    wanted, most = math.sqrt(SHORTEST * LONGEST), max(1, prompts // (UNITS_EACH * times.workers))
    low, high = 1, most + 1  # the largest size of at most `wanted` seconds, which grow with the size
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _seconds(times, middle, n, models) <= wanted else (low, middle)
    return low


def _seconds(times: Times, size: int, n: int, models: int) -> float:
    return times.sampling(size, n, size, models, load=False)
