"""What training can do before all of its pairs are known: load the model it needs first, compute reference log-probs.

Used while a slow judge is at work. At most one model is in memory, and at most a few batches of pairs; all that is left behind is
a loaded model and shards of log-probs, each a pure function of its batch, so that the result is the same to the last bit.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from nashtune.model.allocator import give_back_memory
from nashtune.model.loading import default_device
from nashtune.records import Policy
from nashtune.seeds import content_hash, seed_for
from nashtune.training.logprobs import check_fits
from nashtune.training.machine import deterministic
from nashtune.training.packing import Plan, TrainingPair, plan_steps, settled
from nashtune.training.references import ReferenceShards
from nashtune.training.trainee import Precision, Trainee

if TYPE_CHECKING:
    from pathlib import Path

    from nashtune.training.job import TrainJob


class HeadStart:
    """A training job's first steps. Its ``pairs`` are not looked at; pairs are told by ``add``, in the order in which they
    will be trained on. ``seconds``: spent so far."""

    def __init__(self, job: TrainJob):
        self.job = job
        self.seconds = 0.0
        self._references = job.objective.row.references(job.objective.settings)
        self._in_order = job.train.order == "judged"
        self._waiting: list[TrainingPair] = []
        self._model: Trainee | None = None
        self._of = ""
        """Whose weights ``_model`` has: a fixed reference's fingerprint, or "" for what will be trained."""

    @property
    def waiting(self) -> int:
        """Pairs held: at most those of two batches and of the last ``add``."""
        return len(self._waiting)

    def load(self) -> None:
        """Load the model that training needs first: the first reference that is not the policy itself, else the policy."""
        if self._model is not None:
            return
        started = time.perf_counter()
        fixed = next((name for name in self._references if not self.job.is_policy(name)), None)
        if fixed is None:
            self._model, self._of = _load_trainee(self.job), ""
        else:
            policy = self.job.references[fixed]
            self._model, self._of = Trainee.load_fixed(policy, _precision(self.job)), policy.fingerprint
        self.seconds += time.perf_counter() - started

    def add(self, pairs: Sequence[TrainingPair]) -> None:
        """The next pairs. Forgotten at once where batches are only known when all pairs are (train.order `shuffled`)."""
        if self._in_order and self._references:
            self._waiting += pairs

    def step(self) -> bool:
        """Compute the reference log-probs of one complete batch; False where there is none. Raises TrainingError for a pair
        that does not fit the model."""
        size = self.job.train.batch_size
        if self._model is None or not settled(len(self._waiting), size):
            return False
        started = time.perf_counter()
        batch, self._waiting = self._waiting[:size], self._waiting[size:]
        check_fits(self._model.model, ((f"pair {p.id}", p.answers()) for p in batch))
        policy = self._reference_of(self._of) if self._of else self.job.policy
        with deterministic():
            shards = ReferenceShards(reference_folder(self.job, policy), batch, plan_of(self.job, batch))
            shards.compute(self._model.forward)
        self.seconds += time.perf_counter() - started
        return True

    def fixed(self, policy: Policy) -> Trainee:
        """A fixed reference to compute with, alone in memory; no longer held here."""
        model = self._take(policy.fingerprint)
        return model or Trainee.load_fixed(policy, _precision(self.job))

    def trainee(self) -> Trainee:
        """The policy, ready to be trained; no longer held here."""
        return self._take("") or _load_trainee(self.job)

    def _take(self, whose: str) -> Trainee | None:
        """The held model where it is the one wanted; freed where it is another."""
        model, self._model = self._model, None
        if model is not None and self._of != whose:
            model = None
            give_back_memory()
        return model

    def _reference_of(self, fingerprint: str) -> Policy:
        return next(p for p in self.job.references.values() if p.fingerprint == fingerprint)


def plan_of(job: TrainJob, pairs: Sequence[TrainingPair], processes: int = 1) -> Plan:
    """Steps over ``pairs`` as the job's settings say, cut for so many processes."""
    return plan_steps(
        pairs,
        batch_size=job.train.batch_size,
        microbatch_tokens=job.train.microbatch_tokens,
        epochs=job.train.epochs,
        seed=seed_for(job.seed, "train", job.iteration),
        sides=job.objective.row.sides,
        shuffle=job.train.order == "shuffled",
        processes=processes,
    )


def reference_folder(job: TrainJob, policy: Policy, processes: int = 1) -> Path:
    """Where log-probs under ``policy`` go; two names of one policy share them."""
    # bf16 rounding differs between machines and thread counts, so log-probs of another one are not read.
    machine = (torch.__version__, default_device().type, torch.get_num_threads(), str(_precision(job)))
    machine += (processes,) if processes > 1 else ()
    # With adapters, or another way to hold the weights, a policy that is trained may compute otherwise than one that is read.
    how = job.train.model_dump(mode="json", include={"lora", "precision", "microbatch_tokens"})
    return job.folder / "references" / content_hash(policy.fingerprint, machine, how)


def adapter_seed(job: TrainJob) -> int:
    """What decides the initial values of adapters."""
    return seed_for(job.seed, "adapters", job.iteration)


def _precision(job: TrainJob) -> Precision:
    return Precision.of(job.train)


def _load_trainee(job: TrainJob) -> Trainee:
    return Trainee.load(job.policy, job.train, _precision(job), adapter_seed(job))
