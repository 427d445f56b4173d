"""One optimizer step: losses of a batch's pairs, their gradients, and what is refused."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nashtune.errors import TrainingError
from nashtune.objectives import PairTerms, Sides, preference_loss
from nashtune.store.files import write_json
from nashtune.training.job import StepMetrics, TrainJob, mean
from nashtune.training.optimizer import Optimizer, learning_rate
from nashtune.training.packing import Plan, TrainingPair, shortest
from nashtune.training.trainee import Precision, Trainee
from nashtune.training.world import World

STEP_ZERO_TOLERANCE = 1e-3
"""Nats by which a pair's log-ratio may differ between policy and reference while they are the same model."""
ROUNDING = {True: 2e-3, False: 0.1}
"""The same for each square root of a pair's answer tokens, where a worker has computed the reference, perhaps on another kind of
machine; by whether training computes in float32. An answer's log-prob is a sum of as many rounding errors as it has tokens."""


class Steps:
    """The steps of a job's plan."""

    def __init__(self, job: TrainJob, plan: Plan, world: World):
        self.job, self.plan, self.world = job, plan, world
        self.objective, self.settings = job.objective.row, job.objective.settings

    def take(self, step: int, trainee: Trainee, optimizer: Optimizer, references: Mapping[str, Tensor]) -> StepMetrics:
        """One optimizer step (``step`` counts from 0). In the first one, reference log-probs [pairs, 2] that are NaN are filled
        in with the policy's, which is then still the reference. Refused, weights untouched, where a number is not finite. For
        all ranks: each computes its share of the micro-batches, and all come to the same metrics, or the same refusal."""
        started = time.perf_counter()
        batch = self.plan.batches[self.plan.order[step]]
        rows = self._backward(step, batch, trainee, references)
        if not all(math.isfinite(row["loss"]) for row in rows):
            self._refuse(step, "the loss", rows)
        if step == 0 and self._starts_at_zero():
            self._check_start(rows)
        norm = optimizer.clip()
        if not math.isfinite(norm):
            self._refuse(step, f"the gradient norm ({norm})", rows)
        rate = learning_rate(step, self.plan.steps, self.job.learning_rate, self.job.train)
        optimizer.step(rate)
        means = {
            name: mean([row[name] for row in rows]) for name in rows[0] if name not in ("pair", "tokens", "log_ratio")
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

    def _backward(
        self, step: int, batch: Sequence[Sequence[int]], trainee: Trainee, references: Mapping[str, Tensor]
    ) -> list[dict[str, Any]]:
        """Gradients of the batch's mean loss; returns the terms of all its pairs, whoever computed them."""
        size, ranks = sum(map(len, batch)), self.world.size
        rows: list[dict[str, Any]] = []
        mine = self.world.share(batch)
        for count, microbatch in enumerate(mine):
            self.world.pulse.beat(f"step {step + 1}, micro-batch {count + 1} of {len(mine)}")
            rows += self._add_gradients(microbatch, size / ranks, trainee, references, step == 0)
        if len(mine) < -(-len(batch) // ranks):
            # Every rank has to take part in gathering weights and summing gradients: a pass that adds nothing.
            idle = shortest([self.job.pairs[i] for microbatch in batch for i in microbatch])
            (trainee.forward([idle], self.objective.sides).sum() * 0).backward()
        return [row for rank_rows in self.world.gather(rows) for row in rank_rows]

    def _add_gradients(
        self, microbatch: Sequence[int], size: float, trainee: Trainee, references: Mapping[str, Tensor], first: bool
    ) -> list[dict[str, Any]]:
        """Those of a micro-batch's summed losses over ``size``; returns the pairs' terms.

        A function of its own, so that nothing of its graph is alive when the next micro-batch's activations come: the graph's
        nodes lie scattered among its own, and would keep a CPU's heap from reusing their place.
        """
        pairs = [self.job.pairs[i] for i in microbatch]
        places = list(microbatch)
        logprobs = trainee.forward(pairs, self.objective.sides)
        for values in references.values():
            if first and values[places].isnan().any():  # the policy's own, which nothing has changed yet
                values[places] = logprobs.detach().float().cpu()
        stored = {name: values[places].to(logprobs.device) for name, values in references.items()}
        losses, terms = self._losses(logprobs, stored, pairs)
        # FSDP2 averages the ranks' gradients; their sum is meant.
        (losses.sum() / size).backward()
        return terms

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
        weights = self.objective.references(self.settings)
        return math.isclose(sum(weights.values()), 1) and all(map(self.job.is_policy, weights))

    def _check_start(self, terms: Sequence[Mapping[str, Any]]) -> None:
        """Before the first step every log-ratio is 0, and every loss of a hard logistic target ln 2."""
        worst = max(terms, key=lambda row: abs(row["log_ratio"]) / self._tolerance(row["tokens"]))
        nats, accepted = abs(worst["log_ratio"]), self._tolerance(worst["tokens"])
        if not nats <= accepted:
            files = next(iter(self.job.computed.values()), ())
            where = files[0].parent if files else self.job.folder / "references"
            otherwise = "or the workers' machines round otherwise than this one (then scale.references: trainer); else "
            raise TrainingError(
                f"iteration {self.job.iteration}: before the first step policy and reference differ by {nats:.3g} nats "
                f"(pair {worst['pair']}); accepted: {accepted:.3g}. The reference log-probs in {where} are not of this policy; "
                f"{otherwise if files else ''}remove them"
            )

    def _tolerance(self, tokens: int) -> float:
        if not self.job.computed:
            return STEP_ZERO_TOLERANCE
        precision = Precision.of(self.job.train)
        exact = precision.autocast is None and precision.weights == torch.float32
        return ROUNDING[exact] * math.sqrt(tokens)

    def _refuse(self, step: int, what: str, rows: Sequence[Mapping[str, Any]]) -> None:
        file = self.job.folder / f"nonfinite-step-{step + 1}.json"
        if self.world.first:
            write_json(file, {"step": step + 1, "not_finite": what, "pairs": [_json_numbers(row) for row in rows]})
        raise TrainingError(
            f"iteration {self.job.iteration}, step {step + 1}: {what} is not finite; accepted: finite numbers. "
            f"The step was not taken; its pairs are in {file}"
        )


def _sides(values: Sequence[tuple[float | None, float | None]], like: Tensor) -> Sides:
    table = [[float("nan") if v is None else float(v) for v in row] for row in values]
    chosen, rejected = torch.tensor(table, dtype=torch.float32, device=like.device).unbind(1)
    return Sides(chosen, rejected)


def _json_numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN or infinity: they become text."""
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
