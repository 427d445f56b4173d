"""How far an iteration moved the policy: KL(pi_t || pi_t-1), from answers of pi_t to the held-out prompts.

log pi_t(y) - log pi_t-1(y) averaged over y ~ pi_t is unbiased where y is drawn from pi_t itself: at temperature 1, from the
whole vocabulary. The validation answers (temperature 0.7, nucleus) would be biased, so a few are drawn for this alone. Answers
end at max_new_tokens, and the divergence is that of answers so cut.
"""

from __future__ import annotations

from typing import Any

from nashtune.evaluate.improvement import mean_interval
from nashtune.records import Interval, LogProb, Response
from nashtune.run import Run
from nashtune.sampling.role import Sampler
from nashtune.stages.candidates import PromptPart, Units
from nashtune.stages.prepare import validation_part
from nashtune.stages.sampling import Scorer, response_facts
from nashtune.stages.serving import served
from nashtune.stages.work import once, policy_of, run_units, stage_units
from nashtune.store import tables
from nashtune.summaries import called

NEW, OLD = "t", "t-1"
"""What the log-probs under the two policies are called."""


def kl_from_previous(run: Run, iteration: int) -> Interval | None:
    """KL(pi_t || pi_t-1) in nats per answer, with its interval clustered by prompt. None for the initial policy, for the
    scripted engine and under validate.kl_samples 0."""
    if iteration < 1 or not run.recipe.validate_.kl_samples or run.recipe.sampling.engine == "scripted":
        return None
    part = validation_part(run)
    drawn = _drawn(run, iteration, part)
    # float32: in bfloat16 an answer's log-prob is off by up to a nat between layouts, as much as small steps move it
    new = _scored(run, iteration, "kl-scores", part, drawn, Scorer(policy_of(run, iteration), NEW, "float32"))
    old = _scored(
        run, iteration, "kl-scores-previous", part, drawn, Scorer(policy_of(run, iteration - 1), OLD, "float32")
    )
    return mean_interval(list(log_ratios(part, drawn, new, old).values()), run.recipe.validate_.confidence)


def log_ratios(part: PromptPart, drawn: Units, new: Units, old: Units) -> dict[str, float]:
    """Each prompt's mean log pi_t(y) - log pi_t-1(y), by prompt id."""
    found: dict[str, list[float]] = {}
    for index in range(part.units):
        after, before = (
            {row.response_id: row.logprob for row in tables.read(LogProb, u.file(index))} for u in (new, old)
        )
        for response in tables.read(Response, drawn.file(index)):
            found.setdefault(response.prompt_id, []).append(after[response.id] - before[response.id])
    return {prompt: sum(values) / len(values) for prompt, values in found.items()}


def _drawn(run: Run, iteration: int, part: PromptPart) -> Units:
    """Answers of pi_t at temperature 1."""
    own = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "mixture": 0.0}
    sampling = run.recipe.sampling.model_copy(update=own)
    n, seed = run.recipe.validate_.kl_samples, run.recipe.seed
    role = Sampler(policy_of(run, iteration), sampling, n, seed, purpose="divergence", served=served(run, iteration))
    stage, inputs = run.stage(iteration, "kl-sample"), (part.fingerprint, role.identity())
    units = stage_units(stage, inputs)

    def make() -> dict[str, Any]:
        redone = run_units(run, f"{called(iteration)}: {stage.name}", stage, role, part, units)
        return response_facts(units, part) | redone

    once(stage, inputs, make)
    return units


def _scored(run: Run, iteration: int, name: str, part: PromptPart, drawn: Units, role: Scorer) -> Units:
    """Log-probs of ``drawn`` under a policy, by the trainer's own code."""
    stage, inputs = run.stage(iteration, name), (part.fingerprint, drawn.key, role.policy.fingerprint, role.dtype)
    units = stage_units(stage, inputs)

    def make() -> dict[str, Any]:
        return run_units(run, f"{called(iteration)}: {name}", stage, role, part, units, beside=drawn)

    once(stage, inputs, make)
    return units
