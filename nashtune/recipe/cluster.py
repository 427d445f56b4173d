"""Settings of the Ray engine."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Literal

from pydantic import Field, JsonValue

from nashtune.recipe.base import NEUTRAL, Section
from nashtune.recipe.store_url import StoreUrl


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


class EvaluationScale(Section):
    """Where an evaluation without a run samples."""

    engine: Literal["local", "ray"] = Field(default="local", json_schema_extra=NEUTRAL)
    """Who runs the work units: local, this machine's processes (`workers`); ray, actors of a Ray cluster (`ray`)."""
    ray: RaySection = Field(default=RaySection(), json_schema_extra=NEUTRAL)
    """The cluster and its actors; read where `engine` is ray."""
    store: StoreUrl | None = Field(default=None, json_schema_extra=NEUTRAL)
    """Where answers are committed: an object store (s3://BUCKET/PREFIX), or a folder that all workers share; null: the
    evaluation's folder."""


def not_read(ray: RaySection, read: Collection[str]) -> Iterator[str]:
    """Settings of the cluster that are written where nobody reads more than ``read``."""
    fields = type(ray).model_fields
    if written := [n for n in fields if n not in read and getattr(ray, n) != fields[n].get_default()]:
        names = ", ".join(f"scale.ray.{name}" for name in written)
        yield f"scale.engine is 'local', which does not read {names}; accepted: scale.engine 'ray', or without them"


def ray_problems(ray: RaySection) -> Iterator[str]:
    """What contradicts itself in the settings of a cluster that is used."""
    if ray.address is not None and "://" in ray.address:
        yield (
            f"scale.ray.address is {ray.address!r}; accepted: 'auto' or HOST:PORT, from a machine of the cluster (Ray Client is "
            "not supported), or null"
        )
    if ray.max_actors is not None and ray.max_actors < ray.min_actors:
        yield f"scale.ray.max_actors is {ray.max_actors} but scale.ray.min_actors is {ray.min_actors}; accepted: that or more"
    if bad := [name for name, amount in ray.resources.items() if amount <= 0 or name in ("CPU", "GPU")]:
        yield (
            f"scale.ray.resources has {bad[0]!r}: {ray.resources[bad[0]]:g}; accepted: custom resources in amounts above 0 "
            "(cores and GPUs are scale.ray.cpus_per_actor and gpus_per_actor)"
        )


def vllm_problems(
    ray: RaySection, tensor_parallel: int, cpu_cores: Collection[int] | None, section: str
) -> Iterator[str]:
    """What actors with vLLM in them ask of the settings; ``section``: where vLLM's stand."""
    if ray.gpus_per_actor not in (None, 0, tensor_parallel):
        yield (
            f"scale.ray.gpus_per_actor is {ray.gpus_per_actor:g} but {section}.tensor_parallel is {tensor_parallel}; "
            "accepted: that number, 0 (vLLM on CPUs), or null"
        )
    if cpu_cores is not None:
        yield (
            f"{section}.cpu_cores is {list(cpu_cores)}, which actors on other machines cannot share out; accepted: null "
            "with scale.engine 'ray'"
        )
