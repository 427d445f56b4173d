"""Algorithm 2's line 7: train the next policy on an iteration's pairs. Resumes by itself from its work folder."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

from nashtune.model.allocator import freed_memory_kept, give_back_memory
from nashtune.model.loading import fingerprint
from nashtune.recipe import ScaleSection
from nashtune.records import Policy
from nashtune.store.files import write_atomic, write_json
from nashtune.training.checkpoint import Checkpoint, last_checkpoint, remove_checkpoints, save_checkpoint
from nashtune.training.head_start import HeadStart, adapter_seed, plan_of, reference_folder
from nashtune.training.job import StepMetrics, TrainJob, TrainResult, check_pairs, finished, mean
from nashtune.training.logprobs import check_fits
from nashtune.training.machine import deterministic, peak_memory_gb
from nashtune.training.optimizer import Optimizer
from nashtune.training.reference_units import read_units
from nashtune.training.references import ReferenceShards
from nashtune.training.steps import Steps
from nashtune.training.trainee import Precision, Trainee
from nashtune.training.world import ALONE, World


def train_policy(
    job: TrainJob,
    on_step: Callable[[StepMetrics], None] | None = None,
    head_start: HeadStart | None = None,
    *,
    scale: ScaleSection | None = None,
) -> TrainResult:
    """Train ``job.policy`` and write the new policy to ``job.output``; continues an interrupted job, bit for bit on one
    machine, and returns a finished one's result at once.

    ``head_start``: what this process did for the job before its pairs were known. ``scale``: who starts how many processes,
    which share weights and work (FSDP2); the result is that of one process but for rounding, and either goes on from the
    other's checkpoint. None: this process trains.

    Raises TrainingError for pairs that cannot be trained on, numbers that are not finite, a reference that does not match
    the policy, or processes that hang or die again and again; ModelError where the architecture cannot be trained.
    """
    key = job.key()
    if (done := finished(job, key)) is not None:
        return done
    check_pairs(job)
    if scale is not None and not scale.trains_here:
        from nashtune.training.launch import train_with_ranks

        plan_of(job, job.pairs, scale.ranks)  # what it refuses, it refuses before anything is started
        train_with_ranks(job, scale, on_step)
    else:
        train_in_world(job, key, ALONE, on_step, head_start)
    result = finished(job, key)
    assert result is not None
    return result


def train_in_world(
    job: TrainJob,
    key: str,
    world: World,
    on_step: Callable[[StepMetrics], None] | None,
    head_start: HeadStart | None = None,
) -> None:
    """Train as one of the world's ranks; rank 0 leaves the policy and its result on disk. For all ranks."""
    with deterministic():
        _Training(job, key, world, head_start or HeadStart(job)).run(on_step)
    give_back_memory()  # sampling comes next, perhaps in another process


class _Training:
    """One job in progress, in one rank."""

    def __init__(self, job: TrainJob, key: str, world: World, head_start: HeadStart):
        self.job, self.key, self.world, self.head_start = job, key, world, head_start
        self.plan = plan_of(job, job.pairs, world.size)
        self.sides = job.objective.row.sides
        self.references = tuple(job.objective.row.references(job.objective.settings))
        self.history: list[StepMetrics] = []

    def run(self, on_step: Callable[[StepMetrics], None] | None) -> None:
        job = self.job
        started = time.perf_counter() - self.head_start.seconds
        shards = {name: self._shards(name) for name in self.references if name not in job.computed}
        references = {
            name: read_units(files, job.pairs, job.references[name], Precision.of(job.train))
            for name, files in job.computed.items()
        }
        for name, policy_shards in shards.items():
            if not job.is_policy(name) and policy_shards.missing():
                fixed = self._load_fixed(job.references[name])  # alone in memory, before the policy
                policy_shards.compute(fixed.forward)
                del fixed
                give_back_memory()
        trainee = self._load()
        check_fits(trainee.model, ((f"pair {p.id}", p.answers(self.sides)) for p in job.pairs))
        # The first step's forward pass is the policy's as it was: what it computes are reference log-probs too.
        checkpoint = self.world.agree(lambda: last_checkpoint(job.folder, self.key))
        first = self.plan.order[0] if checkpoint is None and self.world.size == 1 else None
        own = {name: policy_shards for name, policy_shards in shards.items() if job.is_policy(name)}
        for policy_shards in own.values():
            with freed_memory_kept():
                policy_shards.compute(trainee.forward, but=first)
        references |= {name: found.read(but=first if name in own else None) for name, found in shards.items()}
        reference_seconds = time.perf_counter() - started if references else 0.0

        optimizer = Optimizer(trainee.parameters, trainee.masters, job.train, trainee.copies)
        self._resume(optimizer, checkpoint)
        steps = Steps(job, self.plan, self.world)
        with (
            freed_memory_kept()
        ):  # what lives through all steps was allocated before: it lies apart and leaves no holes
            for step in range(len(self.history), self.plan.steps):
                metrics = steps.take(step, trainee, optimizer, references)
                if step == 0 and first is not None:
                    for name, policy_shards in own.items():
                        policy_shards.keep(first, references[name])
                self._record(metrics, optimizer)
                if on_step is not None:
                    on_step(metrics)
            optimizer.release()
        memory = self.world.gather(peak_memory_gb())  # before the others leave rank 0 to write
        trainee.save(job.policy, job.train, job.output, adapter_seed(job))
        if self.world.first:
            self._finish(reference_seconds, (max(memory[0], peak_memory_gb()), *memory[1:]))

    def _load(self) -> Trainee:
        job = self.job
        if self.world.size == 1:
            return self.head_start.trainee()
        from nashtune.training.sharding import load_sharded

        return load_sharded(job.policy, job.train, Precision.of(job.train), adapter_seed(job), self.world)

    def _load_fixed(self, policy: Policy) -> Trainee:
        if self.world.size == 1:
            return self.head_start.fixed(policy)
        from nashtune.training.sharding import load_fixed_sharded

        return load_fixed_sharded(policy, Precision.of(self.job.train), self.world)

    def _shards(self, reference: str) -> ReferenceShards:
        folder = reference_folder(self.job, self.job.references[reference], self.world.size)
        return ReferenceShards(folder, self.job.pairs, self.plan, self.world)

    def _resume(self, optimizer: Optimizer, checkpoint: Checkpoint | None) -> None:
        if checkpoint is not None:
            checkpoint.restore(optimizer)
            self.history = [StepMetrics(**row) for row in checkpoint.metrics]
        if self.world.first:
            write_atomic(self._metrics_file, "".join(_line(m) for m in self.history))

    @property
    def _metrics_file(self) -> Path:
        return self.job.folder / "metrics.jsonl"

    def _record(self, metrics: StepMetrics, optimizer: Optimizer) -> None:
        self.history.append(metrics)
        if self.world.first:
            with self._metrics_file.open("a", encoding="utf-8") as stream:
                stream.write(_line(metrics))
        if metrics.step % self.job.train.checkpoint_steps == 0 and metrics.step < self.plan.steps:
            rows = [asdict(m) for m in self.history]
            save_checkpoint(self.job.folder, self.key, metrics.step, optimizer.state(), rows, self.world)

    def _finish(self, reference_seconds: float, memory: tuple[float, ...]) -> None:
        job = self.job
        policy = Policy(job.output, fingerprint(job.output), f"iteration {job.iteration}", job.policy.trust_remote_code)
        means = {f.name: mean([getattr(m, f.name) for m in self.history]) for f in fields(StepMetrics)}
        skipped = ("step", "tokens", "seconds", "learning_rate")
        result = TrainResult(
            policy=policy,
            steps=len(self.history),
            tokens=sum(m.tokens for m in self.history),
            seconds=sum(m.seconds for m in self.history),
            reference_seconds=reference_seconds,
            metrics={name: value for name, value in means.items() if value is not None and name not in skipped},
            peak_memory_gb=max(memory),
            rank_memory_gb=memory,
        )
        row = {f.name: getattr(result, f.name) for f in fields(TrainResult) if f.name != "policy"}
        write_json(job.folder / "result.json", {"key": self.key, "fingerprint": policy.fingerprint, "result": row})
        remove_checkpoints(job.folder)


def _line(metrics: StepMetrics) -> str:
    return json.dumps(asdict(metrics), allow_nan=False) + "\n"
