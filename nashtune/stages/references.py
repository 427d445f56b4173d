"""Reference log-probs by the run's workers: a stage of its own between pairs and training, where the recipe has workers."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nashtune.progress import progress
from nashtune.recipe import identity
from nashtune.run import Run
from nashtune.scale.claims import close_stage, open_stage
from nashtune.scale.units import Unit
from nashtune.stage import Stage
from nashtune.stages.candidates import Units
from nashtune.stages.work import engine_of, once, stage_units
from nashtune.store.files import create_once
from nashtune.store.objects import absent, on_store

if TYPE_CHECKING:
    from nashtune.training.job import TrainJob
    from nashtune.training.packing import Plan
    from nashtune.training.reference_units import ReferenceScorer


def committed_references(run: Run, iteration: int, job: TrainJob) -> Mapping[str, Sequence[Path]]:
    """The committed log-probs of the job's references, by name, computed now where they are not there yet. None of what the
    trainer has begun to compute by itself, in an earlier attempt or while the judge was at work: it goes on alone.

    Raises what the workers raise: ModelError for a policy that cannot be read, TrainingError for a pair that does not fit.
    """
    from nashtune.training.job import finished

    begun = job.folder / "references"
    if not run.recipe.scale.references_by_workers or any(begun.glob("*")) or finished(job, job.key()) is not None:
        return {}
    found: dict[str, Sequence[Path]] = {}
    of: dict[str, Sequence[Path]] = {}
    for name, policy in job.references.items():  # two names of one policy share its log-probs
        if policy.fingerprint not in of:
            of[policy.fingerprint] = _of_policy(run, iteration, job, name)
        found[name] = of[policy.fingerprint]
    engine_of(run).release()
    return found


def _of_policy(run: Run, iteration: int, job: TrainJob, name: str) -> list[Path]:
    from nashtune.training.head_start import plan_of
    from nashtune.training.reference_units import HOW, ReferenceScorer, cut, unit_key

    policy, plan = job.references[name], plan_of(job, job.pairs)  # that of one process, however many will train
    stage = run.stage(iteration, f"references-{name}")
    how = {key: value for key, value in identity(job.train).items() if key in HOW}
    inputs = (policy.fingerprint, unit_key(job.pairs, plan), how)
    units, batches = stage_units(stage, inputs), cut(job.pairs, plan)
    files = [units.file(index) for index in range(len(batches))]
    role = ReferenceScorer(policy, job.train)
    title = f"iteration {iteration}: reference log-probs under {name}"

    def make() -> dict[str, Any]:
        return _compute(run, title, stage, role, job, plan, units, batches)

    if stage.done(*inputs) and any(absent(files)):  # somebody removed a damaged one
        make()
    once(stage, inputs, make)
    return files


def _compute(
    run: Run,
    title: str,
    stage: Stage,
    role: ReferenceScorer,
    job: TrainJob,
    plan: Plan,
    units: Units,
    batches: Sequence[Sequence[int]],
) -> dict[str, Any]:
    """Do the units that are not committed yet, and count."""
    from nashtune.training.reference_units import encode_inputs

    inputs, work = units.folder / "inputs", []
    left = absent([units.file(index) for index in range(len(batches))])
    for index, held in enumerate(batches):
        source = inputs / units.file(index).name
        if left[index]:
            create_once(source, encode_inputs(job.pairs, plan, held))
            work.append(Unit(index, source, units.file(index), stage=stage.folder))
    open_stage(stage.folder, len(batches), stage.names())
    pairs = sum(len(microbatch) for unit in work for batch in batches[unit.index] for microbatch in plan.batches[batch])
    with stage.clock() as tick, progress(title, pairs, "pairs") as advance:
        tokens = 0.0
        for unit, facts in engine_of(run).run(role, work):
            tokens += facts.get("tokens", 0)
            tick()
            usual = sum(len(microbatch) for batch in batches[unit.index] for microbatch in plan.batches[batch])
            advance(int(facts.get("pairs", usual)), f"{tokens / max(tick.elapsed, 1e-9):.0f} tokens/s")
    if not on_store(inputs):
        shutil.rmtree(inputs, ignore_errors=True)  # on a store nothing is ever deleted
    return {"pairs": len(job.pairs), "units": len(batches), "units_redone": close_stage(stage.folder)}
