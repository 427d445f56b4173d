"""IFEval's four accuracies: strict and loose, by prompt and by instruction, with intervals and a table by type."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from nashtune.errors import EvaluationError
from nashtune.evaluate.winrate import ROUNDING, student_t_quantile, wilson, win_rate
from nashtune.records import Interval
from nashtune.suites.ifeval.data import InstructedPrompt


@dataclass(frozen=True, slots=True)
class Followed:
    """Which of a prompt's instructions an answer follows, in their order; loose is true where strict is."""

    key: str
    ids: tuple[str, ...]
    strict: tuple[bool, ...]
    loose: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class TypeRow:
    """One type: how many instructions, and the share of them followed, intervals clustered by prompt."""

    count: int
    strict: Interval
    loose: Interval


@dataclass(frozen=True, slots=True)
class FollowScores:
    """Accuracies in [0, 1]. By prompt: all instructions followed, Wilson's interval. By instruction: the share of all
    instructions, clustered by prompt. ``unknown`` has the keys of prompts with a type that is not known, which are neither
    passed nor failed: they count nowhere else."""

    prompt_strict: Interval
    prompt_loose: Interval
    instruction_strict: Interval
    instruction_loose: Interval
    types: Mapping[str, TypeRow]
    unknown: Mapping[str, tuple[str, ...]]


def loose_forms(text: str) -> list[str]:
    """The answer, and it without its first line, its last or both, each with and without asterisks."""
    lines = text.split("\n")
    parts = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [form for part in parts for form in (part, part.replace("*", ""))]


def check_answer(prompt: InstructedPrompt, text: str) -> Followed:
    """Check one answer. Raises EvaluationError for a prompt with a type that is not known."""
    if prompt.unknown:
        raise EvaluationError(f"prompt {prompt.key}: no check for {', '.join(prompt.unknown)}")
    strict, loose = [], []
    forms = list(dict.fromkeys(loose_forms(text)))
    for instruction in prompt.instructions:
        assert instruction.type is not None
        strict.append(instruction.type.follows(text, instruction.args))
        loose.append(strict[-1] or any(instruction.type.follows(form, instruction.args) for form in forms[1:]))
    return Followed(prompt.key, tuple(i.id for i in prompt.instructions), tuple(strict), tuple(loose))


def follow_scores(
    prompts: Sequence[InstructedPrompt], answers: Mapping[str, str], confidence: float = 0.95
) -> tuple[FollowScores, list[Followed]]:
    """Check the answers (by key) of all prompts whose types are known, and score them.

    Raises EvaluationError where a prompt has no answer, an answer no prompt, or no prompt can be scored.
    """
    keys = [prompt.key for prompt in prompts]
    if lacking := [key for key in keys if key not in answers]:
        raise EvaluationError(f"{len(lacking)} of {len(keys)} prompts have no answer, the first of key {lacking[0]!r}")
    if left := sorted(answers.keys() - set(keys)):
        raise EvaluationError(f"{len(left)} answers have no prompt, the first of key {left[0]!r}")
    unknown = {prompt.key: prompt.unknown for prompt in prompts if prompt.unknown}
    followed = [check_answer(prompt, answers[prompt.key]) for prompt in prompts if not prompt.unknown]
    if not followed:
        raise EvaluationError(f"all of {len(keys)} prompts have types that are not known, as {unknown[keys[0]][0]!r}")
    return score(followed, unknown, confidence), followed


def score(followed: Sequence[Followed], unknown: Mapping[str, tuple[str, ...]], confidence: float) -> FollowScores:
    """The accuracies of prompts that were checked, at least one."""
    types: dict[str, list[tuple[list[bool], list[bool]]]] = defaultdict(list)
    for one in followed:
        for name in dict.fromkeys(one.ids):
            places = [i for i, own in enumerate(one.ids) if own == name]
            types[name].append(([one.strict[i] for i in places], [one.loose[i] for i in places]))
    return FollowScores(
        prompt_strict=win_rate([float(all(one.strict)) for one in followed], confidence),
        prompt_loose=win_rate([float(all(one.loose)) for one in followed], confidence),
        instruction_strict=clustered_share([one.strict for one in followed], confidence),
        instruction_loose=clustered_share([one.loose for one in followed], confidence),
        types={
            name: TypeRow(
                sum(len(strict) for strict, _ in rows),
                clustered_share([strict for strict, _ in rows], confidence),
                clustered_share([loose for _, loose in rows], confidence),
            )
            for name, rows in sorted(types.items())
        },
        unknown=unknown,
    )


def clustered_share(clusters: Sequence[Sequence[bool]], confidence: float) -> Interval:
    """The share of all flags that are true; its interval is Wilson's, with the variance of that ratio between clusters.

    Clusters may differ in size: the share's error is that of the sums of residuals, sqrt(C / (C - 1) sum_c (sum_i (x_ci -
    p))^2) / N, from which follows the effective sample size p (1 - p) / error^2; quantiles and the case without spread are
    as in ``win_rate``, which this equals where every cluster has one flag. ``n`` counts clusters. Raises ValueError for none.
    """
    total, count = sum(map(len, clusters)), len(clusters)
    if total == 0:
        raise ValueError("clusters hold no flags; accepted: at least one")
    p = sum(map(sum, clusters)) / total
    squares = math.fsum((sum(cluster) - p * len(cluster)) ** 2 for cluster in clusters)
    error2 = squares * count / (count - 1) / total**2 if count > 1 else 0.0
    if error2 * total > ROUNDING:
        return wilson(p, p * (1 - p) / error2, student_t_quantile(confidence, count - 1), count)
    return wilson(p, float(count), NormalDist().inv_cdf((1 + confidence) / 2), count)
