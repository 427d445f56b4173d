"""Judgments of a local model that candidates may be too long for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nashtune.judging.bradley_terry import Matrix
from nashtune.records import Judgment, Prompt, Response


def judgment_of_fitting(
    prompt: Prompt,
    candidates: Sequence[Response],
    fits: Sequence[bool],
    matrix: Matrix,
    *,
    oracle: str,
    reader: str,
    models: tuple[str, str],
    measures: Mapping[str, Sequence[float | None]] | None = None,
) -> Judgment:
    """``matrix`` [K][K] as a judgment; unusable where candidates do not fit ``reader`` and fewer than two of the K do.
    ``models``: the name that was asked for and what was loaded."""
    known = sum(fits)
    usable = known == len(fits) or known >= 2
    return Judgment(
        prompt_id=prompt.id,
        response_ids=tuple(c.id for c in candidates),
        oracle=oracle,
        outcome="ok" if usable else "unusable",
        reason="" if usable else f"too long: {known} of {len(fits)} candidates fit the {reader}",
        matrix=matrix if usable else None,
        measures={name: tuple(values) for name, values in (measures or {}).items()},
        model_requested=models[0],
        model_returned=models[1],
    )
