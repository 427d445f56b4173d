"""Algorithm 2's line 7: train the next policy on an iteration's pairs. Resumes by itself from its work folder."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

import torch

from nashtune.model.allocator import freed_memory_kept
from nashtune.model.loading import default_device, fingerprint
from nashtune.records import Policy
from nashtune.seeds import content_hash, seed_for
from nashtune.store.files import write_atomic, write_json
from nashtune.training.checkpoint import last_checkpoint, remove_checkpoints, save_checkpoint
from nashtune.training.job import StepMetrics, TrainJob, TrainResult, check_pairs, finished, mean
from nashtune.training.logprobs import check_fits
from nashtune.training.machine import deterministic, peak_memory_gb
from nashtune.training.optimizer import Optimizer
from nashtune.training.packing import Plan, plan_steps
from nashtune.training.references import ReferenceShards
from nashtune.training.steps import Steps
from nashtune.training.trainee import Precision, Trainee


def train_policy(job: TrainJob, on_step: Callable[[StepMetrics], None] | None = None) -> TrainResult:
    """Train ``job.policy`` and write the new policy to ``job.output``; continues an interrupted job, bit for bit on one
    machine, and returns a finished one's result at once.

    Raises TrainingError for pairs that cannot be trained on, numbers that are not finite, or a reference that does not
    match the policy; ModelError where the architecture cannot be trained.
    """
    key = job.key()
    if (done := finished(job, key)) is not None:
        return done
    sides = job.objective.row.sides
    check_pairs(job)
    plan = plan_steps(
        job.pairs,
        batch_size=job.train.batch_size,
        microbatch_tokens=job.train.microbatch_tokens,
        epochs=job.train.epochs,
        seed=seed_for(job.seed, "train", job.iteration),
        sides=sides,
    )
    with deterministic(), freed_memory_kept():
        return _Training(job, key, plan).run(on_step)


class _Training:
    """One job in progress."""

    def __init__(self, job: TrainJob, key: str, plan: Plan):
        self.job, self.key, self.plan = job, key, plan
        self.objective, self.settings = job.objective.row, job.objective.settings
        self.weights = self.objective.references(self.settings)
        self.precision = Precision.of(job.train.precision)
        self.history: list[StepMetrics] = []
        self.adapter_seed = seed_for(job.seed, "adapters", job.iteration)

    def run(self, on_step: Callable[[StepMetrics], None] | None) -> TrainResult:
        job = self.job
        started = time.perf_counter()
        shards = {name: self._shards(name) for name in self.weights}
        for name, policy_shards in shards.items():
            if not job.is_policy(name) and policy_shards.missing():
                fixed = Trainee.load_fixed(job.references[name], self.precision)  # alone in memory, before the policy
                policy_shards.compute(fixed.forward)
                del fixed
                gc.collect()
        trainee = Trainee.load(job.policy, job.train, self.precision, self.adapter_seed)
        check_fits(trainee.model, ((f"pair {p.id}", p.answers(self.objective.sides)) for p in job.pairs))
        for name, policy_shards in shards.items():
            if job.is_policy(name):
                policy_shards.compute(trainee.forward)
        references = {name: policy_shards.read() for name, policy_shards in shards.items()}
        reference_seconds = time.perf_counter() - started if shards else 0.0

        optimizer = Optimizer(trainee.parameters, trainee.masters, job.train)
        self._resume(optimizer)
        steps = Steps(job, self.plan)
        for step in range(len(self.history), self.plan.steps):
            metrics = steps.take(step, trainee, optimizer, references)
            self._record(metrics, optimizer)
            if on_step is not None:
                on_step(metrics)
        optimizer.release()
        trainee.save(job.policy, job.train, job.output, self.adapter_seed)
        return self._finish(reference_seconds)

    def _shards(self, reference: str) -> ReferenceShards:
        # bf16 rounding differs between machines and thread counts, so log-probs of another one are not read.
        machine = (torch.__version__, default_device().type, torch.get_num_threads(), str(self.precision))
        policy = self.job.references[reference].fingerprint  # two names of one policy share its log-probs
        folder = self.job.folder / "references" / content_hash(self.key, policy, machine)
        return ReferenceShards(folder, self.job.pairs, self.plan)

    def _resume(self, optimizer: Optimizer) -> None:
        checkpoint = last_checkpoint(self.job.folder, self.key)
        if checkpoint is not None:
            checkpoint.restore(optimizer)
            self.history = [StepMetrics(**row) for row in checkpoint.metrics]
        write_atomic(self._metrics_file, "".join(_line(m) for m in self.history))

    @property
    def _metrics_file(self) -> Path:
        return self.job.folder / "metrics.jsonl"

    def _record(self, metrics: StepMetrics, optimizer: Optimizer) -> None:
        self.history.append(metrics)
        with self._metrics_file.open("a", encoding="utf-8") as stream:
            stream.write(_line(metrics))
        if metrics.step % self.job.train.checkpoint_steps == 0 and metrics.step < self.plan.steps:
            rows = [asdict(m) for m in self.history]
            save_checkpoint(self.job.folder, self.key, metrics.step, optimizer.state(), rows)

    def _finish(self, reference_seconds: float) -> TrainResult:
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
            peak_memory_gb=peak_memory_gb(),
        )
        row = {f.name: getattr(result, f.name) for f in fields(TrainResult) if f.name != "policy"}
        write_json(job.folder / "result.json", {"key": self.key, "fingerprint": policy.fingerprint, "result": row})
        remove_checkpoints(job.folder)
        return result


def _line(metrics: StepMetrics) -> str:
    return json.dumps(asdict(metrics), allow_nan=False) + "\n"
