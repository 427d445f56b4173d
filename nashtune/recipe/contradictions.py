"""Which settings of a recipe contradict each other, or would be read by nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import TYPE_CHECKING

from nashtune.recipe.cluster import not_read, ray_problems, vllm_problems
from nashtune.recipe.evaluation import evaluation_problems
from nashtune.recipe.hosted import hosted_contradictions, workers_contradictions
from nashtune.recipe.methods import METHODS
from nashtune.recipe.oracles import CascadeOracle, CompactOracle, Oracle, PairwiseOracle, PanelOracle
from nashtune.recipe.teachers import RemoteTeacher

if TYPE_CHECKING:
    from nashtune.recipe.recipe import Recipe
    from nashtune.recipe.sections import ScaleSection, TrainSection

THRESHOLDS = {
    "paper": ("positive_score", "margin", "student_margin", "positive_rate", "rate_margin", "student_rate_margin"),
    "restrictive": ("positive_score", "margin", "positive_rate", "rate_margin"),
}
"""The thresholds that each pair rule reads."""
SELECTED = ("win_rate_vs_initial", "mean_score", "satisfied_and_good")
"""Figures of the held-out contest that may decide the best iteration."""
COMPARING = ("pairwise", "preference_model", "people")
"""Oracles that compare and do not score."""
GIVE_PROBABILITIES = ("preference_model", "reward_model", "pairwise", "panel")
"""Oracles whose P(i beats j) may lie anywhere between 0 and 1."""
LARGEST_SERVED_RANK = 512
"""The largest value of vLLM's max_lora_rank."""
LEAST_K_VERSUS_POLICY = 3
"""Fewest samples from which P(y beats pi_t) is estimated: each is compared with two others."""


def contradictions(recipe: Recipe) -> Iterator[str]:
    """Settings that fight each other or that nothing would read, each as one sentence."""
    if recipe.method is not None and recipe.method not in METHODS:
        yield f"method is {recipe.method!r}; accepted: {', '.join(METHODS)}"
    yield from _stages(recipe)
    yield from oracle_contradictions(recipe.oracles)
    yield from _anchors(recipe)
    yield from _objective(recipe)
    yield from _sampled_policy(recipe)
    yield from _training(recipe.train)
    yield from _processes(recipe)
    yield from _engine(recipe)
    yield from _evaluations(recipe)
    yield from _cluster(recipe)


def _stages(recipe: Recipe) -> list[str]:
    """What the stages' settings ask of each other."""
    found: list[str] = []
    teacher, prompts = recipe.teacher, recipe.prompts
    if teacher.kind == "column" and not prompts.teacher_column:
        found.append("teacher.kind is 'column' but prompts.teacher_column is not set; name the column")
    if teacher.kind != "column" and prompts.teacher_column:
        found.append(
            f"prompts.teacher_column is {prompts.teacher_column!r} but teacher.kind is {teacher.kind!r}, "
            "so nothing would read it; set teacher.kind: column or remove it"
        )
    if isinstance(teacher, RemoteTeacher) and teacher.engine.batch:
        found.append("teacher.engine.batch is true, but only judges buy in batches so far; accepted: false")
    if recipe.pairs.rule in ("restrictive", "teacher_wins") and teacher.kind == "none":
        found.append(
            f"pairs.rule {recipe.pairs.rule!r} takes the teacher's answers as positives but teacher.kind is 'none'"
        )
    if teacher.kind == "none" and recipe.sampling.k < 2:
        found.append(
            f"sampling.k is {recipe.sampling.k} and there is no teacher: no pair could be built; accepted: 2 or more"
        )
    if recipe.sampling.temperature == 0 and {"top_p", "top_k"} & recipe.sampling.model_fields_set:
        found.append(
            "sampling.temperature is 0 (greedy), so sampling.top_p and sampling.top_k would not be read; remove them"
        )
    if recipe.sampling.k > recipe.sampling.slots and recipe.sampling.engine != "vllm":
        found.append(
            f"sampling.k is {recipe.sampling.k} but sampling.slots is {recipe.sampling.slots}; accepted: slots >= k"
        )
    rates = recipe.train.learning_rate
    found += [
        f"train.learning_rate is {rate}; accepted: a number between 0 and 1, or a list of them"
        for rate in (rates if isinstance(rates, tuple) else (rates,))
        if not 0 < rate < 1
    ]
    if recipe.replay.fraction in (0, "all") and "decay" in recipe.replay.model_fields_set:
        found.append(f"replay.fraction is {recipe.replay.fraction!r}, so replay.decay would not be read; remove it")
    if recipe.oracle.kind == "rules" and recipe.oracle.guard.min_words > recipe.oracle.guard.max_words:
        found.append("oracle.guard.min_words is above oracle.guard.max_words")
    if recipe.validate_.select == "satisfied_and_good" and recipe.validation_oracle.kind != "rules":
        found.append("validate.select 'satisfied_and_good' needs oracle.kind (or validate.oracle.kind) 'rules'")
    if recipe.average == "weights" and recipe.sampling.engine == "scripted":
        found.append(
            "average is 'weights' but sampling.engine 'scripted' has no weights; accepted: average 'best' or 'last'"
        )
    read, fields = THRESHOLDS.get(recipe.pairs.rule, ()), type(recipe.pairs).model_fields
    unread = [
        name
        for name in THRESHOLDS["paper"]
        if name not in read
        and getattr(recipe.pairs, name) != fields[name].default  # a resolved recipe has all defaults
    ]
    if unread:
        names = ", ".join(f"pairs.{name}" for name in unread)
        found.append(f"pairs.rule {recipe.pairs.rule!r} does not read {names}; remove what is not read")
    return found


def oracle_contradictions(oracles: Iterable[Oracle]) -> Iterator[str]:
    """What the judges' own settings ask of each other."""
    for oracle in (oracles := tuple(oracles)):
        yield from hosted_contradictions(_parts(oracle))
    for part in (part for oracle in oracles for part in _parts(oracle)):
        if isinstance(part, PanelOracle) and part.quorum > len(part.members):
            yield (
                f"oracle.panel.quorum is {part.quorum} but the panel has {len(part.members)} members; accepted: 1 to "
                f"{len(part.members)}"
            )
        if isinstance(part, CascadeOracle) and part.trust is not None and part.cheap.kind not in GIVE_PROBABILITIES:
            yield (
                f"oracle.cascade.trust is {part.trust:g} but the cheap oracle {part.cheap.kind!r} does not say how sure it is; "
                f"accepted: a cheap oracle of kind {', '.join(GIVE_PROBABILITIES)}, or trust null"
            )
        if not isinstance(part, CompactOracle | PairwiseOracle) or part.use != "replies":
            continue
        if part.replies > 1 and part.temperature == 0:
            yield (
                f"oracle.{part.kind}.replies is {part.replies} at temperature 0: the same reply would be paid for "
                f"{part.replies} times; accepted: replies 1, or a temperature above 0"
            )


def _evaluations(recipe: Recipe) -> Iterator[str]:
    """What suites ask of each other, and what is chosen by them."""
    yield from evaluation_problems(recipe.evaluate)
    select = recipe.validate_.select
    if select in SELECTED:
        return
    found = recipe.evaluation(select)
    if found is None:
        given = [name for suite in recipe.evaluate for name in suite.metric_names()]
        yield f"validate.select is {select!r}; accepted: {', '.join([*SELECTED, *given])}" + (
            "" if given else ", or a metric of a suite under `evaluate`"
        )
    elif found[0].when != "each":
        yield (
            f"validate.select is {select!r} but evaluate.{found[0].called}.when is 'end', so that iterations would have no such "
            "figure; accepted: when 'each'"
        )


def _anchors(recipe: Recipe) -> Iterator[str]:
    held_out = recipe.prompts.validation.count
    if recipe.health.anchors > held_out:
        yield (
            f"health.anchors is {recipe.health.anchors} but prompts.validation.count is {held_out}; accepted: 0 to {held_out}"
        )


def _parts(oracle: Oracle) -> Iterator[Oracle]:
    """An oracle and those inside it."""
    yield oracle
    inside: list[Oracle] = []
    if isinstance(oracle, PanelOracle):
        inside = [member.oracle for member in oracle.members]
    elif isinstance(oracle, CascadeOracle):
        inside = [part for part in (oracle.cheap, oracle.strong, oracle.audit_oracle) if part is not None]
    for part in inside:
        yield from _parts(part)


def _objective(recipe: Recipe) -> Iterator[str]:
    """What the objective asks of the pair rule and the oracle."""
    objective, rule, sampling = recipe.objective, recipe.pairs.rule, recipe.sampling
    if problem := objective.row.problem(objective.settings):
        yield problem
    needs = objective.row.needs(objective.settings)
    if needs and rule == "teacher_wins":
        yield (
            f"objective.name {objective.name!r} reads the oracle's {', '.join(sorted(needs))} but pairs.rule 'teacher_wins' "
            "does not ask it; accepted: another rule, or an objective that reads nothing of the oracle's (as spin)"
        )
    if "scores" in needs and rule != "teacher_wins" and not _scores(recipe.oracle):
        yield (
            f"objective.name {objective.name!r} reads scores but oracle.kind {recipe.oracle.kind!r} only compares; accepted: "
            f"an oracle that scores, so none of {', '.join(COMPARING)} (nor inside a panel, nor as a "
            "cascade's strong or trusted oracle)"
        )
    if "versus_policy" in needs:
        who = f"objective.name {objective.name!r} estimates P(y beats pi_t) from the other samples of pi_t"
        if sampling.k < LEAST_K_VERSUS_POLICY:
            yield f"{who} but sampling.k is {sampling.k}; accepted: {LEAST_K_VERSUS_POLICY} or more"
        if sampling.policy == "initial":
            yield f"{who} but sampling.policy is 'initial'; accepted: 'current'"
        if sampling.mixture:
            yield f"{who} but sampling.mixture is {sampling.mixture:g}; accepted: 0"


def _training(train: TrainSection) -> Iterator[str]:
    """What settings of memory and kernels ask of each other."""
    if train.gradient_checkpointing and train.activation_gb is not None:
        yield (
            f"train.activation_gb is {train.activation_gb:g}, which recomputes as many layers as it takes, but "
            "train.gradient_checkpointing is true, which recomputes them all; accepted: one of the two"
        )
    if train.compile and train.liger:
        yield "train.compile and train.liger are both true, and both fuse norms and MLPs; accepted: one of the two"
    if train.attention == "varlen" and train.precision == "float32":
        yield (
            "train.attention is 'varlen', whose kernels compute in bf16, but train.precision is 'float32'; accepted: precision "
            "'auto', 'autocast' or 'bfloat16', or another attention"
        )


def _processes(recipe: Recipe) -> Iterator[str]:
    """What several training processes cannot do."""
    scale, train = recipe.scale, recipe.train
    yield from _launcher(scale)
    name, count = max(("train_processes", scale.train_processes), ("train_nodes", scale.train_nodes), key=itemgetter(1))
    if count == 1:
        return
    single = {
        "train.activation_gb": train.activation_gb is not None,
        "train.liger": train.liger,
        "train.compile": train.compile,
        "train.optimizer 'adamw_8bit'": train.optimizer == "adamw_8bit",
        "train.lora.base 'nf4'": train.lora is not None and train.lora.base == "nf4",
    }
    for setting in (setting for setting, asked in single.items() if asked):
        yield f"scale.{name} is {count} but {setting} is for one process; accepted: 1, or without {setting}"


def _launcher(scale: ScaleSection) -> Iterator[str]:
    """What a launcher cannot do."""
    if scale.launcher == "local" and scale.train_nodes > 1:
        yield (
            f"scale.train_nodes is {scale.train_nodes} but scale.launcher is 'local'; accepted: 1, or launcher 'slurm' or 'ray'"
        )
    least = scale.min_train_nodes
    if least is not None and (scale.launcher == "local" or least > scale.train_nodes):
        yield (
            f"scale.min_train_nodes is {least} with launcher {scale.launcher!r} and train_nodes {scale.train_nodes}; "
            f"accepted: null, or at most train_nodes with launcher 'slurm' or 'ray'"
        )
    if scale.rank_prefix and scale.launcher != "slurm":
        yield f"scale.rank_prefix is read by launcher 'slurm' alone, and it is {scale.launcher!r}; remove it"


def _cluster(recipe: Recipe) -> Iterator[str]:
    """What the engine of work units asks of its settings, and of those that it does not read."""
    scale, vllm = recipe.scale, recipe.sampling.vllm
    for oracle in recipe.oracles:
        yield from workers_contradictions(list(_parts(oracle)), scale)
    if scale.engine == "local":
        yield from not_read(scale.ray, {"address"} if scale.launcher == "ray" else ())  # ranks join that cluster, too
        return
    if scale.workers != 1:
        yield (
            f"scale.workers is {scale.workers}, which scale.engine 'ray' does not read; accepted: scale.ray.max_actors in its "
            "place"
        )
    yield from ray_problems(scale.ray)
    if recipe.sampling.engine == "vllm":
        yield from vllm_problems(scale.ray, vllm.tensor_parallel, vllm.cpu_cores, "sampling.vllm")


def _scores(oracle: Oracle) -> bool:
    """Whether an oracle scores answers, and does not only compare them."""
    if isinstance(oracle, PanelOracle):
        return all(_scores(member.oracle) for member in oracle.members)
    if isinstance(oracle, CascadeOracle):
        return _scores(oracle.strong) and (oracle.trust is None or _scores(oracle.cheap))
    return oracle.kind not in COMPARING


def _sampled_policy(recipe: Recipe) -> Iterator[str]:
    """What the policy that is sampled from asks of engine and objective."""
    sampling, settings = recipe.sampling, recipe.objective.settings
    if not sampling.mixture:
        return
    if sampling.engine != "native":
        yield (
            f"sampling.mixture is {sampling.mixture:g}, which mixes the logits of two models at each token, but sampling.engine "
            f"is {sampling.engine!r}; accepted: 'native', or mixture 0"
        )
    if sampling.policy == "initial":
        yield (
            f"sampling.mixture is {sampling.mixture:g} but sampling.policy is 'initial', which would be mixed with itself; "
            "accepted: sampling.policy 'current', or mixture 0"
        )
    if {"tau", "eta"} <= settings.keys():
        share = settings["tau"] / settings["eta"]
        if not math.isclose(share, sampling.mixture, rel_tol=1e-6):
            yield (
                f"sampling.mixture is {sampling.mixture:g} but the reference of objective {recipe.objective.name!r} has "
                f"objective.tau / objective.eta = {share:g} of the initial policy; accepted: that number, or 0 (option I)"
            )


def _engine(recipe: Recipe) -> Iterator[str]:
    """What the sampling engine asks of the settings that are its own, and of those that it does not read."""
    sampling, vllm = recipe.sampling, recipe.sampling.vllm
    fields = type(vllm).model_fields
    if sampling.engine != "vllm":
        if written := [name for name in fields if getattr(vllm, name) != fields[name].default]:
            names = ", ".join(f"sampling.vllm.{name}" for name in written)
            yield f"sampling.engine is {sampling.engine!r}, which does not read {names}; remove what is not read"
        return
    if sampling.slots != type(sampling).model_fields["slots"].default:
        yield (
            f"sampling.slots is {sampling.slots}, which sampling.engine 'vllm' does not read; accepted: "
            "sampling.vllm.max_num_seqs in its place, or neither"
        )
    needed = recipe.prompts.max_prompt_tokens + sampling.max_new_tokens
    if vllm.max_model_len is not None and vllm.max_model_len < needed:
        yield (
            f"sampling.vllm.max_model_len is {vllm.max_model_len} but prompts.max_prompt_tokens + sampling.max_new_tokens are "
            f"{needed}; accepted: that or more"
        )
    engines = recipe.scale.workers * vllm.tensor_parallel
    if vllm.cpu_cores is not None and (not vllm.cpu_cores or len(vllm.cpu_cores) % engines):
        yield (
            f"sampling.vllm.cpu_cores has {len(vllm.cpu_cores)} cores; accepted: a multiple of scale.workers x "
            f"sampling.vllm.tensor_parallel, which is {engines}"
        )
    yield from _served_adapters(recipe)


def _served_adapters(recipe: Recipe) -> Iterator[str]:
    lora = recipe.train.lora
    if recipe.sampling.vllm.adapters == "merged":
        return
    if lora is None:
        yield "sampling.vllm.adapters is 'served' but train.lora is not set, so there are none; accepted: 'merged'"
        return
    rank = lora.rank * (1 if recipe.train.start == "initial" else recipe.iterations)
    if rank > LARGEST_SERVED_RANK:
        yield (
            f"sampling.vllm.adapters is 'served' and the ranks of all iterations' adapters add up to {rank}; accepted: up to "
            f"{LARGEST_SERVED_RANK}, so fewer iterations, a lower train.lora.rank, train.start 'initial', or 'merged'"
        )
