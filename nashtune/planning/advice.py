"""What a simulated run suggests: unit size, where the time goes, what more machines and other settings would bring."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from nashtune.planning.cluster import Cluster
from nashtune.planning.played import Row, Total
from nashtune.planning.simulate import Machines, Training, Units
from nashtune.planning.unit_size import LONGEST, SHORTEST, UNITS_EACH
from nashtune.planning.workload import Stage
from nashtune.recipe import Recipe

WORTH_SAYING = 0.02
"""Share of a total below which a difference is not worth a line."""


def advise(
    recipe: Recipe,
    cluster: Cluster,
    stages: Sequence[Stage],
    rows: Sequence[Row],
    total: Total,
    barriers: Total,
    doubled: Total | None,
    machines: Machines,
    step: tuple[float, float],
) -> list[str]:
    """One sentence each."""
    found = [*_unit_size(recipe, stages, machines.nodes * machines.engines), _bottleneck(rows, total)]
    if doubled is None:
        found.append("twice the nodes: not possible, a node would fail before anything is done")
    else:
        money = f", ${total.usd:,.0f} -> ${doubled.usd:,.0f}" if cluster.gpu else ""
        faster = total.hours / doubled.hours if doubled.hours else 1.0
        found.append(
            f"twice the nodes: {_hours(total.hours)} -> {_hours(doubled.hours)} ({faster:.2f} times as fast){money}"
        )
    saved = barriers.hours - total.hours
    if recipe.scale.overlap and saved > WORTH_SAYING * total.hours:
        found.append(
            f"scale.overlap saves {_hours(saved)} of {_hours(barriers.hours)}, as the judge works beside the sampler"
        )
    if not recipe.scale.overlap:
        found.append(
            "scale.overlap is false: every stage waits for the one before it; true lets the judge begin with the first unit"
        )
    return [*found, *_checkpoints(recipe, stages, rows, machines), *_gpus(recipe, cluster, stages, rows, step)]


def _unit_size(recipe: Recipe, stages: Sequence[Stage], engines: int) -> Iterator[str]:
    """By the largest stage of sampling."""
    units = [stage.work for stage in stages if isinstance(stage.work, Units) and stage.name == "sample"]
    if not units:
        return
    work, size = max(units, key=lambda unit: unit.number * unit.seconds), recipe.sampling.unit_prompts
    prompts = max(1, round(work.number * size))
    wanted = max(1, round(size * math.sqrt(SHORTEST * LONGEST) / work.seconds)) if work.seconds else size
    most = max(1, prompts // (UNITS_EACH * engines))
    told = f"a unit of {size} prompts takes {_seconds(work.seconds)}"
    if most < min(size, wanted):
        yield (
            f"units: {told}, {work.number:,} of them for {engines} engines: at most {most} prompts a unit would give each engine "
            f"{UNITS_EACH}, so that fewer idle at the end (sampling.unit_prompts)"
        )
    elif SHORTEST <= work.seconds <= LONGEST:
        yield f"units: {told}, within the 2 to 5 minutes wished for"
    elif min(wanted, most) == size:
        yield f"units: {told}; larger ones would leave engines idle at the end of a stage"
    else:
        why = "shorter ones cost scheduling" if work.seconds < SHORTEST else "longer ones are lost with a node"
        yield f"units: {told}; 2 to 5 minutes are wished for ({why}): sampling.unit_prompts={min(wanted, most)}"


def _bottleneck(rows: Sequence[Row], total: Total) -> str:
    by_kind = {
        kind: math.fsum(row.hours for row in rows if row.kind == kind) for kind in ("sampling", "judging", "training")
    }
    kind = max(by_kind, key=lambda name: by_kind[name])
    share = by_kind[kind] / total.hours if total.hours else 0.0
    said = f"bottleneck: {kind}, {100 * share:.0f} % of the hours"
    if kind != "judging":
        return said
    limits: dict[str, float] = {}
    for row in rows:
        if row.limit:
            limits[row.limit] = limits.get(row.limit, 0.0) + row.hours
    return f"{said}, held up by: {max(limits, key=lambda name: limits[name])}"


def _checkpoints(recipe: Recipe, stages: Sequence[Stage], rows: Sequence[Row], machines: Machines) -> Iterator[str]:
    """By Young (1974): work between checkpoints for the square root of twice a checkpoint's time by the time between failures."""
    trained = [row for row in rows if row.kind == "training"]
    held, lost = math.fsum(row.gpu_hours for row in trained), math.fsum(row.lost for row in trained)
    works = [stage.work for stage in stages if isinstance(stage.work, Training)]
    if not works or lost <= WORTH_SAYING * held:
        return
    work = works[-1]
    best = math.sqrt(2 * work.checkpoint * machines.mtbf / work.nodes)
    steps = max(1, round(recipe.train.checkpoint_steps * best / work.interval))
    if steps < recipe.train.checkpoint_steps:
        yield (
            f"checkpoints: {100 * lost / held:.0f} % of training is done again after failures; train.checkpoint_steps={steps} "
            f"({_seconds(best)} of work between them) would lose least (Young 1974)"
        )


def _gpus(
    recipe: Recipe, cluster: Cluster, stages: Sequence[Stage], rows: Sequence[Row], step: tuple[float, float]
) -> Iterator[str]:
    if cluster.gpu is None:
        return
    train = cluster.train_gpus or cluster.total_gpus
    if train > recipe.train.batch_size and any(isinstance(stage.work, Training) for stage in stages):
        yield (
            f"training: {train} GPUs for batches of {recipe.train.batch_size} pairs leave {train - recipe.train.batch_size} "
            f"without a pair; --train-gpus {recipe.train.batch_size} or fewer trains as fast for less"
        )
    compute, exchange = step
    if exchange > compute and any(isinstance(stage.work, Training) for stage in stages):
        yield (
            f"training: a step of {train} GPUs computes for {_seconds(compute)} and exchanges weights for {_seconds(exchange)}: "
            "fewer --train-gpus, or a larger train.batch_size, use them better"
        )
    waiting = math.fsum(row.hours for row in rows if row.kind == "judging" and not row.gpu_hours)
    if waiting and not cluster.keep_gpus:
        yield (
            f"while only a judge or teacher works ({_hours(waiting)}) the GPUs are given back: holding them would be "
            f"{waiting * cluster.total_gpus:,.0f} GPU-hours"
        )
    if recipe.sampling.engine == "native" and cluster.sampling_rate is None:
        yield "sampling.engine is native, and the published rates are vLLM's: sampling.engine=vllm, or --sampling-rate"


def _hours(hours: float) -> str:
    return f"{hours:.2f} h" if hours >= 1 else _seconds(3600 * hours)


def _seconds(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.1f} s"
