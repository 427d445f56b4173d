"""Ratios and agreement with intervals over prompts: every figure is made of sums over rows, and the rows of one prompt are
drawn together.

Legend: N rows, G prompts, M columns, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nashtune.judging.balanced import RESAMPLES, Floats, wilson
from nashtune.records import Interval
from nashtune.seeds import seed_for

CHUNK = 100
CONFIDENCE = 0.95
"""Level of every interval."""
Sum = Callable[[str], Floats]
"""The sum of a column by its name, [B] of resamples or [1] of the data."""


@lru_cache(maxsize=8)
def draws(prompts: int, seed: int) -> NDArray[np.uint16]:
    """[B, G]: how often each prompt is in each resample."""
    generator = np.random.default_rng(seed_for(seed, "bootstrap"))
    chances = np.full(prompts, 1 / prompts)
    parts = [generator.multinomial(prompts, chances, CHUNK).astype(np.uint16) for _ in range(RESAMPLES // CHUNK)]
    return np.concatenate(parts)


def clusters(names: Sequence[str]) -> NDArray[np.int64]:
    """[N] names of prompts as numbers 0 to G - 1."""
    return np.unique(np.asarray(names, str), return_inverse=True)[1].astype(np.int64)


class Sums:
    """Column sums over rows, of the data and of resamples of its prompts."""

    def __init__(self, columns: Mapping[str, Any], cluster: NDArray[np.int64], seed: int = 0) -> None:
        """columns [N] each, numbers or truth values; cluster [N] from 0 to G - 1 without gaps."""
        prompts = int(cluster.max()) + 1 if len(cluster) else 0
        self._place = {name: number for number, name in enumerate(columns)}
        values = [np.asarray(column, np.float64) for column in columns.values()]
        self._table: Floats = np.stack([np.bincount(cluster, v, prompts) for v in values], 1).astype(np.float64)
        self._whole: Floats = self._table.sum(0, keepdims=True)
        self._drawn: Floats = (
            np.concatenate([w @ self._table for w in weights(prompts, seed)]) if prompts else self._table
        )
        self.prompts = prompts

    def total(self, name: str) -> float:
        return float(self._whole[0, self._place[name]])

    def interval(self, figure: Callable[[Sum], Floats], counted: Sequence[str], share: bool = True) -> Interval | None:
        """``figure`` of the data with its 95 % percentile interval; ``n`` is the number of prompts with anything in the
        columns ``counted``, None where there is none or the figure has no value. ``share``: see ``percentiles``."""
        n = int(self._table[:, [self._place[name] for name in counted]].any(1).sum()) if self.prompts else 0
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(figure(lambda name: self._whole[:, self._place[name]])[0]) if n else float("nan")
            if np.isnan(value):
                return None
        return percentiles(value, self.drawn(figure), n, share)

    def drawn(self, figure: Callable[[Sum], Floats]) -> Floats:
        """[B] the figure of each resample, NaN where it has no value."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return figure(lambda name: self._drawn[:, self._place[name]])

    def ratio(self, top: str, bottom: str, share: bool = True) -> Interval | None:
        """Sum of ``top`` over sum of ``bottom``."""
        return self.interval(lambda of: of(top) / of(bottom), (bottom,), share)


def percentiles(value: float, drawn: Floats, n: int, share: bool = True) -> Interval:
    """The percentile interval of resampled figures. Where no resample differs, a ``share`` (any figure that is 1 at best) gets
    Wilson's interval for n prompts, so that a few lucky prompts are not certainty; below 0 it stays a point."""
    tail = (1 - CONFIDENCE) / 2
    low, high = map(float, np.nanquantile(drawn, (tail, 1 - tail)))
    if share and high - low < 1e-12 and 0 <= value <= 1:
        low, high = wilson(value, n, NormalDist().inv_cdf(1 - tail))
    return Interval(value, min(low, value), max(high, value), n)


def weights(prompts: int, seed: int) -> Iterator[Floats]:
    """[CHUNK, G] at a time."""
    found = draws(prompts, seed)
    for start in range(0, len(found), CHUNK):
        yield found[start : start + CHUNK].astype(np.float64)
