"""The workers of judges that compute: the sampler's own, or, for a judge that nashtune hosts, workers for it alone."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing

from nashtune import recipe
from nashtune.judging.registry import hosted_in, parts_of
from nashtune.records import Policy
from nashtune.run import Run
from nashtune.scale.home import Home
from nashtune.scale.local import LocalEngine
from nashtune.scale.units import WorkEngine
from nashtune.stage import Stage
from nashtune.stages.candidates import Candidates
from nashtune.stages.local_judge import LocalJudge, computes, own_workers
from nashtune.stages.work import engine_of, home_of, hosted_weights, judging_policy

PRELOAD = {"native": "nashtune.sampling.native", "vllm": "nashtune.sampling.on_vllm.engine"}


def judges_in_units(run: Run, section: recipe.Oracle | None) -> bool:
    """Whether a judge works as units on workers: hosted ones on either engine, other models that compute on a cluster."""
    return computes(section) and (bool(hosted_in(section)) or run.recipe.scale.engine == "ray")


def engine_seconds(stage: Stage) -> str:
    """Where the seconds of a judge that worked beside the sampler are left."""
    return f"engine seconds of {stage.folder}"


def judge_role(run: Run, section: recipe.Oracle, candidates: Candidates) -> LocalJudge:
    """What the workers do. Raises OracleError where a hosted model cannot be found."""
    return LocalJudge(
        section,
        candidates,
        self_judge(run, section, candidates.iteration),
        run.recipe.seed,
        hosted_weights(run, section),
    )


def self_judge(run: Run, section: recipe.Oracle, iteration: int) -> Policy | None:
    """The policy that judges itself, where one does."""
    own = any(isinstance(part, recipe.SelfOracle) for part in parts_of(section))
    return judging_policy(run, iteration) if own else None


def judge_workers(run: Run, section: recipe.Oracle) -> WorkEngine:
    """The engine that judges units of ``section``; for hosted judges one of their own, made at first use and closed with the
    run, as their GPUs are others, or held in other numbers, than the sampler's."""
    hosts = hosted_in(section)
    sampler = engine_of(run)
    if not hosts:
        return sampler
    name = f"judge workers {[host.model_dump_json() for host in hosts]}"
    return run.resource(name, lambda: run.hold(closing(new_judge_workers(run.recipe, section, home_of(run)))))


def new_judge_workers(settings: recipe.Recipe, section: recipe.Oracle, home: Home | None = None) -> WorkEngine:
    """An engine for hosted judges, not started yet; ``home``: where the run lies. Raises SamplingError where there are too few
    GPUs."""
    hosts, actors, scale = hosted_in(section), own_workers(section), settings.scale
    kind = "vllm" if any(host.engine == "vllm" for host in hosts) else "native"
    if scale.engine == "ray":
        from nashtune.scale.ray_cluster import RayEngine

        most = actors or scale.ray.max_actors
        asked = max((host.gpus for host in hosts if host.gpus is not None), default=None)
        fewest = scale.ray.min_actors if most is None else min(scale.ray.min_actors, most)
        changes = {"gpus_per_actor": asked, "max_actors": most, "min_actors": fewest}
        parallel = max(host.vllm.tensor_parallel for host in hosts)
        return RayEngine(scale.ray.model_copy(update=changes), PRELOAD[kind], parallel, home)
    workers = actors or scale.workers
    return LocalEngine(workers, PRELOAD[kind], _environments(settings, hosts, workers, beside=actors is not None))


def _environments(
    settings: recipe.Recipe, hosts: list[recipe.HostedSection], workers: int, *, beside: bool
) -> list[Mapping[str, str]] | None:
    """Variables of each worker process, so that none takes another's devices; None where one process has all of them.
    ``beside``: the sampler works at the same time and keeps its own."""
    served = max((h for h in hosts if h.engine == "vllm"), key=lambda h: h.vllm.tensor_parallel, default=None)
    if served is None or not (beside or workers > 1):
        return [{} for _ in range(workers)] if beside else None
    from nashtune.sampling.on_vllm.place import worker_environments

    sampling = settings.sampling
    each = {"vllm": sampling.vllm.tensor_parallel, "native": 1, "scripted": 0}[sampling.engine]
    taken = each * (settings.scale.workers if sampling.engine == "vllm" else 1) if beside else 0
    return list(worker_environments(served.vllm, workers, taken))
