"""Oracles that compute instead of asking a server, as a work-unit role: a cluster judges its units where there are GPUs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from nashtune import recipe
from nashtune.errors import OracleError
from nashtune.judging.oracle import Oracle
from nashtune.judging.registry import Resources, hosted_in, open_oracle, parts_of
from nashtune.records import Judgment, Policy
from nashtune.scale.units import Facts, Unit
from nashtune.seeds import content_hash, seed_for
from nashtune.stages.candidates import Candidate, Candidates
from nashtune.stages.work import finish
from nashtune.store import tables
from nashtune.store.files import create_once
from nashtune.together import together

LOCAL = (recipe.SelfOracle, recipe.RewardModelOracle, recipe.PreferenceModelOracle)
"""Oracles that would compete with the sampler for memory and processors; so do chat models that nashtune hosts."""
CHEAP = (recipe.RulesOracle, recipe.PanelOracle, recipe.CascadeOracle)
"""What may be around them, or beside them."""


def is_local(part: recipe.Oracle) -> bool:
    """Whether an oracle's part is a model that runs here or on the cluster."""
    return isinstance(part, LOCAL) or (isinstance(part, recipe.Asking) and part.hosted is not None)


def computes(section: recipe.Oracle | None) -> bool:
    """Whether a judge is models of its own and nothing that is asked or paid."""
    parts = [] if section is None else list(parts_of(section))
    return any(map(is_local, parts)) and all(is_local(part) or isinstance(part, CHEAP) for part in parts)


def own_workers(section: recipe.Oracle | None) -> int | None:
    """Workers that a hosted judge has to itself, beside the sampler's; None where it takes turns with the sampler."""
    return max((host.actors for host in hosted_in(section) if host.actors is not None), default=None)


@dataclass(frozen=True, slots=True)
class OpenedJudge:
    """What a worker keeps between units: the oracle, and the models it has loaded for it."""

    oracle: Oracle
    resources: Resources

    def rest(self) -> bool:
        """Give back memory; nothing is kept, as the next thing opened may be another model on the same devices."""
        self.close()
        return False

    def close(self) -> None:
        for chat in self.resources.hosted.values():
            chat.host.close()

    def seconds(self) -> float:
        """Seconds in which hosted models have generated so far."""
        return sum(chat.host.work.seconds for chat in self.resources.hosted.values())


@dataclass(frozen=True, slots=True)
class LocalJudge:
    """Judges the candidate sets of a unit. ``policy`` is the one that judges itself; None where none does. ``weights``:
    fingerprints of the models that are hosted."""

    section: recipe.Oracle
    candidates: Candidates
    policy: Policy | None
    seed: int
    weights: tuple[str, ...] = ()

    def key(self) -> str:
        own = self.policy.fingerprint if self.policy else None
        return content_hash("judge", recipe.identity(self.section), own, self.weights)

    def open(self) -> OpenedJudge:
        resources = Resources(ledger=lambda: None, payer=lambda: None, policy=self._own)
        return OpenedJudge(open_oracle(self.section, resources), resources)

    def work(self, opened: OpenedJudge, unit: Unit) -> Facts:
        """Judge the unit's sets, all calls of hosted models together, and commit the judgments. Facts: seconds, and those in
        which hosted models generated times the GPUs they hold (on CPUs, times 1)."""
        started, before = time.perf_counter(), opened.seconds()
        judgments = finish(judge_sets(opened.oracle, self.candidates.unit(unit.index), self.seed))
        create_once(unit.target, tables.encode(Judgment, judgments))
        facts = {"prompts": len(judgments), "seconds": time.perf_counter() - started}
        if opened.resources.hosted:
            gpus = max(host.vllm.tensor_parallel for host in hosted_in(self.section))
            facts["engine_seconds"] = (opened.seconds() - before) * gpus
        return facts

    def _own(self) -> Policy:
        if self.policy is None:
            raise OracleError(f"oracle {self.section.kind!r}: no policy to judge with")
        return self.policy


async def judge_sets(oracle: Oracle, sets: Sequence[Candidate], seed: int) -> list[Judgment]:
    """An oracle's word on each candidate set; the order shown comes from content and ``seed``."""
    seeds = [seed_for(seed, "judge", prompt.id, [a.id for a in answers]) for prompt, answers in sets]
    calls = (oracle.judge(prompt, answers, s) for (prompt, answers), s in zip(sets, seeds, strict=True))
    return await together(calls)
