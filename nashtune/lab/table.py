"""From outcomes to the lab's table: each method's figures over all prompts and seeds, and its difference from the baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from nashtune.evaluate.improvement import mean_interval
from nashtune.evaluate.winrate import win_rate
from nashtune.lab.outcomes import ByPrompt, Outcome
from nashtune.records import Interval, IterationSummary


@dataclass(frozen=True, slots=True)
class Spread:
    """One figure over seeds."""

    mean: float
    values: tuple[float, ...]
    """Of each seed, in the lab's order."""

    @property
    def deviation(self) -> float | None:
        """Standard deviation between seeds; None for one seed."""
        return stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True, slots=True)
class Figures:
    """One method at one iteration, over its finished seeds. Intervals are clustered by prompt: they hold for other prompts and
    the policies that these seeds made; what another seed would make of them, the spread between seeds tells."""

    iteration: int
    vs_initial: Interval | None
    vs_teacher: Interval | None
    vs_initial_by_seed: Spread | None
    vs_teacher_by_seed: Spread | None
    difference: Interval | None
    """Win rate against the initial policy less the baseline's, prompt by prompt."""
    difference_vs_teacher: Interval | None
    measures: dict[str, Spread]
    """satisfied, good, satisfied_and_good, mean_score, mean_words: over seeds."""
    pairs: dict[str, float]
    """New pairs by kind, mean over seeds."""
    dynamics: dict[str, float]
    """The paper's Table 2, mean over seeds."""


@dataclass(frozen=True, slots=True)
class MethodRow:
    """A method's row: its figures by iteration."""

    method: str
    seeds: tuple[int, ...]
    figures: tuple[Figures, ...]
    best: tuple[int | None, ...]
    """The iteration that each seed's run selected."""
    seconds: float
    paid_usd: float | None

    @property
    def last(self) -> Figures:
        """After the last iteration."""
        return self.figures[-1]


MEASURES = ("satisfied", "good", "satisfied_and_good", "mean_score", "mean_words")


def make_table(
    outcomes: Sequence[Outcome], methods: Iterable[str], baseline: str, confidence: float
) -> list[MethodRow]:
    """Rows of the methods that have a finished run, in the lab's order."""
    by_method = {method: [o for o in outcomes if o.method == method] for method in methods}
    ours = by_method.get(baseline, [])
    return [_row(method, found, ours, confidence) for method, found in by_method.items() if found]


def _row(method: str, found: Sequence[Outcome], baseline: Sequence[Outcome], confidence: float) -> MethodRow:
    paid = [o.paid_usd for o in found if o.paid_usd is not None]
    return MethodRow(
        method=method,
        seeds=tuple(o.seed for o in found),
        figures=tuple(_figures(t, found, baseline, confidence) for t in range(len(found[0].summaries))),
        best=tuple(o.best for o in found),
        seconds=sum(o.seconds for o in found),
        paid_usd=sum(paid) if paid else None,
    )


def _figures(t: int, found: Sequence[Outcome], baseline: Sequence[Outcome], confidence: float) -> Figures:
    at = [o.summaries[t] for o in found]
    return Figures(
        iteration=t,
        vs_initial=_pooled(found, t, "initial", confidence),
        vs_teacher=_pooled(found, t, "teacher", confidence),
        vs_initial_by_seed=_by_seed(found, t, "initial"),
        vs_teacher_by_seed=_by_seed(found, t, "teacher"),
        difference=_difference(found, baseline, t, "initial", confidence),
        difference_vs_teacher=_difference(found, baseline, t, "teacher", confidence),
        measures={name: s for name in MEASURES if (s := _spread(at, lambda row, name=name: getattr(row, name)))},
        pairs=_means(at, [dict(row.pairs) for row in at]),
        dynamics=_means(at, [{k: v for k, v in row.dynamics.items() if v is not None} for row in at]),
    )


def _pooled(found: Sequence[Outcome], t: int, rival: str, confidence: float) -> Interval | None:
    """Each prompt's mean over seeds first, then over prompts: a prompt is one cluster, however many seeds asked it."""
    values = list(_over_seeds([o.contests[t][rival] for o in found]).values())
    return win_rate(values, confidence) if values else None


def _over_seeds(contests: Sequence[ByPrompt]) -> dict[str, float]:
    prompts = dict.fromkeys(prompt for contest in contests for prompt in contest)
    return {p: fmean([c[p] for c in contests if p in c]) for p in prompts}


def _by_seed(found: Sequence[Outcome], t: int, rival: str) -> Spread | None:
    values = tuple(fmean(c.values()) for o in found if (c := o.contests[t][rival]))
    return Spread(fmean(values), values) if values else None


def _difference(
    found: Sequence[Outcome], baseline: Sequence[Outcome], t: int, rival: str, confidence: float
) -> Interval | None:
    """Paired by (seed, prompt), averaged within a prompt, then over prompts; seeds that one of both lacks are left out."""
    theirs = {o.seed: o for o in baseline if len(o.contests) > t}
    pairs = [(o.contests[t][rival], theirs[o.seed].contests[t][rival]) for o in found if o.seed in theirs]
    values = _over_seeds([{p: a[p] - b[p] for p in a if p in b} for a, b in pairs])
    return mean_difference(list(values.values()), confidence) if values else None


def mean_difference(per_prompt: Sequence[float], confidence: float) -> Interval:
    """Mean of differences in [-1, 1] with Student's interval; a single prompt has none narrower than [-1, 1]."""
    found = mean_interval(per_prompt, confidence)
    if found is None:
        return Interval(per_prompt[0], -1.0, 1.0, 1)
    return Interval(found.value, max(-1.0, found.low), min(1.0, found.high), found.n)


def _spread(rows: Sequence[IterationSummary], read: Callable[[IterationSummary], float | None]) -> Spread | None:
    values = tuple(value for row in rows if (value := read(row)) is not None)
    return Spread(fmean(values), values) if values else None


def _means(rows: Sequence[IterationSummary], found: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean over runs of each named number; a kind of pair that a run has none of counts as 0."""
    names = dict.fromkeys(name for values in found for name in values)
    return {name: sum(values.get(name, 0.0) for values in found) / len(rows) for name in names}
