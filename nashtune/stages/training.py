"""Line 7 of Algorithm 2: the next policy, trained on the pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from nashtune.errors import PairError
from nashtune.objectives import reference_iteration
from nashtune.progress import progress
from nashtune.recipe import identity, uncounted
from nashtune.records import Pair, Policy
from nashtune.run import Run
from nashtune.seeds import content_hash
from nashtune.stages.references import committed_references
from nashtune.stages.training_order import PairTokens, in_training_order, told, words_read
from nashtune.stages.work import HEAD_START, engine_of, policy_of

if TYPE_CHECKING:
    from nashtune.training.head_start import HeadStart
    from nashtune.training.job import StepMetrics, TrainJob


def train(run: Run, iteration: int, pairs: Iterable[Pair]) -> Policy:
    """pi_t+1 from pi_t by one contrastive step over new and replayed pairs (eq. 13, or the recipe's objective)."""
    recipe = run.recipe
    used, lacking = _told(run, iteration, in_training_order(run, iteration, pairs))
    stage = run.stage(iteration, "train")
    before = starting_policy(run, iteration)
    references = references_of(run, iteration)
    inputs = (
        content_hash([pair.id for pair in used]),
        before.fingerprint,
        {name: policy.fingerprint for name, policy in references.items()},
        identity(recipe.objective),
        recipe.train.model_dump(mode="json", exclude={**uncounted(recipe.train), "learning_rate": True}),
        recipe.learning_rate(iteration),
        recipe.seed,
    )
    head_start: HeadStart | None = run.take(HEAD_START)
    if not stage.done(*inputs):
        from nashtune.training.trainer import train_policy

        engine_of(run).release()
        job = replace(job_without_pairs(run, iteration), pairs=tuple(PairTokens(run).of(used)))
        if head_start is not None and head_start.job != replace(job, pairs=()):
            head_start = None
        job = replace(job, computed=committed_references(run, iteration, job))
        with stage.clock() as tick, _step_progress(job, tick) as on_step:
            result = train_policy(job, on_step, head_start, scale=recipe.scale)
        facts = {
            "replayed": sum(pair.iteration < iteration for pair in used),
            "steps": result.steps,
            "tokens": result.tokens,
        }
        facts |= {"pairs_trained": len(used), "pairs_lacking": lacking}
        facts |= {"reference_seconds": result.reference_seconds, "peak_memory_gb": result.peak_memory_gb}
        facts |= {"rank_memory_gb": list(result.rank_memory_gb)}
        stage.finish(inputs, {**facts, **result.metrics}, result.policy.fingerprint)
    return policy_of(run, iteration)


def job_without_pairs(run: Run, iteration: int) -> TrainJob:
    """Iteration t's training, all but what it is trained on."""
    from nashtune.training.job import TrainJob

    return TrainJob(
        pairs=(),
        policy=starting_policy(run, iteration),
        references=references_of(run, iteration),
        objective=run.recipe.objective,
        train=run.recipe.train,
        learning_rate=run.recipe.learning_rate(iteration),
        seed=run.recipe.seed,
        iteration=iteration,
        folder=run.stage(iteration, "train").folder,
        output=run.iteration_folder(iteration) / "policy",
    )


def _told(run: Run, iteration: int, pairs: list[Pair]) -> tuple[list[Pair], int]:
    """The pairs of which the oracle said all that the objective reads, and the number of the others. Raises PairError
    where there are none of the first."""
    objective = run.recipe.objective
    found = told(objective, pairs)
    if pairs and not found:
        words = ", ".join(sorted(words_read(objective)))
        raise PairError(
            f"iteration {iteration}: objective.name {objective.name!r} reads {words}, which none of the "
            f"{len(pairs)} pairs has; accepted: an oracle that gives them (scores, or verdicts between the policy's samples)"
        )
    return found, len(pairs) - len(found)


def starting_policy(run: Run, iteration: int) -> Policy:
    """What iteration t's training starts from: pi_t-1, or pi_0 again where the recipe says so (DNO-Lookahead)."""
    return policy_of(run, 0 if run.recipe.train.start == "initial" else iteration - 1)


def references_of(run: Run, iteration: int) -> dict[str, Policy]:
    """The policies that the objective's references name in iteration t. "t" is what training starts from, so that policy
    and reference start equal."""
    objective = run.recipe.objective
    return {
        name: starting_policy(run, iteration) if name == "t" else policy_of(run, reference_iteration(name, iteration))
        for name in objective.row.references(objective.settings)
    }


@contextmanager
def _step_progress(job: TrainJob, tick: Callable[[], None]) -> Iterator[Callable[[StepMetrics], None]]:
    steps = math.ceil(len(job.pairs) / job.train.batch_size) * job.train.epochs
    with progress(f"iteration {job.iteration}: train", steps, "steps") as advance:

        def on_step(metrics: StepMetrics) -> None:
            tick()
            accuracy = "" if metrics.accuracy is None else f", accuracy {metrics.accuracy:.2f}"
            advance(1, f"loss {metrics.loss:.3f}{accuracy}")

        yield on_step
