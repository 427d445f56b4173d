"""Settings of the Ray engine."""

from __future__ import annotations

from pydantic import Field, JsonValue

from nashtune.recipe.base import Section


class RaySection(Section):
    """Where work units run with `scale.engine: ray`. Changes no result of the native engine beyond floating-point rounding;
    bf16 rounds otherwise with another number of threads, so keep cpus_per_actor where rows are to be repeated exactly."""

    address: str | None = None
    """The cluster that this machine belongs to: `auto`, or `HOST:6379`; null starts one on this machine for the run."""
    runtime_env: dict[str, JsonValue] = Field(default={})
    """Ray's runtime environment of the actors, as {"env_vars": {"HF_HOME": "/shared/hf"}}; nashtune must be importable in it."""
    cpus_per_actor: int = Field(default=1, ge=1)
    """Processor cores of an actor: its threads."""
    gpus_per_actor: float | None = Field(default=None, ge=0)
    """GPUs of an actor; null takes sampling.vllm.tensor_parallel for vLLM and 1 for the native engine where the cluster has
    GPUs, else 0."""
    resources: dict[str, float] = Field(default={})
    """Ray's custom resources that an actor asks for, as {"spot": 1} to use only nodes that offer it."""
    min_actors: int = Field(default=1, ge=1)
    """Fewest actors asked for, even where the cluster has no room for them yet: an autoscaler sees that."""
    max_actors: int | None = Field(default=None, ge=1)
    """Most actors, all asked for at once; null takes as many as the nodes that are there have room for."""
    window: int = Field(default=2, ge=1)
    """Units given to an actor at a time: the one it works on, and those that wait so that it never does."""
    tries: int = Field(default=4, ge=1)
    """How often a unit is begun, where actors or nodes die under it or it fails, before the run stops with the last error."""
