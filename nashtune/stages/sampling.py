"""Line 4 of Algorithm 2: answers of a policy, and the log-probs that the oracle reads."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from nashtune.judging.registry import oracle_needs
from nashtune.records import LogProb, Policy, Prompt, Response
from nashtune.run import Run
from nashtune.sampling.role import Sampler
from nashtune.scale.local import Facts, Unit
from nashtune.seeds import content_hash
from nashtune.stage import Stage
from nashtune.stages.candidates import Group, PromptPart, Units
from nashtune.stages.serving import served
from nashtune.stages.work import once, policy_of, run_units, stage_units
from nashtune.store import tables
from nashtune.store.files import create_once
from nashtune.summaries import called


def draw(run: Run, iteration: int, name: str, part: PromptPart, policy: int, purpose: str, n: int, label: str) -> Group:
    """Samples of a policy of the run, with the log-probs that the oracle reads."""
    group, sample = drawing(run, iteration, name, part, policy, purpose, n, label)
    sample(lambda: "")
    return group


def drawing(
    run: Run,
    iteration: int,
    name: str,
    part: PromptPart,
    policy: int,
    purpose: str,
    n: int,
    label: str,
    *,
    mixed: bool = False,
) -> tuple[Group, Callable[[Callable[[], str]], None]]:
    """Where ``draw`` will commit its samples, and what draws them; called with a function to call after each unit.
    ``mixed``: from the policy mixed with the initial one, where the recipe says so."""
    stage = run.stage(iteration, name)
    role = _sampler(run, policy, purpose, n, mixed)
    inputs = (part.fingerprint, role.identity())
    units = stage_units(stage, inputs)
    title = f"{called(iteration)}: {name}"
    scores, score = _scoring(run, iteration, f"{name}-scores", part, units, role.tells_initial)

    def sample(watch: Callable[[], str]) -> None:
        once(stage, inputs, lambda: _draw(run, title, stage, role, part, units, watch))
        score()

    return Group(label, units, scores), sample


def _sampler(run: Run, policy: int, purpose: str, n: int, mixed: bool) -> Sampler:
    """Where ``mixed``, pi_0 is mixed in with the recipe's share; mixed with itself it is itself, so iteration 1 has none."""
    scripted = run.recipe.sampling.engine == "scripted"
    far = policy_of(run, 0) if mixed and policy > 0 and run.recipe.sampling.mixture else None
    return Sampler(
        policy=None if scripted else policy_of(run, policy),
        sampling=run.recipe.sampling,
        n=n,
        seed=run.recipe.seed,
        purpose=purpose,
        is_initial=policy == 0,
        far=far,
        served=served(run, policy),
    )


def _draw(
    run: Run, title: str, stage: Stage, role: Sampler, part: PromptPart, units: Units, watch: Callable[[], str]
) -> dict[str, Any]:
    redone = run_units(run, title, stage, role, part, units, watch=watch)
    return response_facts(units, part) | redone


def response_facts(units: Units, part: PromptPart) -> dict[str, Any]:
    """Counts over committed responses, whatever attempts made them."""
    tokens = responses = 0
    defects: Counter[str] = Counter()
    for index in range(part.units):
        for response in tables.read(Response, units.file(index)):
            responses += 1
            tokens += len(response.token_ids)
            defects.update(response.defects)
    return {"responses": responses, "tokens": tokens, "defects": dict(sorted(defects.items()))}


# ---- log-probs under the initial policy, where the oracle reads them -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scorer:
    """A work-unit role: log-probs of committed responses under a policy."""

    policy: Policy
    name: str
    dtype: Literal["auto", "float32", "bfloat16"]

    def key(self) -> str:
        return content_hash("scorer", self.policy.fingerprint, self.dtype)

    def open(self) -> tuple[Any, Any]:
        from nashtune.model.loading import load_model, load_tokenizer, pick_dtype

        return load_model(self.policy, pick_dtype(self.dtype)), load_tokenizer(self.policy)

    def work(self, opened: tuple[Any, Any], unit: Unit) -> Facts:
        """Score the unit's responses and commit their log-probs."""
        from nashtune.model.loading import render
        from nashtune.training.logprobs import score_responses

        assert unit.beside is not None
        started = time.perf_counter()
        model, tokenizer = opened
        prompts = tables.read_unit(Prompt, unit.source, unit.index)
        answers: dict[str, list[Response]] = {prompt.id: [] for prompt in prompts}
        for response in tables.read(Response, unit.beside):
            answers[response.prompt_id].append(response)
        items = [(render(tokenizer, p.messages), [r.token_ids for r in answers[p.id]]) for p in prompts]
        scores = score_responses(model, items)
        rows = [
            LogProb(response.id, self.name, score)
            for prompt, values in zip(prompts, scores, strict=True)
            for response, score in zip(answers[prompt.id], values, strict=True)
        ]
        create_once(unit.target, tables.encode(LogProb, rows))
        tokens = sum(len(r.token_ids) for rs in answers.values() for r in rs)
        return {"prompts": len(prompts), "tokens": tokens, "seconds": time.perf_counter() - started}


def scores_under_initial(
    run: Run, iteration: int, name: str, part: PromptPart, responses: Units, known: bool
) -> Units | None:
    """Log-probs under policy "0", if the oracle reads them and sampling did not already give them."""
    units, score = _scoring(run, iteration, name, part, responses, known)
    score()
    return units


def _scoring(
    run: Run, iteration: int, name: str, part: PromptPart, responses: Units, known: bool
) -> tuple[Units | None, Callable[[], None]]:
    """Where those log-probs go, None where none are needed, and what computes them."""
    if (
        known
        or not any("0" in oracle_needs(oracle) for oracle in run.recipe.oracles)
        or run.recipe.sampling.engine == "scripted"
    ):
        return None, lambda: None
    stage = run.stage(iteration, name)
    role = Scorer(policy_of(run, 0), "0", run.recipe.sampling.dtype)
    inputs = (part.fingerprint, responses.key, role.policy.fingerprint, role.dtype)
    units = stage_units(stage, inputs)

    def make() -> dict[str, Any]:
        return run_units(run, f"{called(iteration)}: {name}", stage, role, part, units, beside=responses)

    return units, lambda: once(stage, inputs, make)
