"""How vLLM runs: the process, its devices and its memory."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from nashtune.recipe.base import NEUTRAL, Section


class VllmProcessSection(Section):
    """A vLLM engine process and what it takes of the machine, whoever it answers for."""

    place: ClassVar[str] = "vllm"
    """Where a recipe has this section; for messages, as is what follows."""
    workers: ClassVar[str] = "workers"
    """The setting that says how many engines there are."""

    python: str | None = Field(default=None, json_schema_extra=NEUTRAL)
    """The Python interpreter of the environment that has vLLM, whose pins differ from nashtune's; null takes
    $NASHTUNE_VLLM_PYTHON, else the interpreter that runs nashtune."""
    tensor_parallel: int = Field(default=1, ge=1, json_schema_extra=NEUTRAL)
    """GPUs (on CPUs: processes) that one engine is spread over."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1, json_schema_extra=NEUTRAL)
    """Share of each GPU's memory that vLLM takes while it works."""
    max_model_len: int | None = Field(default=None, ge=16, json_schema_extra=NEUTRAL)
    """Most tokens of prompt and answer together; null takes prompts.max_prompt_tokens + sampling.max_new_tokens for the
    sampler, the model's own context for a judge."""
    max_num_seqs: int | None = Field(default=None, ge=1, json_schema_extra=NEUTRAL)
    """Answers computed together; null leaves it to vLLM. A work unit's answers (unit_prompts x k, or its calls to the judge)
    are all there is to compute at once, so large GPUs want a larger sampling.unit_prompts."""
    enforce_eager: bool = Field(default=False, json_schema_extra=NEUTRAL)
    """Neither compile the model nor capture CUDA graphs: starts sooner, samples slower."""
    check: bool = Field(default=True, json_schema_extra=NEUTRAL)
    """Compare log-probs of a short text with a plain forward pass each time a model is loaded, and stop where they differ by
    more than rounding; costs loading it once more."""
    cpu_kv_cache_gb: int = Field(default=2, ge=1, json_schema_extra=NEUTRAL)
    """Memory for keys and values on CPUs (GiB); GPUs do not read it."""
    cpu_cores: tuple[int, ...] | None = Field(default=None, json_schema_extra=NEUTRAL)
    """Numbers of the cores that vLLM's threads are bound to on CPUs, in equal parts for the engines and their tensor_parallel;
    null binds none."""


class VllmSection(VllmProcessSection):
    """How vLLM runs, where `sampling.engine` is vllm. One engine per `scale.workers`, each with its own devices."""

    place: ClassVar[str] = "sampling.vllm"
    workers: ClassVar[str] = "scale.workers"

    adapters: Literal["merged", "served"] = "merged"
    """With `train.lora`: merged loads each policy's merged weights; served keeps the weights of the initial policy and swaps
    adapters on top of them, which rounds otherwise. Ranks add up over the iterations, to at most 512."""
    between_stages: Literal["sleep", "stop"] = Field(default="sleep", json_schema_extra=NEUTRAL)
    """While something else needs the memory: sleep gives back the GPU's and keeps the process (on CPUs vLLM cannot, and keeps
    its memory); stop ends the process, and the next iteration starts it again."""
