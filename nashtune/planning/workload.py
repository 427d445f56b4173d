"""The stages of a recipe's run as work to be simulated: what the estimate counts, at the rates of the machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from nashtune.judging.registry import hosted_in, parts_of
from nashtune.planning.estimate import START, Estimator, Row
from nashtune.planning.limits import Limits
from nashtune.planning.measured import references_of
from nashtune.planning.opened import loads
from nashtune.planning.rates import Rates
from nashtune.planning.simulate import Calls, Preparing, Units, Work
from nashtune.recipe import BestOfN, Oracle
from nashtune.run import Run
from nashtune.stages.local_judge import LOCAL, own_workers
from nashtune.stages.streaming import judges_alongside
from nashtune.summaries import AVERAGE

SCORING = ("kl-scores", "kl-scores-previous")


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of one iteration: its work, and the dollars of its paid calls."""

    iteration: int
    work: Work
    usd: float = 0.0
    own_judge: bool = False
    """Judged on GPUs that serve a judge of one's own."""

    @property
    def name(self) -> str:
        return self.work.name

    @property
    def kind(self) -> str:
        """starting, sampling (scores too), judging (a remote teacher too), or training."""
        return {Preparing: "starting", Units: "sampling", Calls: "judging"}.get(type(self.work), "training")


class Workload:
    """Raises OracleError for an engine whose price is not known."""

    def __init__(self, estimator: Estimator, rates: Rates, limits: Limits, engines: int, folder: Path):
        self.estimator, self.recipe, self.rates, self.limits = estimator, estimator.recipe, rates, limits
        self.engines = engines
        self.up = False
        """Whether a stage of units came before: engines that are kept between stages start in the first."""
        self.trained = False
        self.run = Run(folder, self.recipe)

    def stages(self) -> list[Stage]:
        """In the order in which they run. A judge that works alongside follows the sampling that it follows up."""
        found: list[Stage] = []
        for t, rows in groupby(self.estimator.rows(), key=lambda row: row.iteration):
            by_name = {name: list(same) for name, same in groupby(rows, key=lambda row: row.stage)}
            found += [stage for name in self._order(list(by_name)) for stage in self._stage(t, name, by_name[name])]
        return found

    def _order(self, names: list[str]) -> list[str]:
        """Where the judge works alongside, the teacher and whoever else is asked come before the sampling it follows up."""
        for sampled, judged, validation in (("sample", "judge", False), ("validate-sample", "validate-judge", True)):
            if sampled in names and judged in names and judges_alongside(self.run, validation=validation):
                names.remove(sampled)
                names.insert(names.index(judged), sampled)
        return names

    def _stage(self, t: int, name: str, rows: Sequence[Row]) -> Iterator[Stage]:
        row = rows[0]
        usd = sum(r.usd for r in rows)
        if name == START:
            yield Stage(t, Preparing(name, row.seconds or 0.0))
        elif name == "train":
            yield Stage(t, self._training(t, row))
        elif name in SCORING:
            n = self.recipe.validate_.kl_samples
            yield Stage(t, self._units(name, row.items, lambda p: self.rates.scoring(p, n), self.rates.load_scorer))
        elif row.tokens:
            models = 2 if name == "sample" and self.recipe.sampling.mixture and t > 1 else 1
            n = round(row.tokens / (row.items * self.estimator.student.tokens)) if row.items else 0
            fresh = self.rates.anew or loads(self.recipe, t, name)
            load = models * self.rates.load_sampler if fresh else 0.0
            yield Stage(t, self._units(name, row.items, lambda p: self.rates.unit(p, n, models), load))
        else:
            yield Stage(t, self._calls(t, name, rows), usd, self.limits.serves(rows))

    def _units(self, name: str, prompts: int, seconds: Callable[[int], float], load: float) -> Units:
        size = self.recipe.sampling.unit_prompts
        number = -(-prompts // size)
        last = prompts - (number - 1) * size if number else 0
        start = 0.0
        if self.rates.anew or not self.up:
            start = self.rates.start if self.rates.anew else self.rates.first_start
        self.up = True
        again = self.rates.start + (load or self.rates.load_sampler)
        return Units(name, number, seconds(size), seconds(last), load, start, again)

    def _training(self, t: int, row: Row) -> Work:
        pair_tokens = self.estimator.pair_tokens
        pairs = row.tokens / (pair_tokens * self.recipe.train.epochs)
        references = len(references_of(self.recipe))
        found = self.rates.training(row.stage, pairs, pair_tokens, references)
        again, kept = found.anew, self.trained and not self.rates.anew
        self.trained = True
        return replace(found, start=0.0 if kept else found.start, again=again)

    def _calls(self, t: int, name: str, rows: Sequence[Row]) -> Calls:
        prompts, size = rows[0].items, self.recipe.sampling.unit_prompts
        rows = [row for row in rows if row.model]
        pace = self.limits.pace(rows)
        judge = self._judge(name)
        here, start = self._here(t, name, judge) if judge is not None else (0.0, 0.0)
        local = here > 0 or self.limits.in_turn(rows)
        start = max(start, self.limits.load(rows))
        if here and not pace.seconds:
            pace = replace(pace, binding="this judge computes on the nodes")
        number = -(-prompts // size)
        last = prompts - (number - 1) * size if number else 0
        each = pace.seconds + here
        return Calls(
            name,
            number,
            each * size,
            each * last,
            pace.latency,
            pace.binding,
            self._alongside(name) and not here,  # on the sampler's own processors, nothing is gained side by side
            local,
            start,
        )

    def _alongside(self, name: str) -> bool:
        if name not in ("judge", "validate-judge"):
            return False
        return judges_alongside(self.run, validation=name == "validate-judge")

    def _judge(self, name: str) -> Oracle | None:
        """Who of the recipe judges in a stage; None for a remote teacher's answers, suites, and where nobody does."""
        if name in ("judge", "validate-judge", "anchor-judge"):
            return self.recipe.judge(validation=name != "judge")
        best_of = name in ("teacher", "validate-teacher") and isinstance(self.recipe.teacher, BestOfN)
        return self.recipe.oracle if best_of else None

    def _here(self, t: int, name: str, judge: Oracle) -> tuple[float, float]:
        """Seconds of the nodes for one set, by a judge that computes on them, and before the first. A model's work is spread
        over the engines, where they are not the processes of one machine; rules are read by the run's own process."""
        model = any(isinstance(part, LOCAL) for part in parts_of(judge))
        each = self.rates.candidate(model) * self._candidates(t, name)
        in_units = bool(hosted_in(judge)) or (model and self.recipe.scale.engine == "ray")
        spread = (own_workers(judge) or self.engines) if in_units else 1
        return each / spread, self.rates.judge_start(model) if each else 0.0

    def _candidates(self, t: int, name: str) -> int:
        recipe, teachers = self.recipe, self.estimator.teachers
        if name == "judge":
            return recipe.sampling.k + teachers
        if name in ("validate-judge", "anchor-judge"):
            place = recipe.iterations + 1 if t == AVERAGE else t
            return recipe.validate_.k * (1 + len(recipe.rivals(place))) + teachers
        return recipe.teacher.n if isinstance(recipe.teacher, BestOfN) else 0


def with_barriers(stages: Sequence[Stage]) -> list[Stage]:
    """The same stages where each begins when the one before it has ended."""
    return [
        replace(stage, work=replace(stage.work, alongside=False)) if isinstance(stage.work, Calls) else stage
        for stage in stages
    ]
