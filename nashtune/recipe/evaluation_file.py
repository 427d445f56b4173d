"""Settings of `nashtune eval MODEL`, for a model that belongs to no run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from nashtune.recipe.base import NEUTRAL, Section
from nashtune.recipe.cluster import EvaluationScale, not_read, ray_problems, vllm_problems
from nashtune.recipe.evaluation import SuiteSettings, evaluation_problems, set_fields
from nashtune.recipe.sections import SamplingSection
from nashtune.recipe.vllm import VllmSection


class EvaluationFile(Section):
    """How a model without a run is evaluated (`nashtune eval MODEL --recipe FILE`)."""

    seed: int = 0
    """Decides the answers sampled."""
    engine: Literal["native", "vllm", "scripted"] = "native"
    """What samples (`nashtune engines`)."""
    revision: str | None = None
    """Hub revision of the model (commit, tag or branch)."""
    trust_remote_code: bool = False
    """Run model code shipped with the weights."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of sampling; auto is bfloat16 where this machine is fast at it."""
    slots: int = Field(default=40, ge=1)
    """Rows decoded together (native engine)."""
    unit_prompts: int = Field(default=16, ge=1)
    """Prompts in one work unit: what is redone whole after a crash."""
    stop_tokens: tuple[str, ...] = ()
    """Further tokens that end an answer, besides the model's own end tokens."""
    vllm: VllmSection = VllmSection()
    """How vLLM runs, where `engine` is vllm."""
    workers: int = Field(default=1, ge=1, json_schema_extra=NEUTRAL)
    """Sampling processes of this machine."""
    scale: EvaluationScale = Field(default=EvaluationScale(), json_schema_extra=NEUTRAL)
    """Where sampling runs other than in those, and where answers are committed."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1, json_schema_extra=NEUTRAL)
    """Level of the intervals."""
    budget_usd: float | None = Field(default=None, ge=0, json_schema_extra=NEUTRAL)
    """Hard cap on paid calls (dollars)."""
    ledger: str | None = Field(default=None, json_schema_extra=NEUTRAL)
    """A ledger file shared with others, so that none pays for what another bought; null keeps one in the folder."""
    evaluate: tuple[SuiteSettings, ...] = ()
    """The suites."""

    @model_validator(mode="after")
    def _no_contradictions(self) -> EvaluationFile:
        problems = list(evaluation_problems(self.evaluate))
        if self.engine != "vllm" and (written := sorted(set_fields(self.vllm))):
            names = ", ".join(f"vllm.{name}" for name in written)
            problems.append(f"engine is {self.engine!r}, which does not read {names}; remove what is not read")
        if self.engine == "vllm" and self.slots != type(self).model_fields["slots"].default:
            problems.append(f"slots is {self.slots}, which engine 'vllm' does not read; accepted: vllm.max_num_seqs")
        problems += self._cluster()
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _cluster(self) -> Iterator[str]:
        scale = self.scale
        if scale.engine == "local":
            yield from not_read(scale.ray, set())
            return
        yield from ray_problems(scale.ray)
        if self.workers != 1:
            yield f"workers is {self.workers}, which scale.engine 'ray' does not read; accepted: 1, and scale.ray.max_actors"
        if self.engine == "vllm":
            yield from vllm_problems(scale.ray, self.vllm.tensor_parallel, self.vllm.cpu_cores, "vllm")

    @property
    def sampling(self) -> SamplingSection:
        """As the samplers take it, answers' own settings left open."""
        return SamplingSection(
            engine=self.engine,
            dtype=self.dtype,
            slots=self.slots,
            unit_prompts=self.unit_prompts,
            stop_tokens=self.stop_tokens,
            vllm=self.vllm,
        )
