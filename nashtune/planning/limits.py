"""How fast paid calls go: rate limits, requests in flight, the dispatcher, or a judge on GPUs of one's own."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from nashtune.errors import PlanError
from nashtune.judging.prices import FREE, find_price
from nashtune.planning.cluster import Cluster
from nashtune.planning.estimate import Row
from nashtune.planning.figures import Figure
from nashtune.planning.hardware import Gpu, sampling_rate
from nashtune.recipe import EngineSection

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


class Limits:
    """The limits of every served model of a recipe, as the command line and the recipe say."""

    def __init__(self, cluster: Cluster, gpu: Gpu | None, engines: Sequence[EngineSection], elsewhere: Collection[str]):
        self.cluster, self.gpu, self.elsewhere = cluster, gpu, elsewhere
        self.engines = {engine.model: engine for engine in reversed(engines)}
        self._refuse_what_nobody_reads()

    def _refuse_what_nobody_reads(self) -> None:
        cluster = self.cluster
        judges = [engine for name, engine in self.engines.items() if name not in self.elsewhere]
        if not self.engines and (cluster.judge_tpm or cluster.judge_rpm):
            raise PlanError("--judge-tpm or --judge-rpm: no model of this recipe is served; accepted: neither of them")
        if cluster.judge_gpus is None:
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
        found: dict[str, float] = {"dispatcher": sum(row.calls for row in rows) / items / DISPATCHER_RATE}
        latency = 0.0
        for row in rows:
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
        return self.cluster.judge_gpus is not None and any(r.model and r.model not in self.elsewhere for r in rows)

    def _own(self, row: Row) -> float:
        """Seconds of all judge GPUs for a row's calls: reading at a share of the FLOP/s, writing at the sampling rate."""
        gpus, read, write = self._judge_rates()
        return (row.prompt_tokens / read + row.completion_tokens / write) / gpus

    def _judge_rates(self) -> tuple[int, float, float]:
        gpus, billions = self.cluster.judge_gpus, self.cluster.judge_parameters
        assert self.gpu is not None
        assert gpus is not None
        assert billions is not None
        weights = billions * 1e9
        write = sampling_rate(self.gpu, weights, None).value
        return gpus, PREFILL_SHARE * self.gpu.flops / (2 * weights), write

    def figures(self) -> list[Figure]:
        """What the paces rest on."""
        if not self.engines:
            return []
        found = [Figure("dispatcher", DISPATCHER_RATE, "calls/s", "measured", "bench/dispatch.py, docs/LOG.md")]
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
        if self.cluster.judge_gpus is not None:
            gpus, read, write = self._judge_rates()
            size = f"{self.cluster.judge_parameters:g}B weights (--judge-parameters)"
            found.append(Figure("GPUs of the judge", gpus, "", "given", "--judge-gpus"))
            share = f"{100 * PREFILL_SHARE:.0f} % of bf16 FLOP/s (assumed), 2 FLOPs a weight, {size}"
            found.append(Figure("the judge reads", read, "tokens/s per GPU", "derived", share))
            found.append(Figure("the judge writes", write, "tokens/s per GPU", "derived", f"as sampling, {size}"))
        return found
