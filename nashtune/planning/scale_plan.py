"""The plan of a recipe on given machines: hours, dollars and wasted work of each stage, played through several times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nashtune.errors import PlanError
from nashtune.judging.registry import hosted_in, parts_of
from nashtune.planning.advice import advise
from nashtune.planning.budget import Budget, budget_of, spending
from nashtune.planning.calibration import as_measured, calibrate
from nashtune.planning.closed_form import least_seconds
from nashtune.planning.cluster import REPLACE_MINUTES, Cluster
from nashtune.planning.estimate import Estimator
from nashtune.planning.figures import Figure
from nashtune.planning.hardware import price
from nashtune.planning.lengths import local_lengths, local_policy
from nashtune.planning.limits import Limits
from nashtune.planning.measured import Measured, earlier_run
from nashtune.planning.played import Costs, Row, Total, rows_of, total_of
from nashtune.planning.policy_size import policy_size
from nashtune.planning.probe import paid_engines
from nashtune.planning.rates import GpuRates, HereRates, Rates, RunRates, engine_gpus
from nashtune.planning.simulate import Machines, Outcome, Units, play
from nashtune.planning.times import Times
from nashtune.planning.work import read_work
from nashtune.planning.workload import Stage, Workload, with_barriers
from nashtune.recipe import Recipe, RemoteTeacher

MOST_SIMULATED = 1_500_000
"""Work units in all trials together; fewer trials where a run has more."""
FEWEST_TRIALS = 3


@dataclass(frozen=True, slots=True)
class ScalePlan:
    """``least_hours``: without failures, spread and overlap, by closed form. ``barriers``: had each stage to wait for the one
    before it (scale.overlap: false). ``doubled``: on twice the nodes; None where that is not possible."""

    name: str
    machines: str
    prompts: tuple[int, ...]
    trials: int
    rows: Sequence[Row]
    total: Total
    least_hours: float
    barriers: Total
    doubled: Total | None
    assumptions: Sequence[Figure]
    notes: Sequence[str]
    advice: Sequence[str]
    budget: Budget

    def refuse_over_budget(self) -> None:
        """Raises BudgetError where the paid calls go over a cap of the recipe."""
        self.budget.refuse()

    def to_dict(self) -> dict[str, Any]:
        """For scripts. Hours, GPU-hours, dollars; an unlimited rate and a node that never fails are null."""
        return {
            "name": self.name,
            "machines": self.machines,
            "prompts": list(self.prompts),
            "trials": self.trials,
            "stages": [row.to_dict() for row in self.rows],
            "total": self.total.to_dict(),
            "least_hours": self.least_hours,
            "with_barriers": self.barriers.to_dict(),
            "twice_the_nodes": self.doubled.to_dict() if self.doubled else None,
            "assumptions": [
                asdict(figure) | {"value": figure.value if math.isfinite(figure.value) else None}
                for figure in self.assumptions
            ],
            "notes": list(self.notes),
            "advice": list(self.advice),
            "budget": {"projected": self.budget.total, "problem": self.budget.problem or None},
        }


def make_scale_plan(
    recipe: Recipe,
    cluster: Cluster,
    folder: Path | None = None,
    *,
    answer_tokens: int | None = None,
    calibrated: bool = False,
    times: Times | None = None,
) -> ScalePlan:
    """Play the recipe's run on the cluster. ``calibrated``: with a calibration of this machine, made where there is none;
    ``times``: with this one.

    Raises PlanError where machines make no sense or no rate is known, OracleError for an engine without a price,
    PromptError for a source that cannot be read.
    """
    setting = _Setting(recipe, cluster, folder, answer_tokens, calibrated, times)
    stages = setting.stages(cluster)
    units = sum(stage.work.number for stage in stages if isinstance(stage.work, Units))
    trials = min(cluster.trials, max(FEWEST_TRIALS, MOST_SIMULATED // max(1, units)))
    played = setting.play(cluster, stages, trials)
    rows = rows_of(stages, played, setting.costs(cluster))
    total = total_of(rows, played)
    flat = setting.play(cluster, with_barriers(stages), trials)
    barriers = total_of(rows_of(with_barriers(stages), flat, setting.costs(cluster)), flat)
    doubled = setting.doubled(trials)
    machines, step = setting.machines(cluster), setting.rates.step(setting.estimator.pair_tokens)
    return ScalePlan(
        name=recipe.name,
        machines=setting.describe(),
        prompts=setting.work.parts,
        trials=trials,
        rows=rows,
        total=total,
        least_hours=least_seconds([stage.work for stage in stages], machines) / 3600,
        barriers=barriers,
        doubled=doubled,
        assumptions=setting.figures(trials),
        notes=setting.estimator.assumptions(),
        budget=budget_of(recipe, setting.estimator.rows(), spending(recipe, setting.folder)),
        advice=advise(recipe, cluster, stages, rows, total, barriers, doubled, machines, step),
    )


class _Setting:
    """What does not change with the number of nodes."""

    def __init__(
        self,
        recipe: Recipe,
        cluster: Cluster,
        folder: Path | None,
        answer_tokens: int | None,
        calibrated: bool,
        times: Times | None,
    ):
        if cluster.prompts is not None and cluster.prompts < recipe.iterations:
            raise PlanError(
                f"--prompts {cluster.prompts}; accepted: at least one for each of {recipe.iterations} iterations"
            )
        self.recipe, self.cluster = recipe, cluster
        self.folder = folder or Path(recipe.folder) / recipe.name
        self.policy = local_policy(recipe)
        lengths = local_lengths(recipe, self.policy)
        self.work = read_work(recipe, self.folder, lengths, cluster.prompts)
        measured = earlier_run(recipe, self.folder)
        self.times = times or (calibrate(recipe, self.work) if calibrated else None)
        if self.times is not None:
            measured = replace(measured, times=self.times) if measured else as_measured(self.times)
        self.measured: Measured | None = measured
        self.estimator = Estimator(recipe, self.work, lengths, measured, answer_tokens)
        self.rates = self._rates(cluster)

    def _rates(self, cluster: Cluster) -> Rates:
        gpu, answer = cluster.hardware(), self.estimator.student.tokens
        if gpu is not None:
            size = policy_size(self.recipe, cluster, self.policy)
            return GpuRates(self.recipe, cluster, gpu, size, answer, self.estimator.prompt_tokens, self.times)
        if self.times is not None:
            return HereRates(self.recipe, self.times)
        if self.measured is not None:
            return RunRates(self.recipe, self.measured, answer)
        raise PlanError(
            "--nodes without --gpu: the nodes are machines like this one, and nothing was measured here; accepted: --calibrate, "
            "a run of this recipe, or --gpu TYPE"
        )

    def machines(self, cluster: Cluster) -> Machines:
        engines = (cluster.gpus or 1) // engine_gpus(self.recipe) if cluster.gpu else self.recipe.scale.workers
        hours = cluster.mtbf_figure().value
        return Machines(
            cluster.nodes,
            engines,
            mtbf=3600 * hours,
            replace=60 * cluster.replace_minutes,
            spread=self.rates.spread,
            boot=60 * cluster.boot_figure().value,
            keep=cluster.keep_gpus,
        )

    def limits(self, cluster: Cluster) -> Limits:
        """A judge on GPUs of one's own is the recipe's; its teacher and the judges of suites stay where they are."""
        recipe = self.recipe
        suites = [engine for section in recipe.evaluate for engine in section.judges]
        judges = {engine.model for oracle in recipe.oracles for part in parts_of(oracle)
                  if (engine := getattr(part, "engine", None)) is not None}  # fmt: skip
        others = [*suites, recipe.teacher.engine] if isinstance(recipe.teacher, RemoteTeacher) else suites
        elsewhere = {engine.model for engine in others} - judges
        hosts = [host for oracle in recipe.oracles for host in hosted_in(oracle)]
        return Limits(cluster, cluster.hardware(), [*paid_engines(recipe), *suites], elsewhere, hosts)

    def stages(self, cluster: Cluster) -> list[Stage]:
        machines = self.machines(cluster)
        engines = machines.nodes * machines.engines
        return Workload(self.estimator, self._rates(cluster), self.limits(cluster), engines, self.folder).stages()

    def play(self, cluster: Cluster, stages: Sequence[Stage], trials: int) -> list[list[Outcome]]:
        """Outcomes of each trial."""
        machines, works = self.machines(cluster), [stage.work for stage in stages]
        return [play(works, machines, f"{cluster.seed} {trial}") for trial in range(trials)]

    def doubled(self, trials: int) -> Total | None:
        """On twice the nodes: all GPUs train where all did."""
        cluster = replace(self.cluster, nodes=2 * self.cluster.nodes)
        try:
            stages = self.stages(cluster)
            played = self.play(cluster, stages, trials)
        except PlanError:  # more nodes fail more often
            return None
        return total_of(rows_of(stages, played, self.costs(cluster)), played)

    def costs(self, cluster: Cluster) -> Costs:
        gpu = cluster.hardware()
        if gpu is None:
            return Costs(0, 0, 1, 0, 0.0, False)
        train = cluster.train_gpus or cluster.total_gpus
        usd = price(gpu, cluster.price).value
        return Costs(
            cluster.total_gpus, train, engine_gpus(self.recipe), self.limits(cluster).judge_gpus, usd, cluster.keep_gpus
        )

    def figures(self, trials: int) -> list[Figure]:
        cluster, gpu = self.cluster, self.cluster.hardware()
        found = list(self.rates.figures)
        if gpu is not None:
            found.append(price(gpu, cluster.price))
            held = "GPUs paid for while only a judge or teacher works"
            if cluster.keep_gpus:
                found.append(Figure(held, 1, "(yes)", "given", "--keep-gpus"))
            else:
                found.append(Figure(held, 0, "(no)", "assumed", "given back, and loaded anew; --keep-gpus holds them"))
        found.append(cluster.mtbf_figure())
        minutes = cluster.replace_minutes
        usual = minutes == REPLACE_MINUTES
        how = "until a lost node's successor is there; --replace-minutes" if usual else "--replace-minutes"
        found.append(Figure("replacing a node", minutes, "minutes", "assumed" if usual else "given", how))
        found.append(cluster.boot_figure())
        found.append(
            Figure("prompts of a unit", self.recipe.sampling.unit_prompts, "", "recipe", "sampling.unit_prompts")
        )
        steps = self.recipe.train.checkpoint_steps
        found.append(Figure("steps between checkpoints", steps, "", "recipe", "train.checkpoint_steps"))
        found += self.limits(cluster).figures()
        found.append(Figure("runs simulated", trials, "", "given", f"--trials {cluster.trials}, --seed {cluster.seed}"))
        return found

    def describe(self) -> str:
        cluster, gpu = self.cluster, self.cluster.hardware()
        nodes = f"{cluster.nodes} node{'s' if cluster.nodes > 1 else ''}"
        if gpu is None:
            workers = self.recipe.scale.workers
            return f"{nodes} like this machine, {workers} worker{'s' if workers > 1 else ''} each"
        serving = self.limits(cluster).judge_gpus
        own = f", and {serving} of the same type for the judge" if serving else ""
        return f"{nodes} with {cluster.gpus} {gpu.name} each{own}"
