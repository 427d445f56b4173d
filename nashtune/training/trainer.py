"""Algorithm 2's line 7: train the next policy on an iteration's pairs. Resumes by itself from its work folder."""

from __future__ import annotations

import gc
import hashlib
import json
import math
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nashtune.errors import TrainingError
from nashtune.model.allocator import freed_memory_kept
from nashtune.model.loading import fingerprint
from nashtune.objectives import WORDS, PairTerms, Sides, preference_loss
from nashtune.recipe import ObjectiveSection, TrainSection, uncounted
from nashtune.records import Policy
from nashtune.seeds import content_hash
from nashtune.store.files import read_json, write_atomic, write_json
from nashtune.training.checkpoint import last_checkpoint, remove_checkpoints, save_checkpoint
from nashtune.training.head_start import HeadStart, adapter_seed, is_policy, plan_of, reference_folder
from nashtune.training.logprobs import check_fits
from nashtune.training.machine import deterministic, peak_memory_gb
from nashtune.training.optimizer import Optimizer, learning_rate
from nashtune.training.packing import Plan, TrainingPair
from nashtune.training.references import ReferenceShards
from nashtune.training.trainee import Trainee

STEP_ZERO_TOLERANCE = 1e-3
"""Nats by which a pair's log-ratio may differ between policy and reference while they are the same model."""


@dataclass(frozen=True)
class TrainJob:
    """All that decides one iteration's training, and where it works (``folder``) and writes the policy (``output``)."""

    pairs: Sequence[TrainingPair]
    policy: Policy
    """What is trained from."""
    references: Mapping[str, Policy]
    """The policies that the objective's references name."""
    objective: ObjectiveSection
    train: TrainSection
    learning_rate: float
    seed: int
    iteration: int
    folder: Path
    output: Path

    def key(self) -> str:
        """Hash of everything that decides the result (on one kind of machine)."""
        digest = hashlib.sha256()
        for pair in self.pairs:
            rates = (pair.r_chosen, pair.r_rejected, pair.p_chosen, pair.p_rejected)
            digest.update(repr((pair.id, *rates, pair.score_chosen, pair.score_rejected)).encode())
            for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids):
                digest.update(array("q", [len(ids), *ids]).tobytes())
        train = self.train.model_dump(exclude={**uncounted(self.train), "learning_rate": True})
        sections = self.objective.model_dump(), train
        policies = self.policy.fingerprint, {name: policy.fingerprint for name, policy in self.references.items()}
        return content_hash(digest.hexdigest(), sections, policies, self.learning_rate, self.seed, self.iteration)


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """Means over an optimizer step's pairs. Fields that need the rejected answer are None for sft."""

    step: int
    """Counted from 1."""
    loss: float
    margin: float | None
    """D_pi - D_reference, times the objective's beta where it has one."""
    accuracy: float | None
    """Share of pairs with a margin above 0."""
    nll: float
    """Nats per token of the chosen answers."""
    chosen_logprob: float
    rejected_logprob: float | None
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    tokens: int
    """Answer tokens learned from."""
    seconds: float


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What came out, and what it took."""

    policy: Policy
    steps: int
    tokens: int
    """Answer tokens learned from, all epochs."""
    seconds: float
    """Optimizer steps, those before a resume included."""
    reference_seconds: float
    """Reference log-probs computed by this process."""
    metrics: Mapping[str, float]
    """Means over all steps of loss, margin, accuracy, nll, log-probs and grad_norm (those that exist)."""
    peak_memory_gb: float
    """Highest resident memory of this process so far, or accelerator memory where there is one."""


def train_policy(
    job: TrainJob, on_step: Callable[[StepMetrics], None] | None = None, head_start: HeadStart | None = None
) -> TrainResult:
    """Train ``job.policy`` and write the new policy to ``job.output``; continues an interrupted job, bit for bit on one
    machine, and returns a finished one's result at once. ``head_start``: what was done for it before its pairs were known.

    Raises TrainingError for pairs that cannot be trained on, numbers that are not finite, or a reference that does not
    match the policy; ModelError where the architecture cannot be trained.
    """
    key = job.key()
    if (done := _finished(job, key)) is not None:
        return done
    _check_pairs(job)
    with deterministic(), freed_memory_kept():
        return _Training(job, key, plan_of(job, job.pairs)).run(on_step, head_start or HeadStart(job))


class _Training:
    """One job in progress."""

    def __init__(self, job: TrainJob, key: str, plan: Plan):
        self.job, self.key, self.plan = job, key, plan
        self.objective, self.settings = job.objective.row, job.objective.settings
        self.weights = self.objective.references(self.settings)
        self.history: list[StepMetrics] = []

    def run(self, on_step: Callable[[StepMetrics], None] | None, head_start: HeadStart) -> TrainResult:
        job = self.job
        started = time.perf_counter() - head_start.seconds
        shards = {name: self._shards(name) for name in self.weights}
        for name, policy_shards in shards.items():
            if not self._is_policy(name) and policy_shards.missing():
                fixed = head_start.fixed(job.references[name])  # alone in memory, before the policy
                policy_shards.compute(fixed.forward)
                del fixed
                gc.collect()
        trainee = head_start.trainee()
        check_fits(trainee.model, ((f"pair {p.id}", p.answers(self.objective.sides)) for p in job.pairs))
        for name, policy_shards in shards.items():
            if self._is_policy(name):
                policy_shards.compute(trainee.forward)
        references = {name: policy_shards.read() for name, policy_shards in shards.items()}
        reference_seconds = time.perf_counter() - started if shards else 0.0

        optimizer = Optimizer(trainee.parameters, trainee.masters, job.train, trainee.copies)
        self._resume(optimizer)
        for step in range(len(self.history), self.plan.steps):
            metrics = self._step(step, trainee, optimizer, references)
            self._record(metrics, optimizer)
            if on_step is not None:
                on_step(metrics)
        optimizer.release()
        trainee.save(job.policy, job.train, job.output, adapter_seed(job))
        return self._finish(reference_seconds)

    def _is_policy(self, reference: str) -> bool:
        return is_policy(self.job, reference)

    def _shards(self, reference: str) -> ReferenceShards:
        return ReferenceShards(reference_folder(self.job, self.job.references[reference]), self.job.pairs, self.plan)

    def _resume(self, optimizer: Optimizer) -> None:
        checkpoint = last_checkpoint(self.job.folder, self.key)
        if checkpoint is not None:
            checkpoint.restore(optimizer)
            self.history = [StepMetrics(**row) for row in checkpoint.metrics]
        write_atomic(self._metrics_file, "".join(_line(m) for m in self.history))

    @property
    def _metrics_file(self) -> Path:
        return self.job.folder / "metrics.jsonl"

    def _step(self, step: int, trainee: Trainee, optimizer: Optimizer, references: Mapping[str, Tensor]) -> StepMetrics:
        """One optimizer step (``step`` counts from 0). Refused, weights untouched, where a number is not finite."""
        started = time.perf_counter()
        batch = self.plan.batches[self.plan.order[step]]
        size = sum(map(len, batch))
        rows: list[dict[str, Any]] = []
        for number, microbatch in enumerate(batch):
            pairs = [self.job.pairs[i] for i in microbatch]
            stored = {name: values[list(microbatch)].to(trainee.model.device) for name, values in references.items()}
            losses, terms = self._losses(trainee.forward(pairs, self.objective.sides), stored, pairs)
            rows += terms
            if not all(math.isfinite(row["loss"]) for row in terms):
                self._refuse(step, "the loss", rows)
            if step == 0 and number == 0 and self._starts_at_zero():
                self._check_start(terms)
            (losses.sum() / size).backward()
        norm = optimizer.clip()
        if not math.isfinite(norm):
            self._refuse(step, f"the gradient norm ({norm})", rows)
        rate = learning_rate(step, self.plan.steps, self.job.learning_rate, self.job.train)
        optimizer.step(rate)
        means = {
            name: _mean([row[name] for row in rows]) for name in rows[0] if name not in ("pair", "tokens", "log_ratio")
        }
        tokens = sum(row["tokens"] for row in rows)
        seconds = time.perf_counter() - started
        return StepMetrics(
            step=step + 1,
            grad_norm=norm,
            learning_rate=rate,
            tokens=tokens,
            seconds=seconds,
            **means,  # type: ignore[arg-type]
        )

    def _losses(
        self, logprobs: Tensor, references: Mapping[str, Tensor], pairs: Sequence[TrainingPair]
    ) -> tuple[Tensor, list[dict[str, Any]]]:
        """Losses [n] of the pairs, with gradients, and their terms as plain numbers, one row each."""
        policy = Sides(logprobs[:, 0], logprobs[:, -1])
        terms = PairTerms(
            policy=policy,
            references={name: Sides(values[:, 0], values[:, 1]) for name, values in references.items()},
            win_rates=_sides([(p.r_chosen, p.r_rejected) for p in pairs], logprobs),
            scores=_sides([(p.score_chosen, p.score_rejected) for p in pairs], logprobs),
            versus_policy=_sides([(p.p_chosen, p.p_rejected) for p in pairs], logprobs),
            lengths=_sides([(len(p.chosen_ids), len(p.rejected_ids)) for p in pairs], logprobs),
        )
        result = preference_loss(self.objective, terms, self.settings)
        two = self.objective.sides == 2
        columns: dict[str, list[Any]] = {
            "pair": [p.id for p in pairs],
            "tokens": [sum(map(len, p.answers(self.objective.sides)[1])) for p in pairs],
            "loss": result.losses.tolist(),
            "nll": result.nll.tolist(),
            "chosen_logprob": policy.chosen.tolist(),
            "rejected_logprob": policy.rejected.tolist() if two else [None] * len(pairs),
            "margin": [None] * len(pairs) if result.margin is None else result.margin.tolist(),
            "log_ratio": [None] * len(pairs) if result.log_ratio is None else result.log_ratio.tolist(),
            "accuracy": [None] * len(pairs) if result.correct is None else result.correct.tolist(),
        }
        return result.losses, [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _starts_at_zero(self) -> bool:
        """Whether policy and reference are one model before the first step, so that every log-ratio must be 0."""
        return math.isclose(sum(self.weights.values()), 1) and all(map(self._is_policy, self.weights))

    def _check_start(self, terms: Sequence[Mapping[str, Any]]) -> None:
        """Before the first step every log-ratio is 0, and every loss of a hard logistic target ln 2."""
        worst = max(terms, key=lambda row: abs(row["log_ratio"]))
        nats = abs(worst["log_ratio"])
        if not nats <= STEP_ZERO_TOLERANCE:
            raise TrainingError(
                f"iteration {self.job.iteration}: before the first step policy and reference differ by {nats:.3g} nats "
                f"(pair {worst['pair']}); accepted: {STEP_ZERO_TOLERANCE}. The reference log-probs in "
                f"{self.job.folder / 'references'} are not of this policy; remove them"
            )

    def _refuse(self, step: int, what: str, rows: Sequence[Mapping[str, Any]]) -> None:
        file = self.job.folder / f"nonfinite-step-{step + 1}.json"
        write_json(file, {"step": step + 1, "not_finite": what, "pairs": [_json_numbers(row) for row in rows]})
        raise TrainingError(
            f"iteration {self.job.iteration}, step {step + 1}: {what} is not finite; accepted: finite numbers. "
            f"The step was not taken; its pairs are in {file}"
        )

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
        means = {f.name: _mean([getattr(m, f.name) for m in self.history]) for f in fields(StepMetrics)}
        skipped = ("step", "tokens", "seconds", "learning_rate")
        result = TrainResult(
            policy=policy,
            steps=len(self.history),
            tokens=sum(m.tokens for m in self.history),
            seconds=sum(m.seconds for m in self.history),
            reference_seconds=reference_seconds,
            metrics={name: mean for name, mean in means.items() if mean is not None and name not in skipped},
            peak_memory_gb=peak_memory_gb(),
        )
        row = {f.name: getattr(result, f.name) for f in fields(TrainResult) if f.name != "policy"}
        write_json(job.folder / "result.json", {"key": self.key, "fingerprint": policy.fingerprint, "result": row})
        remove_checkpoints(job.folder)
        return result


def _finished(job: TrainJob, key: str) -> TrainResult | None:
    file = job.folder / "result.json"
    if not file.exists() or not job.output.is_dir():
        return None
    record = read_json(file)
    if record["key"] != key or record["fingerprint"] != fingerprint(job.output):
        return None
    name = f"iteration {job.iteration}"
    policy = Policy(job.output, record["fingerprint"], name, job.policy.trust_remote_code)
    return TrainResult(policy=policy, **record["result"])


def _check_pairs(job: TrainJob) -> None:
    """Raises TrainingError where a pair lacks tokens, or a word of the oracle that the objective reads."""
    objective = job.objective.row
    for pair in job.pairs:
        for name, ids in zip(("chosen_ids", "rejected_ids"), pair.answers(objective.sides)[1], strict=False):
            if not ids:
                raise TrainingError(f"pair {pair.id}: {name} is empty; accepted: at least 1 token")
        for need in sorted(objective.needs(job.objective.settings)):
            for name in (f"{WORDS[need]}_{side}" for side in ("chosen", "rejected")):
                if getattr(pair, name) is None:
                    raise TrainingError(
                        f"pair {pair.id}: {name} is None, but objective.name {job.objective.name!r} reads {need}; accepted: "
                        "an oracle that gives it (scores, or verdicts between samples of the policy)"
                    )


def _sides(values: Sequence[tuple[float | None, float | None]], like: Tensor) -> Sides:
    table = [[float("nan") if v is None else float(v) for v in row] for row in values]
    chosen, rejected = torch.tensor(table, dtype=torch.float32, device=like.device).unbind(1)
    return Sides(chosen, rejected)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return math.fsum(known) / len(known) if known else None


def _line(metrics: StepMetrics) -> str:
    return json.dumps(asdict(metrics), allow_nan=False) + "\n"


def _json_numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN or infinity: they become text."""
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
