"""How fast paid calls go: rate limits, requests in flight, the dispatcher, or a judge on GPUs of one's own."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from nashtune.errors import PlanError
from nashtune.judging.prices import FREE, find_price
from nashtune.planning.cluster import Cluster
from nashtune.planning.estimate import Row
from nashtune.planning.figures import Figure
from nashtune.planning.hardware import Gpu, sampling_rate
from nashtune.planning.lengths import count_parameters
from nashtune.planning.policy_size import size_in
from nashtune.planning.rates import ENGINE_START, READ_RATE
from nashtune.recipe import EngineSection, HostedSection

DISPATCHER_RATE = 700.0
"""Calls a second of the one process that sends them (bench/dispatch.py: 727 on a quiet machine, docs/LOG.md)."""
FIRST_TOKEN = 1.0
"""Seconds until a server begins to answer."""
REPLY_RATE = 50.0
"""Tokens a second of one reply."""
BATCH_HOURS = 24.0
"""Within which batch APIs promise to answer."""
PREFILL_SHARE = 0.4
"""Of a GPU's bf16 FLOP/s that reading prompts comes to."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds a candidate set takes at the tightest limit, and until the last reply is there."""

    seconds: float
    latency: float
    binding: str


def judging_rates(gpu: Gpu, billions: float) -> tuple[float, float]:
    """Tokens a second that a model reads, and writes, on one GPU."""
    weights = billions * 1e9
    return PREFILL_SHARE * gpu.flops / (2 * weights), sampling_rate(gpu, weights, None).value


def rate_figures(who: str, read: float, write: float, size: str) -> list[Figure]:
    share = f"{100 * PREFILL_SHARE:.0f} % of bf16 FLOP/s (assumed), 2 FLOPs a weight, {size}"
    return [
        Figure(f"{who} reads", read, "tokens/s per GPU", "derived", share),
        Figure(f"{who} writes", write, "tokens/s per GPU", "derived", f"as sampling, {size}"),
    ]


class HostedGpus:
    """The models that a recipe has nashtune host: on how many GPUs, and how fast. On machines like this one (no GPU type) a
    calibration says how fast."""

    def __init__(self, cluster: Cluster, gpu: Gpu | None, hosts: Sequence[HostedSection]):
        self.cluster, self.gpu = cluster, gpu
        self.by_model = {host.model: host for host in hosts}
        self.actors = max((host.actors for host in hosts if host.actors is not None), default=0)
        if cluster.judge_gpus is not None and hosts and not self.actors:
            raise PlanError(
                "--judge-gpus: hosted.actors is null, so that the judge takes turns with the sampler on the GPUs of the nodes; "
                "accepted: hosted.actors in the recipe"
            )
        self._each = max((host.gpus or host.vllm.tensor_parallel for host in hosts), default=1)

    def __bool__(self) -> bool:
        return bool(self.by_model)

    def __contains__(self, model: str) -> bool:
        return model in self.by_model

    @property
    def beside(self) -> int:
        """GPUs of the judge's own; 0 where it takes turns with the sampler."""
        if self.gpu is None or not self.actors:
            return 0
        return self.cluster.judge_gpus or math.ceil(self.actors * self._each)

    def seconds(self, row: Row) -> float:
        """Of all its GPUs, for a row's calls: reading at a share of the FLOP/s, writing at the sampling rate."""
        if self.gpu is None:
            return 0.0
        read, write = judging_rates(self.gpu, self._size(row.model)[0])
        return (row.prompt_tokens / read + row.completion_tokens / write) / (self.beside or self.cluster.total_gpus)

    def load(self, models: Sequence[str]) -> float:
        """Seconds until the models are there: in each stage anew."""
        if self.gpu is None or not models:
            return 0.0
        return ENGINE_START + sum(2e9 * self._size(model)[0] / READ_RATE for model in models)

    def figures(self) -> list[Figure]:
        if self.gpu is None or not self:
            return []
        given = self.cluster.judge_gpus is not None
        turns = "all of the nodes, in turn with the sampler"
        how = "--judge-gpus" if given else f"hosted.actors, {self._each:g} GPUs each" if self.actors else turns
        gpus = self.beside or self.cluster.total_gpus
        found = [Figure("GPUs of the judge", gpus, "", "given" if given else "recipe", how)]
        started = f"{ENGINE_START:.0f} s to start, bf16 weights at {READ_RATE / 1e9:g} GB/s, in each stage"
        found.append(Figure("loading the hosted judge", self.load(list(self.by_model)), "s", "assumed", started))
        for model in self.by_model:
            billions, how = self._size(model)
            found += rate_figures(
                f"hosted {model}", *judging_rates(self.gpu, billions), f"{billions:g}B weights ({how})"
            )
        return found

    def _size(self, model: str) -> tuple[float, str]:
        """Billions of weights, and who says so. Raises PlanError where nobody does."""
        if self.cluster.judge_parameters is not None:
            return self.cluster.judge_parameters, "--judge-parameters"
        folder = Path(model).expanduser()
        if folder.is_dir() and (found := count_parameters(folder)):
            return found / 1e9, "counted in the model's files"
        if (named := size_in(model)) is not None:
            return named / 1e9, "the model's name"
        raise PlanError(
            f"hosted.model {model!r} is not on this machine and its name tells no size; accepted: --judge-parameters BILLIONS"
        )


class Limits:
    """The limits of every served model of a recipe, as the command line and the recipe say."""

    def __init__(
        self,
        cluster: Cluster,
        gpu: Gpu | None,
        engines: Sequence[EngineSection],
        elsewhere: Collection[str],
        hosts: Sequence[HostedSection] = (),
    ):
        self.cluster, self.gpu, self.elsewhere = cluster, gpu, elsewhere
        self.engines = {engine.model: engine for engine in reversed(engines)}
        self.hosts = HostedGpus(cluster, gpu, hosts)
        self._refuse_what_nobody_reads()

    def _refuse_what_nobody_reads(self) -> None:
        cluster = self.cluster
        judges = [engine for name, engine in self.engines.items() if name not in self.elsewhere]
        if not self.hosts and (cluster.judge_gpus is None) != (cluster.judge_parameters is None):
            raise PlanError("--judge-gpus and --judge-parameters (billions of weights) go together; one is missing")
        if self.hosts and judges and cluster.judge_gpus is not None:
            raise PlanError(
                "--judge-gpus: this recipe has hosted and served judges; accepted: hosted.actors in the recipe"
            )
        if not self.engines and (cluster.judge_tpm or cluster.judge_rpm):
            raise PlanError("--judge-tpm or --judge-rpm: no model of this recipe is served; accepted: neither of them")
        if cluster.judge_gpus is None or self.hosts:
            return
        if not judges:
            raise PlanError("--judge-gpus: no judge of this recipe is a served model; accepted: a recipe with one")
        if paid := [engine.model for engine in judges if find_price(engine) != FREE]:
            raise PlanError(
                f"--judge-gpus: {paid[0]} is paid by the token; accepted: engine.price: free, as a judge on GPUs of your own is"
            )

    def pace(self, rows: Sequence[Row]) -> Pace:
        """Of the rows of one stage, one for each model. All of a set's calls go at once, so that the slowest limit counts."""
        if not rows or not rows[0].items or not any(row.calls for row in rows):
            return Pace(0.0, 0.0, "no limit")
        items = rows[0].items
        sent = sum(row.calls for row in rows if row.model not in self.hosts)
        found: dict[str, float] = {"dispatcher": sent / items / DISPATCHER_RATE} if sent else {}
        hosted = [(row.model, self.hosts.seconds(row) / items) for row in rows if row.model in self.hosts]
        if hosted:  # several take turns on the same GPUs
            found[f"GPUs of {', '.join(name for name, _ in hosted)}"] = sum(seconds for _, seconds in hosted)
        latency = 0.0
        for row in rows:
            if row.model in self.hosts:
                continue
            engine, calls = self.engines[row.model], row.calls / items
            reply = FIRST_TOKEN + row.completion_tokens / max(row.calls, 1e-9) / REPLY_RATE
            if self.cluster.judge_gpus is not None and row.model not in self.elsewhere:
                found[f"GPUs of {row.model}"] = self._own(row) / items
                latency = max(latency, reply)
                continue
            if engine.batch:
                latency = max(latency, 3600 * BATCH_HOURS)
                continue
            latency = max(latency, reply)
            found[f"requests in flight to {row.model}"] = calls * reply / engine.concurrency
            tpm = self.cluster.judge_tpm or engine.tokens_per_minute
            rpm = self.cluster.judge_rpm or engine.requests_per_minute
            if tpm:
                found[f"tokens a minute of {row.model}"] = (
                    60 * (row.prompt_tokens + row.completion_tokens) / items / tpm
                )
            if rpm:
                found[f"requests a minute of {row.model}"] = 60 * calls / rpm
        binding = max(found, key=lambda name: found[name])
        return Pace(found[binding], latency, binding)

    def serves(self, rows: Sequence[Row]) -> bool:
        """Whether GPUs of one's own answer any of the calls."""
        if self.hosts:
            return self.hosts.beside > 0 and any(row.model in self.hosts for row in rows)
        return self.cluster.judge_gpus is not None and any(r.model and r.model not in self.elsewhere for r in rows)

    def load(self, rows: Sequence[Row]) -> float:
        """Seconds until the hosted judges among the rows' models are there."""
        return self.hosts.load([row.model for row in rows if row.model in self.hosts])

    def in_turn(self, rows: Sequence[Row]) -> bool:
        """Whether a hosted judge answers on the GPUs that sample."""
        return self.hosts.beside == 0 and any(row.model in self.hosts for row in rows)

    @property
    def judge_gpus(self) -> int:
        """GPUs of judges, beside those of the nodes."""
        return self.hosts.beside if self.hosts else self.cluster.judge_gpus or 0

    def _own(self, row: Row) -> float:
        """Seconds of all judge GPUs for a row's calls: reading at a share of the FLOP/s, writing at the sampling rate."""
        gpus, read, write = self._judge_rates()
        return (row.prompt_tokens / read + row.completion_tokens / write) / gpus

    def _judge_rates(self) -> tuple[int, float, float]:
        gpus, billions = self.cluster.judge_gpus, self.cluster.judge_parameters
        assert self.gpu is not None
        assert gpus is not None
        assert billions is not None
        return gpus, *judging_rates(self.gpu, billions)

    def figures(self) -> list[Figure]:
        """What the paces rest on."""
        if not self.engines:
            return self.hosts.figures()
        found = [
            *self.hosts.figures(),
            Figure("dispatcher", DISPATCHER_RATE, "calls/s", "measured", "bench/dispatch.py, docs/LOG.md"),
        ]
        found.append(Figure("first token of a reply", FIRST_TOKEN, "s", "assumed", "served models"))
        found.append(Figure("one reply", REPLY_RATE, "tokens/s", "assumed", "served models"))
        for name, engine in self.engines.items():
            if self.cluster.judge_gpus is not None and name not in self.elsewhere:
                continue
            if engine.batch:
                found.append(
                    Figure(f"batches of {name}", BATCH_HOURS, "hours", "assumed", "what batch APIs promise at most")
                )
                continue
            found.append(
                Figure(f"requests in flight to {name}", engine.concurrency, "", "recipe", "engine.concurrency")
            )
            for option, key, given, written in (
                ("tpm", "tokens_per_minute", self.cluster.judge_tpm, engine.tokens_per_minute),
                ("rpm", "requests_per_minute", self.cluster.judge_rpm, engine.requests_per_minute),
            ):
                unit = key.replace("_per_minute", "/min")
                if given:
                    found.append(Figure(f"limit of {name}", given, unit, "given", f"--judge-{option}"))
                elif written:
                    found.append(Figure(f"limit of {name}", written, unit, "recipe", f"engine.{key}"))
                else:
                    how = f"no limit: neither --judge-{option} nor engine.{key} says one"
                    found.append(Figure(f"limit of {name}", float("inf"), unit, "assumed", how))
        if self.cluster.judge_gpus is not None and not self.hosts:
            gpus, read, write = self._judge_rates()
            found.append(Figure("GPUs of the judge", gpus, "", "given", "--judge-gpus"))
            found += rate_figures(
                "the judge", read, write, f"{self.cluster.judge_parameters:g}B weights (--judge-parameters)"
            )
        return found
