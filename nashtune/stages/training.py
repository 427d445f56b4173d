"""Lines 6 and 7 of Algorithm 2: large-margin pairs, and the next policy trained on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nashtune.errors import PairError
from nashtune.objectives import WORDS, reference_iteration
from nashtune.pairs import Dynamics, PairSet, build_pairs, replay
from nashtune.progress import progress
from nashtune.recipe import identity
from nashtune.records import Pair, Policy, Prompt, Response
from nashtune.run import Run
from nashtune.seeds import content_hash, seed_for
from nashtune.stages.candidates import Judgments
from nashtune.stages.work import engine_of, policy_of
from nashtune.store import tables
from nashtune.store.files import write_atomic

if TYPE_CHECKING:
    from nashtune.training.packing import TrainingPair
    from nashtune.training.trainer import StepMetrics, TrainJob


def make_pairs(run: Run, judgments: Judgments) -> list[Pair]:
    """The iteration's new pairs; counts of what gave none go into the stage's record. Raises PairError if there are none."""
    iteration = judgments.candidates.iteration
    stage = run.stage(iteration, "pairs")
    inputs = (judgments.units.key, identity(run.recipe.pairs), run.recipe.seed)
    file = stage.folder / "pairs.parquet"
    if not stage.done(*inputs):
        with stage.clock():
            dynamics = Dynamics()
            made = build_pairs(dynamics.watch(judgments), run.recipe.pairs, iteration, run.recipe.seed)
            write_atomic(file, tables.encode(Pair, made.pairs))
            _keep_rows(run, judgments, made)
        facts = {"kinds": made.kinds, "margins": made.margins, "dropped": made.dropped, "dynamics": dynamics.columns()}
        stage.finish(inputs, facts)
    pairs = tables.read(Pair, file)
    if not pairs:
        counts = stage.record()["facts"]["dropped"]
        raise PairError(
            f"iteration {iteration}: not one training pair from {judgments.candidates.part.prompts} prompts ({counts}). "
            "Accepted: a pair rule and margins that the oracle's verdicts can meet (section `pairs`); `nashtune status` "
            "shows the best iteration so far"
        )
    return pairs


def _keep_rows(run: Run, judgments: Judgments, made: PairSet) -> None:
    """Beside the pairs, the prompts and responses they name, so that later iterations can replay them."""
    prompts, responses = tables.Encoder(Prompt), tables.Encoder(Response)
    wanted = {i for pair in made.pairs for i in (pair.chosen_id, pair.rejected_id)}
    asked = {pair.prompt_id for pair in made.pairs}
    for prompt, answers, _ in judgments:
        if prompt.id in asked:
            prompts.add(prompt)
            for answer in answers:
                if answer.id in wanted:
                    responses.add(answer)
    folder = run.stage(judgments.candidates.iteration, "pairs").folder
    write_atomic(folder / "prompts.parquet", prompts.finish())
    write_atomic(folder / "responses.parquet", responses.finish())


def replayed_pairs(run: Run, iteration: int, new: int) -> tuple[Pair, ...]:
    """Pairs of earlier iterations to train on again."""
    earlier = [tables.read(Pair, _pairs_file(run, t)) for t in range(iteration - 1, 0, -1)]
    return replay(run.recipe.replay, new, earlier, seed_for(run.recipe.seed, "replay", iteration))


def _pairs_file(run: Run, iteration: int) -> Any:
    return run.stage(iteration, "pairs").folder / "pairs.parquet"


def train(run: Run, iteration: int, pairs: Iterable[Pair]) -> Policy:
    """pi_t+1 from pi_t by one contrastive step over new and replayed pairs (eq. 13, or the recipe's objective)."""
    new = list(pairs)
    used = [*new, *replayed_pairs(run, iteration, len(new))]
    recipe = run.recipe
    if recipe.objective.row.sides == 1:
        used = one_per_positive(used)
    used, lacking = _told(run, iteration, used)
    stage = run.stage(iteration, "train")
    before = starting_policy(run, iteration)
    references = references_of(run, iteration)
    inputs = (
        content_hash([pair.id for pair in used]),
        before.fingerprint,
        {name: policy.fingerprint for name, policy in references.items()},
        identity(recipe.objective),
        recipe.train.model_dump(mode="json", exclude={"checkpoint_steps", "learning_rate"}),
        recipe.learning_rate(iteration),
        recipe.seed,
    )
    if not stage.done(*inputs):
        from nashtune.training.trainer import TrainJob, train_policy

        engine_of(run).release()
        job = TrainJob(
            pairs=tuple(_with_tokens(run, used, policy_of(run, 0))),
            policy=before,
            references=references,
            objective=recipe.objective,
            train=recipe.train,
            learning_rate=recipe.learning_rate(iteration),
            seed=recipe.seed,
            iteration=iteration,
            folder=stage.folder,
            output=run.iteration_folder(iteration) / "policy",
        )
        with stage.clock() as tick, _step_progress(job, tick) as on_step:
            result = train_policy(job, on_step, processes=recipe.scale.train_processes)
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


def _told(run: Run, iteration: int, pairs: list[Pair]) -> tuple[list[Pair], int]:
    """The pairs of which the oracle said all that the objective reads, and the number of the others. Raises PairError
    where there are none of the first."""
    objective = run.recipe.objective
    words = [f"{WORDS[n]}_{side}" for n in objective.row.needs(objective.settings) for side in ("chosen", "rejected")]
    told = [pair for pair in pairs if all(getattr(pair, word) is not None for word in words)]
    if pairs and not told:
        raise PairError(
            f"iteration {iteration}: objective.name {objective.name!r} reads {', '.join(sorted(words))}, which none of the "
            f"{len(pairs)} pairs has; accepted: an oracle that gives them (scores, or verdicts between the policy's samples)"
        )
    return told, len(pairs) - len(told)


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


def one_per_positive(pairs: Iterable[Pair]) -> list[Pair]:
    """Each positive once, by its first pair, for objectives that do not read negatives."""
    first: dict[str, Pair] = {}
    for pair in pairs:
        first.setdefault(pair.chosen_id, pair)
    return list(first.values())


@contextmanager
def _step_progress(job: TrainJob, tick: Callable[[], None]) -> Iterator[Callable[[StepMetrics], None]]:
    steps = math.ceil(len(job.pairs) / job.train.batch_size) * job.train.epochs
    with progress(f"iteration {job.iteration}: train", steps, "steps") as advance:

        def on_step(metrics: StepMetrics) -> None:
            tick()
            accuracy = "" if metrics.accuracy is None else f", accuracy {metrics.accuracy:.2f}"
            advance(1, f"loss {metrics.loss:.3f}{accuracy}")

        yield on_step


def _with_tokens(run: Run, pairs: list[Pair], initial: Policy) -> Iterator[TrainingPair]:
    """Pairs with the token ids of prompt and answers, as sampled."""
    from nashtune.model.loading import load_tokenizer, render
    from nashtune.training.packing import TrainingPair

    tokenizer = load_tokenizer(initial)
    tokens: dict[str, tuple[int, ...]] = {}
    rendered: dict[str, tuple[int, ...]] = {}
    for born in sorted({pair.iteration for pair in pairs}):
        folder = run.stage(born, "pairs").folder
        rendered |= {
            p.id: tuple(render(tokenizer, p.messages)) for p in tables.read(Prompt, folder / "prompts.parquet")
        }
        tokens |= {r.id: r.token_ids for r in tables.read(Response, folder / "responses.parquet")}
    for pair in pairs:
        yield TrainingPair(
            id=pair.id,
            prompt_ids=rendered[pair.prompt_id],
            chosen_ids=tokens[pair.chosen_id],
            rejected_ids=tokens[pair.rejected_id],
            r_chosen=pair.r_chosen,
            r_rejected=pair.r_rejected,
            score_chosen=pair.score_chosen,
            score_rejected=pair.score_rejected,
            p_chosen=pair.p_chosen,
            p_rejected=pair.p_rejected,
        )
