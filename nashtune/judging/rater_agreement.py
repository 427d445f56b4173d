"""How far raters agree on which of two answers is better: pairs of raters, all together, and each against the others.

A verdict is P(the first answer is better): over 1/2 is "first", under it "second", 1/2 a tie; NaN is missing. Ties are a class
of their own; a missing verdict takes the comparison out of the pair of raters it is missing from.

Legend: N comparisons, R raters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nashtune.judging.balanced import Floats
from nashtune.judging.preference_rows import majority
from nashtune.judging.resampled import Sum, Sums
from nashtune.records import Interval

CLASSES = ("first", "second", "tie")
MISSING = -1


@dataclass(frozen=True, slots=True)
class PairAgreement:
    """Two raters on the comparisons that both gave a verdict on."""

    raters: tuple[str, str]
    comparisons: int
    same: Interval | None
    """Share of the same verdict."""
    kappa: Interval | None
    """Cohen's kappa (1960): agreement beyond that of raters who answer at random at their own rates; None where there is
    but one class."""


@dataclass(frozen=True, slots=True)
class AgainstOthers:
    """A rater against the majority of the other raters."""

    rater: str
    comparisons: int
    """Comparisons where the rater gave a verdict and the others have a majority."""
    no_majority: int
    """Comparisons where the others have none: left out."""
    same: Interval | None
    kappa: Interval | None


@dataclass(frozen=True, slots=True)
class RatersAgreement:
    """What several raters say of each other: the ceiling for a judge that is held against them."""

    raters: tuple[str, ...]
    alpha: Interval | None
    """Krippendorff's alpha (nominal), missing verdicts left out; None where there is but one class."""
    pairs: tuple[PairAgreement, ...]
    against_others: tuple[AgainstOthers, ...]
    """Empty for fewer than three raters."""
    unanimous: Interval | None
    """Share of comparisons on which all who gave a verdict (two at least) give the same."""


def classes(verdicts: Floats) -> NDArray[np.int64]:
    """[...] places in CLASSES, MISSING for NaN."""
    decided = np.where(verdicts > 0.5, 0, np.where(verdicts < 0.5, 1, 2))
    return np.where(np.isnan(verdicts), MISSING, decided).astype(np.int64)


def raters_agreement(verdicts: Mapping[str, Floats], cluster: NDArray[np.int64], seed: int = 0) -> RatersAgreement:
    """verdicts [N] of each rater; cluster [N] numbers the prompts. Intervals at 95 %, over prompts."""
    names, table = tuple(verdicts), np.stack(list(verdicts.values()), 1)
    said = classes(table)
    counts = np.stack([(said == c).sum(1) for c in range(len(CLASSES))], 1).astype(np.float64)
    several = counts.sum(1) >= 2
    alone = Sums({"all": several, "same": several & (counts.max(1) == counts.sum(1))}, cluster, seed)
    return RatersAgreement(
        raters=names,
        alpha=krippendorff_alpha(counts, cluster, seed),
        pairs=tuple(
            pair_agreement((names[i], names[j]), said[:, i], said[:, j], cluster, seed)
            for i, j in combinations(range(len(names)), 2)
        ),
        against_others=tuple(_against_others(names, table, cluster, seed)) if len(names) > 2 else (),
        unanimous=alone.ratio("same", "all"),
    )


def pair_agreement(
    raters: tuple[str, str],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    cluster: NDArray[np.int64],
    seed: int = 0,
) -> PairAgreement:
    """Two raters' classes [N]."""
    both = (first != MISSING) & (second != MISSING)
    cells = {f"{a}{b}": both & (first == a) & (second == b) for a in range(3) for b in range(3)}
    sums = Sums(cells | {"both": both}, cluster, seed)
    return PairAgreement(
        raters=raters,
        comparisons=int(both.sum()),
        same=sums.interval(_same, ("both",)),
        kappa=sums.interval(_kappa, ("both",)),
    )


def _same(of: Sum) -> Floats:
    return (of("00") + of("11") + of("22")) / of("both")


def _kappa(of: Sum) -> Floats:
    """(p_o - p_e) / (1 - p_e), p_e from the raters' own marginals; NaN where both use one and the same class only."""
    n = of("both")
    by_chance = sum(
        (sum(of(f"{c}{b}") for b in range(3)) / n) * (sum(of(f"{a}{c}") for a in range(3)) / n) for c in range(3)
    )
    return (_same(of) - by_chance) / (1 - by_chance)


def krippendorff_alpha(counts: Floats, cluster: NDArray[np.int64], seed: int = 0) -> Interval | None:
    """alpha = 1 - D_o / D_e over the coincidences of the values of each unit (Krippendorff, 2011, nominal data).

    counts [N, C]: how many raters gave each comparison each class. Units with one value or none do not count.
    """
    given = counts.sum(1)
    pairable = given >= 2
    counts, given = np.where(pairable[:, None], counts, 0), np.where(pairable, given, 2)
    size = counts.shape[1]
    columns: dict[str, Any] = {f"n{c}": counts[:, c] for c in range(size)}
    columns["same"] = (counts * (counts - 1)).sum(1) / (given - 1)
    columns["units"] = pairable
    sums = Sums(columns, cluster, seed)

    def alpha(of: Sum) -> Floats:
        total = sum((of(f"n{c}") for c in range(size)), np.zeros(1))
        squares = sum((of(f"n{c}") ** 2 for c in range(size)), np.zeros(1))
        return 1 - (total - 1) * (total - of("same")) / (total**2 - squares)

    return sums.interval(alpha, ("units",))


def _against_others(names: Sequence[str], table: Floats, cluster: NDArray[np.int64], seed: int) -> list[AgainstOthers]:
    found = []
    for place, name in enumerate(names):
        others = np.array([majority(tuple(row)) for row in np.delete(table, place, 1)])
        pair = pair_agreement((name, "the others"), classes(table[:, place]), classes(others), cluster, seed)
        missing = int((np.isnan(others) & ~np.isnan(table[:, place])).sum())
        found.append(AgainstOthers(name, pair.comparisons, missing, pair.same, pair.kappa))
    return found
