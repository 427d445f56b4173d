"""What the sampling workers have open when a stage begins: a policy that is there is not loaded again."""

from __future__ import annotations

from nashtune.recipe import Recipe


def loads(recipe: Recipe, t: int, stage: str) -> bool:
    """Whether a stage of sampling is of another policy than the one that is open.

    Iteration 0 loads the initial policy once. Training lets go of what was loaded; validation loads the new policy, of which the
    divergence's answers are too. What scores those is open after, so that the next iteration's samples load the policy again;
    without a divergence it is open still.
    """
    sampling, scored = recipe.sampling, bool(recipe.validate_.kl_samples)
    if stage == "validate-sample":
        return True
    if stage == "kl-sample":
        return False
    if stage == "sample":
        return t >= 2 and (scored or sampling.policy == "initial" or bool(sampling.mixture))
    if stage == "teacher-pool":
        return t >= 2 and (sampling.policy != "initial" or bool(sampling.mixture))
    return t >= 1 and scored  # answers to a suite, after validation
