"""A calibration run: the recipe's model sampled from, judged where that is free, and trained for two steps, all for real.

Its figures are kept in the cache folder under a hash of machine, model and settings, so that a plan pays for them once.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from nashtune import recipe as recipe_sections
from nashtune.environment import describe_environment
from nashtune.errors import ModelError, PromptError
from nashtune.judging.registry import open_oracle, parts_of
from nashtune.pairs import Item, build_pairs
from nashtune.planning.measured import Answers, Measured
from nashtune.planning.start import Start, start_of
from nashtune.planning.timed import TimedSampler, TimedScorer
from nashtune.planning.times import Times
from nashtune.planning.work import Work
from nashtune.recipe import BestOfN, Oracle, Recipe, identity, parse_recipe
from nashtune.records import Judgment, Pair, Prompt, Response
from nashtune.run import Run
from nashtune.sampling.role import Sampler
from nashtune.scale.local import Facts, LocalEngine, Unit
from nashtune.seeds import canonical_json, content_hash
from nashtune.stages.local_judge import is_local
from nashtune.stages.sampling import Scorer
from nashtune.stages.training import job_without_pairs
from nashtune.stages.training_order import PairTokens
from nashtune.stages.work import finish, policy_of, resources_of
from nashtune.store import tables
from nashtune.store.files import read_json, write_atomic, write_json
from nashtune.together import together

SETS = 2
"""Slots filled this many times over by each worker."""
STEPS = 2
"""Optimizer steps taken; the last is counted, as the first pays for what later ones find there."""
MOST_PAIRS = 32
"""Pairs trained on."""
FIGURES = sorted(set(Times.__dataclass_fields__) - {"start", "load_judge"})
"""What every calibration measured; one with other figures is made again. A start that is not there is rehearsed alone."""


def cached(recipe: Recipe, fingerprint: str) -> Times | None:
    """An earlier calibration of this recipe's model and settings on this machine."""
    file = _cache_file(recipe, fingerprint)
    if not file.exists():
        return None
    values = read_json(file)
    start = values.pop("start", None)
    return Times(**values, start=Start(**start) if start else None)


def calibrate(recipe: Recipe, work: Work, fresh: bool = False) -> Times:
    """The figures, measured unless they are in the cache (``fresh``: always).

    Raises ModelError where the recipe has no model to measure, PromptError where no prompt can be read, PlanError where the
    run's start fails in its rehearsal.
    """
    if recipe.sampling.engine != "native":
        raise ModelError(
            f"--calibrate: sampling.engine is {recipe.sampling.engine!r}; accepted: native, a model on this machine"
        )
    if not work.first:
        raise PromptError(
            f"--calibrate: prompts.source: {recipe.prompts.source!r} cannot be read on this machine; accepted: a source that "
            "can be read"
        )
    from nashtune.model.loading import find_policy

    fingerprint = find_policy(recipe.policy).fingerprint
    found = None if fresh else cached(recipe, fingerprint)
    if found is None or found.start is None:
        found = started(found or _measure(recipe, work), start_of(recipe))
        write_json(_cache_file(recipe, fingerprint), asdict(found))
    return found


def started(times: Times, start: Start) -> Times:
    """With this start, whose loading of a sampler is one among libraries that are there."""
    return replace(times, start=start, load_sampler=start.load)


def as_measured(times: Times) -> Measured:
    """For the estimate: the answers' length and the pairs the rule found."""
    answers = Answers(times.answers, times.answer_tokens, times.answer_characters)
    return Measured(
        f"calibration on {times.machine}", student=answers, pairs_per_prompt=times.pairs_per_prompt, times=times
    )


def machine() -> str:
    """What of this machine decides how fast it is."""
    import torch

    found = describe_environment()
    cpu = f"{found['cpu']['model']}, {found['cpu']['cores']} cores"
    gpus = ", ".join(str(gpu) for gpu in found["gpus"] or ())
    return f"{gpus or cpu}, torch {torch.__version__}, {torch.get_num_threads()} threads"


def _cache_file(recipe: Recipe, fingerprint: str) -> Path:
    from nashtune.model.loading import cache_folder

    sections = (recipe.sampling, recipe.oracle, recipe.pairs, recipe.objective, recipe.train)
    decides = [FIGURES, *map(identity, sections), recipe.scale.workers, recipe.prompts.source]
    return cache_folder() / "calibration" / f"{content_hash(machine(), fingerprint, canonical_json(decides))}.json"


def _measure(recipe: Recipe, work: Work) -> Times:
    """In a scratch run folder that is thrown away."""
    k, slots, workers = recipe.sampling.k, recipe.sampling.slots, recipe.scale.workers
    size = max(2, min(recipe.sampling.unit_prompts, -(-SETS * slots // k), len(work.first) // workers or 1))
    chosen = work.first[: size * workers]
    with tempfile.TemporaryDirectory(prefix="nashtune-calibration-") as place:
        folder = Path(place) / recipe.name
        file = folder / "prompts" / "part-1.parquet"
        write_atomic(file, tables.encode(Prompt, chosen, row_group=size))
        write_json(folder / "prompts" / "report.json", {})
        scratch = parse_recipe(recipe.written() | {"folder": place, "health": {"stop_on_alarm": False}})
        with Run.open(scratch, folder) as run:
            facts, responses = _sample(run, recipe, file, folder)
            load_scorer, score = _score(run, recipe, file, folder)
            judge, load_judge, judged = _judge(run, chosen, responses)
            trained = _train(run, chosen, responses, judged)
            prompt_tokens = _prompt_tokens(run, chosen)
    lengths = [len(r.token_ids) for r in responses]
    return Times(
        machine=machine(),
        workers=workers,
        slots=slots,
        step=fmean(f["step"] for f in facts),
        row=fmean(f["row"] for f in facts),
        prefill=fmean(f["prefill"] for f in facts),
        load_sampler=max(f["load"] for f in facts),
        answer_tokens=fmean(lengths),
        answer_characters=fmean(len(r.text) for r in responses),
        longest_answer=float(max(lengths)),
        prompt_tokens=prompt_tokens,
        answers=len(responses),
        judge=judge,
        pairs_per_prompt=trained.per_prompt,
        train_pair=trained.step,
        reference_pair=trained.references,
        train_fixed=trained.fixed,
        load_scorer=load_scorer,
        score=score,
        load_judge=load_judge,
    )


def _prompt_tokens(run: Run, prompts: Sequence[Prompt]) -> float:
    from nashtune.model.loading import load_tokenizer, render

    tokenizer = load_tokenizer(policy_of(run, 0))
    return fmean(len(render(tokenizer, p.messages)) for p in prompts)


def _sample(run: Run, recipe: Recipe, file: Path, folder: Path) -> tuple[list[Facts], list[Response]]:
    """One unit for each worker, all at the same time."""
    teacher = recipe.teacher
    role = TimedSampler(
        Sampler(
            policy=policy_of(run, 0),
            sampling=recipe.sampling,
            n=recipe.sampling.k + (teacher.n if isinstance(teacher, BestOfN) else 0),
            seed=recipe.seed,
            purpose="calibration",
            is_initial=True,
        )
    )
    count = tables.shape(file)[1]
    units = [Unit(i, file, _sampled(folder, i)) for i in range(count)]
    with closing(LocalEngine(recipe.scale.workers, "nashtune.sampling.native")) as engine:
        facts = [found for _, found in engine.run(role, units)]
    return facts, list(tables.stream(Response, [unit.target for unit in units]))


def _sampled(folder: Path, index: int) -> Path:
    return folder / f"sampled-{index}.parquet"


def _score(run: Run, recipe: Recipe, file: Path, folder: Path) -> tuple[float, float]:
    """Seconds to load a scorer, and for each answer: of the sampled units, all at the same time as in sampling."""
    role = TimedScorer(Scorer(policy_of(run, 0), "t", "float32"))
    count = tables.shape(file)[1]
    units = [Unit(i, file, folder / f"scored-{i}.parquet", _sampled(folder, i)) for i in range(count)]
    with closing(LocalEngine(recipe.scale.workers, "nashtune.sampling.native")) as engine:
        facts = [found for _, found in engine.run(role, units)]
    answers = sum(tables.shape(unit.target)[0] for unit in units)
    return max(f["load"] for f in facts), sum(f["seconds"] for f in facts) / answers


def _judge(
    run: Run, prompts: Sequence[Prompt], responses: Sequence[Response]
) -> tuple[float | None, float, list[Item]]:
    """Seconds for each candidate where judging is free and waits for nobody, those of opening such a judge, and the judged
    sets: the first k answers with the teacher's, the best of the others, where the recipe has such a teacher."""
    section, k = run.recipe.judge(validation=False), run.recipe.sampling.k
    free = (recipe_sections.RulesOracle, recipe_sections.ScriptedOracle)
    joined = (recipe_sections.PanelOracle, recipe_sections.CascadeOracle)
    if section is None or not all(is_local(part) or isinstance(part, (*free, *joined)) for part in parts_of(section)):
        return None, 0.0, []
    answers: dict[str, list[Response]] = {prompt.id: [] for prompt in prompts}
    for response in responses:
        answers[response.prompt_id].append(response)
    pools = [answers[prompt.id][k:] for prompt in prompts]
    if pools[0]:
        *_, choices = _judged(run, section, prompts, pools)
        best = [pool[_best(found)].replace(source="teacher") for pool, found in zip(pools, choices, strict=True)]
        sets = [[*answers[prompt.id][:k], one] for prompt, one in zip(prompts, best, strict=True)]
    else:
        sets = [answers[prompt.id] for prompt in prompts]
    seconds, load, found = _judged(run, section, prompts, sets)
    return seconds, load, list(zip(prompts, sets, found, strict=True))


def _judged(
    run: Run, section: Oracle, prompts: Sequence[Prompt], sets: Sequence[list[Response]]
) -> tuple[float, float, list[Judgment]]:
    """Seconds for each candidate, of all sets but the first, which pays for what is loaded at first use; those of opening, with
    what the first set takes more; and the verdicts."""
    laps = [time.perf_counter()]
    oracle = open_oracle(section, resources_of(run, 1))

    async def work() -> list[Judgment]:
        try:
            first = await oracle.judge(prompts[0], sets[0], 0)
            laps.append(time.perf_counter())
            rest = zip(prompts[1:], sets[1:], strict=True)
            return [first, *await together(oracle.judge(prompt, found, 0) for prompt, found in rest)]
        finally:
            laps.append(time.perf_counter())
            await oracle.aclose()

    found = finish(work())
    first, rest = laps[1] - laps[0], laps[2] - laps[1]
    each = rest / sum(map(len, sets[1:])) if sets[1:] else first / len(sets[0])
    return each, max(0.0, first - each * len(sets[0])), found


def _best(judgment: Judgment) -> int:
    rates = [rate if rate is not None else -1.0 for rate in judgment.win_rates()]
    return rates.index(max(rates))


@dataclass(frozen=True, slots=True)
class _Trained:
    """Pairs the rule finds for each prompt; seconds of steps and of reference log-probs for each pair, and of all else."""

    per_prompt: float | None
    step: float
    references: float
    fixed: float


def _train(run: Run, prompts: Sequence[Prompt], responses: Sequence[Response], judged: Sequence[Item]) -> _Trained:
    """Two optimizer steps on pairs of the sampled answers: those the rule finds, where there is a judge, else any two."""
    from nashtune.training.head_start import HeadStart
    from nashtune.training.job import StepMetrics
    from nashtune.training.trainer import train_policy

    pairs = list(build_pairs(judged, run.recipe.pairs, 1, run.recipe.seed).pairs) if judged else []
    per_prompt = len(pairs) / len(judged) if judged else None
    size = min(run.recipe.train.batch_size, MOST_PAIRS // STEPS)
    answers = {r.id: r for r in (*responses, *(r for _, found, _ in judged for r in found))}
    pairs += _any_pairs(responses, STEPS * size - len(pairs))
    chosen = pairs[: STEPS * size]
    started = time.perf_counter()
    tokens = tuple(PairTokens(run).of(chosen, prompts, answers.values()))
    base = job_without_pairs(run, 1)
    section = base.train.model_copy(update={"batch_size": -(-len(chosen) // STEPS), "epochs": 1})
    job = replace(base, pairs=tokens, train=section)
    steps: list[StepMetrics] = []
    head_start = HeadStart(replace(job, pairs=()))
    head_start.load()
    loaded = head_start.seconds
    result = train_policy(job, steps.append, head_start)
    references = max(0.0, result.reference_seconds - loaded)
    count, last = len(job.pairs), steps[-1]
    step = last.seconds * sum(one.tokens for one in steps) / max(1, last.tokens)  # as if all went as fast as the last
    fixed = time.perf_counter() - started - references - min(step, sum(one.seconds for one in steps))
    return _Trained(per_prompt, step / count, references / count, fixed)


def _any_pairs(responses: Sequence[Response], count: int) -> list[Pair]:
    """Pairs of neighbouring answers to one prompt, where the judge's are too few for the steps."""
    found = []
    for a, b in pairwise(responses):
        if len(found) >= count:
            break
        if a.prompt_id == b.prompt_id:
            words = {"r_chosen": 1.0, "r_rejected": 0.0, "score_chosen": 5.0, "score_rejected": 1.0}
            one = content_hash("calibration", a.id, b.id)
            found.append(Pair(one, a.prompt_id, a.id, b.id, "S>S", iteration=1, p_chosen=1.0, p_rejected=0.0, **words))
    return found
