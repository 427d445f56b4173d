"""A training job, what each of its steps says, and what comes out of it."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nashtune.errors import TrainingError
from nashtune.model.loading import fingerprint
from nashtune.objectives import WORDS
from nashtune.recipe import ObjectiveSection, TrainSection, uncounted
from nashtune.records import Policy
from nashtune.seeds import content_hash
from nashtune.store.files import read_json
from nashtune.training.packing import TrainingPair


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
    computed: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    """Committed objects with the log-probs of references that workers have computed (reference_units.py), by name; the trainer
    computes those of the others. Does not count in the key."""

    def is_policy(self, reference: str) -> bool:
        """Whether a reference is the policy itself, so that its log-probs come from the very model that is trained."""
        return self.references[reference].fingerprint == self.policy.fingerprint

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
    """Highest resident memory of the training process so far, or accelerator memory where there is one; of several, the
    highest."""
    rank_memory_gb: tuple[float, ...] = ()
    """The same of every process that trained, by rank."""


def finished(job: TrainJob, key: str) -> TrainResult | None:
    """What the job with this key gave, where it has ended."""
    file = job.folder / "result.json"
    if not file.exists() or not job.output.is_dir():
        return None
    record = read_json(file)
    if record["key"] != key or record["fingerprint"] != fingerprint(job.output):
        return None
    name = f"iteration {job.iteration}"
    policy = Policy(job.output, record["fingerprint"], name, job.policy.trust_remote_code)
    values = record["result"]
    return TrainResult(policy=policy, **values | {"rank_memory_gb": tuple(values.get("rank_memory_gb", ()))})


def check_pairs(job: TrainJob) -> None:
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


def mean(values: Sequence[float | None]) -> float | None:
    """Of the values that are not None; None where all are."""
    known = [v for v in values if v is not None]
    return math.fsum(known) / len(known) if known else None
