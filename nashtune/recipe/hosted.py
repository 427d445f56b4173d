"""Judges that nashtune hosts itself: a chat model in place of a server, and what contradicts that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from nashtune.recipe.base import ADDED, NEUTRAL, Section
from nashtune.recipe.engine import EngineSection
from nashtune.recipe.vllm import VllmProcessSection

if TYPE_CHECKING:
    from nashtune.recipe.oracles import Oracle
    from nashtune.recipe.sections import ScaleSection


class HostedVllm(VllmProcessSection):
    """How vLLM runs a judge, where `hosted.engine` is vllm."""

    place: ClassVar[str] = "hosted.vllm"
    workers: ClassVar[str] = "hosted.actors (or scale.workers)"


class HostedSection(Section):
    """A chat model that nashtune loads and asks itself, a work unit's calls at a time: no server, no key, no bill."""

    model: str
    """Hub name, folder, .gguf file or `package:NAME`; its tokenizer needs a chat template."""
    revision: str | None = None
    """Hub revision (commit, tag or branch)."""
    trust_remote_code: bool = False
    """Run model code shipped with the weights."""
    engine: Literal["native", "vllm"] = "native"
    """native: transformers model with continuous batching; vllm: vLLM in a process and Python environment of its own."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic; auto is bfloat16 where this machine is fast at it."""
    slots: int = Field(default=40, ge=1, json_schema_extra=NEUTRAL)
    """Replies computed together (native engine; for vLLM vllm.max_num_seqs)."""
    actors: int | None = Field(default=None, ge=1, json_schema_extra=NEUTRAL)
    """Workers of the judge's own (actors of `scale.engine: ray`, processes of local), which judge beside the sampler from its
    first committed unit on, on GPUs that the sampler has not. null: as many as the sampler has, in turn with it."""
    gpus: float | None = Field(default=None, ge=0, json_schema_extra=NEUTRAL)
    """GPUs of an actor with `scale.engine: ray`; null takes vllm.tensor_parallel for vLLM and 1 for the native engine where the
    cluster has GPUs, else 0."""
    vllm: HostedVllm = HostedVllm()


class Asking(Section):
    """An oracle that asks a chat model: one behind a server, or one that nashtune hosts."""

    engine: EngineSection | None = None
    """The server that answers; this or `hosted`."""
    hosted: HostedSection | None = Field(default=None, json_schema_extra=ADDED)
    """The model that answers, run by nashtune itself; this or `engine`."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Asking:
        if self.engine is None and self.hosted is None:
            raise ValueError("nobody is there to ask; accepted: `engine` (a server) or `hosted` (a model of your own)")
        if self.engine is not None and self.hosted is not None:
            raise ValueError("engine and hosted are both set; accepted: one of them")
        return self

    @property
    def asked(self) -> EngineSection | HostedSection:
        """Who is asked."""
        found = self.engine or self.hosted
        assert found is not None
        return found


def hosted_contradictions(parts: Iterable[Oracle]) -> Iterator[str]:
    """What hosted judges ask of their own settings, over all parts of one oracle."""
    hosts: dict[str, HostedSection] = {}
    for part in parts:
        host = part.hosted if isinstance(part, Asking) else None
        if host is None:
            continue
        hosts[host.model_dump_json()] = host
        yield from _reply(part, host)
        yield from _unread(f"oracle.{part.kind}.hosted", host)
    if len({host.actors for host in hosts.values()}) > 1:
        found = ", ".join(f"{host.model} {host.actors or 'null'}" for host in hosts.values())
        yield f"oracle: hosted.actors differ ({found}), but all models of an oracle are hosted by the same workers; accepted: one"
    shares = {host.model: host.vllm.gpu_memory_utilization for host in hosts.values() if host.engine == "vllm"}
    if sum(shares.values()) > 1 and len(shares) > 1:
        yield (
            f"oracle: {' and '.join(shares)} are hosted by the same GPUs, but their hosted.vllm.gpu_memory_utilization add up to "
            f"{sum(shares.values()):g}; accepted: at most 1"
        )


def _reply(part: Oracle, host: HostedSection) -> Iterator[str]:
    """What is asked of each reply that a hosted model cannot give."""
    use, replies = getattr(part, "use", "replies"), getattr(part, "replies", 1)
    if use == "logprobs" and host.engine == "native":
        yield (
            f"oracle.{part.kind}.use is 'logprobs' but hosted.engine 'native' gives none; accepted: use 'replies', or "
            "hosted.engine 'vllm'"
        )
    if use == "replies" and getattr(part, "temperature", 0.0) is None:
        yield (
            f"oracle.{part.kind}.temperature is null, which leaves it to a server, but the judge is hosted; accepted: a number"
        )
    if use == "replies" and host.engine == "native" and replies > host.slots:
        yield f"oracle.{part.kind}.replies is {replies} but hosted.slots is {host.slots}; accepted: slots >= replies"


def _unread(where: str, host: HostedSection) -> Iterator[str]:
    """Settings that the engine does not read, or cannot have."""
    fields = type(host.vllm).model_fields
    written = [name for name in fields if getattr(host.vllm, name) != fields[name].default]
    if host.engine == "native" and written:
        names = ", ".join(f"{where}.vllm.{name}" for name in written)
        yield f"{where}.engine is 'native', which does not read {names}; remove what is not read"
    if host.engine == "vllm" and host.slots != type(host).model_fields["slots"].default:
        yield f"{where}.slots is {host.slots}, which engine 'vllm' does not read; accepted: vllm.max_num_seqs in its place"
    parallel = host.vllm.tensor_parallel
    if host.engine == "vllm" and host.gpus not in (None, 0, parallel):
        yield (
            f"{where}.gpus is {host.gpus:g} but vllm.tensor_parallel is {parallel}; accepted: that number, 0 (vLLM on CPUs), or "
            "null"
        )


def workers_contradictions(parts: Sequence[Oracle], scale: ScaleSection) -> Iterator[str]:
    """What the hosted judges among the parts of one oracle ask of where the run works."""
    elsewhere = any(_elsewhere(part) for part in parts)
    for host in (part.hosted for part in parts if isinstance(part, Asking) and part.hosted is not None):
        yield from _workers(host, scale, elsewhere)


def _elsewhere(part: Oracle) -> bool:
    """Whether a part is asked for by the run's own process alone."""
    return part.kind in ("people", "scripted") or (isinstance(part, Asking) and part.engine is not None)


def _workers(host: HostedSection, scale: ScaleSection, elsewhere: bool) -> Iterator[str]:
    ray, cores = scale.engine == "ray", host.vllm.cpu_cores
    if host.gpus is not None and not ray:
        yield f"hosted.gpus is {host.gpus:g}, which scale.engine {scale.engine!r} does not read; accepted: null, or 'ray'"
    if host.actors is not None and elsewhere:
        yield (
            f"hosted.actors is {host.actors}, but other parts of the oracle are asked elsewhere, so that the run's own process "
            "judges; accepted: null"
        )
    if host.actors is not None and ray and scale.ray.max_actors is None:
        yield (
            f"hosted.actors is {host.actors} but scale.ray.max_actors is null, with which the sampler takes all the room there "
            "is; accepted: a number that leaves room for the judge"
        )
    if cores is not None and ray:
        yield f"hosted.vllm.cpu_cores is {list(cores)}, which actors on other machines cannot share out; accepted: null"
    engines = (host.actors or scale.workers) * host.vllm.tensor_parallel
    if cores is not None and (not cores or len(cores) % engines):
        yield (
            f"hosted.vllm.cpu_cores has {len(cores)} cores; accepted: a multiple of the judge's workers x "
            f"hosted.vllm.tensor_parallel, which is {engines}"
        )
