"""KL(pi_t || pi_t-1) from drawn answers, against the divergence that enumerating every answer gives."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny_chat import tiny_recipe

from nashtune.evaluate.improvement import eta_of, improvement_bound, mean_interval
from nashtune.loop import improve
from nashtune.model.loading import end_token_ids, load_model, load_tokenizer, render
from nashtune.recipe import parse_recipe
from nashtune.records import Interval, Prompt
from nashtune.run import Run
from nashtune.stages.divergence import kl_from_previous
from nashtune.stages.work import policy_of
from nashtune.store import tables

DRAWN = 200
"""Answers per prompt."""


def two_token_answers(run: Run, prompt: Prompt, temperature: float) -> tuple[float, float]:
    """Mean and variance of log pi_1(y) - log pi_0(y) over all answers y of at most two tokens, drawn from pi_1 at
    ``temperature``; an end token ends an answer."""
    tokenizer = load_tokenizer(policy_of(run, 0))
    ids = render(tokenizer, prompt.messages)
    ends = set(end_token_ids(policy_of(run, 0), tokenizer))
    logits = []
    for policy in (policy_of(run, 1), policy_of(run, 0)):
        model = load_model(policy, torch.float32, attention="sdpa")
        every = torch.arange(model.config.vocab_size)
        rows = torch.cat([torch.tensor(ids).expand(len(every), -1), every[:, None]], 1)
        with torch.no_grad():
            found = model(rows).logits.double()
        logits.append((found[0, -2], found[:, -1]))  # of the first token [V], of the second after each first [V, V]
    (first, second), (first_0, second_0) = logits
    ratio_1 = first.log_softmax(-1) - first_0.log_softmax(-1)
    ratio_2 = second.log_softmax(-1) - second_0.log_softmax(-1)
    weight_1, weight_2 = (first / temperature).softmax(-1), (second / temperature).softmax(-1)
    ended = torch.tensor([token in ends for token in range(len(first))])
    weights = weight_1[:, None] * weight_2
    ratios = ratio_1[:, None] + ratio_2
    weights = torch.where(ended[:, None], 0.0, weights)
    mean = float((weights * ratios).sum() + (weight_1 * ratio_1)[ended].sum())
    square = float((weights * ratios**2).sum() + (weight_1 * ratio_1**2)[ended].sum())
    return mean, square - mean**2


@pytest.fixture(scope="module")
def moved(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of one iteration that moves the policy, with answers of two tokens."""
    recipe = tiny_recipe(
        tiny_folder,
        iterations=1,
        prompts={"validation": {"count": 3}},
        sampling={"max_new_tokens": 2, "slots": 64},
        train={"learning_rate": 3e-3},
        validate={"kl_samples": DRAWN},
    )
    runs = tmp_path_factory.mktemp("moved")
    improve(parse_recipe(recipe | {"folder": str(runs)}))
    return Run.read(runs / "tiny")


def test_the_estimate_is_the_exact_divergence_within_its_error(moved: Run) -> None:
    prompts = tables.read(Prompt, moved.folder / "prompts" / "validation.parquet")
    exact = [two_token_answers(moved, prompt, 1.0) for prompt in prompts]
    kl = sum(mean for mean, _ in exact) / len(exact)
    error = math.sqrt(sum(variance / DRAWN for _, variance in exact)) / len(exact)
    found = moved.summaries()[1].kl_from_previous
    assert found is not None
    assert found.n == len(prompts)
    # 4.5 standard errors of the mean of 600 draws: a right estimator fails once in 150,000 seeds
    assert found.value == pytest.approx(kl, abs=4.5 * error)
    biased = sum(two_token_answers(moved, prompt, 0.7)[0] for prompt in prompts) / len(prompts)
    assert abs(biased - kl) > 9 * error, "draws at the sampling temperature would pass too"


def test_the_bound_is_half_plus_beta_times_the_divergence(moved: Run) -> None:
    summary = moved.summaries()[1]
    kl, bound, beta = summary.kl_from_previous, summary.improvement_bound, moved.recipe.objective.settings["beta"]
    assert kl is not None
    assert bound is not None
    assert (bound.value, bound.low, bound.high) == pytest.approx([0.5 + beta * x for x in (kl.value, kl.low, kl.high)])


def test_a_policy_does_not_diverge_from_itself(tiny_folder: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_folder, iterations=1, train={"learning_rate": 1e-30}) | {"folder": str(tmp_path)}
    improve(parse_recipe(recipe))
    run = Run.read(tmp_path / "tiny")
    summary = run.summaries()[1]
    assert summary.kl_from_previous == Interval(0.0, 0.0, 0.0, 8)
    assert summary.improvement_bound == Interval(0.5, 0.5, 0.5, 8)
    with Run.open(parse_recipe(recipe)) as again:
        assert kl_from_previous(again, 0) is None


def test_the_interval_is_students_over_prompts() -> None:
    # mean 2, s = 1, n = 3: t(0.975, 2) = 4.3027, so 2 +- 4.3027 / sqrt(3)
    found = mean_interval([1.0, 2.0, 3.0], 0.95)
    assert found is not None
    assert (found.value, found.low, found.high, found.n) == pytest.approx((2, 2 - 2.48414, 2 + 2.48414, 3), abs=1e-4)
    assert mean_interval([1.0], 0.95) is None
    assert improvement_bound(None, 0.1) is None


@pytest.mark.parametrize(
    ("changes", "eta"),
    [
        ({}, 0.1),
        ({"objective": {"name": "dno", "beta": 0.5}}, 0.5),
        ({"objective": {"name": "dpo"}}, None),  # its reference is pi_0
        ({"train": {"start": "initial"}}, None),
        ({"sampling": {"policy": "initial"}}, None),
        ({"pairs": {"rule": "teacher_wins"}}, None),
        ({"sampling": {"mixture": 0.2}}, None),
    ],
)
def test_only_steps_that_eq_9_is_about_have_a_bound(
    tiny_folder: Path, changes: dict[str, object], eta: float | None
) -> None:
    assert eta_of(parse_recipe(tiny_recipe(tiny_folder, **changes))) == eta
