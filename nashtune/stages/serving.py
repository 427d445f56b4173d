"""What a vLLM engine loads to answer as a policy of a run."""

from __future__ import annotations

from pathlib import Path

from nashtune.run import Run
from nashtune.sampling.on_vllm.adapters import base_of
from nashtune.sampling.on_vllm.target import Target
from nashtune.stages.work import policy_of


def served(run: Run, policy: int) -> Target | None:
    """The policy's weights, or where the recipe wants adapters served, the last weights that were trained whole and the
    adapters since; None for other engines than vLLM. Each adapter says which policy it was trained from."""
    recipe = run.recipe
    if recipe.sampling.engine != "vllm":
        return None
    context = recipe.sampling.vllm.max_model_len or recipe.prompts.max_prompt_tokens + recipe.sampling.max_new_tokens
    chain: list[Path] = []
    place, rank = policy, 0
    if recipe.sampling.vllm.adapters == "served" and recipe.train.lora is not None:
        rank = recipe.train.lora.rank * (1 if recipe.train.start == "initial" else recipe.iterations)
        while place > 0:
            folder = run.iteration_folder(place) / "adapter"
            trained_from = base_of(folder)
            if trained_from is None:
                break
            before = [t for t in range(place) if policy_of(run, t).fingerprint == trained_from]
            if not before:
                break
            chain.insert(0, folder)
            place = before[-1]
    return Target(policy_of(run, policy), policy_of(run, place), tuple(chain), context, rank)
