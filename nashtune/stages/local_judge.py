"""Oracles that compute instead of asking a server, as a work-unit role: a cluster judges its units where there are GPUs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from nashtune import recipe
from nashtune.errors import OracleError
from nashtune.judging.oracle import Oracle
from nashtune.judging.registry import Resources, open_oracle, parts_of
from nashtune.records import Judgment, Policy
from nashtune.scale.units import Facts, Unit
from nashtune.seeds import content_hash, seed_for
from nashtune.stages.candidates import Candidate, Candidates
from nashtune.store import tables
from nashtune.store.files import create_once
from nashtune.together import together

LOCAL = (recipe.SelfOracle, recipe.RewardModelOracle, recipe.PreferenceModelOracle)
"""Oracles that would compete with the sampler for memory and processors."""
CHEAP = (recipe.RulesOracle, recipe.PanelOracle, recipe.CascadeOracle)
"""What may be around them, or beside them."""


def computes(section: recipe.Oracle | None) -> bool:
    """Whether a judge is models of its own and nothing that is asked or paid."""
    parts = [] if section is None else list(parts_of(section))
    return any(isinstance(part, LOCAL) for part in parts) and all(isinstance(part, LOCAL + CHEAP) for part in parts)


@dataclass(frozen=True, slots=True)
class LocalJudge:
    """Judges the candidate sets of a unit. ``policy`` is the one that judges itself; None where none does."""

    section: recipe.Oracle
    candidates: Candidates
    policy: Policy | None
    seed: int

    def key(self) -> str:
        return content_hash("judge", recipe.identity(self.section), self.policy.fingerprint if self.policy else None)

    def open(self) -> Oracle:
        return open_oracle(self.section, Resources(ledger=lambda: None, payer=lambda: None, policy=self._own))

    def work(self, opened: Oracle, unit: Unit) -> Facts:
        """Judge the unit's sets and commit the judgments."""
        started = time.perf_counter()
        judgments = asyncio.run(judge_sets(opened, self.candidates.unit(unit.index), self.seed))
        create_once(unit.target, tables.encode(Judgment, judgments))
        return {"prompts": len(judgments), "seconds": time.perf_counter() - started}

    def _own(self) -> Policy:
        if self.policy is None:
            raise OracleError(f"oracle {self.section.kind!r}: no policy to judge with")
        return self.policy


async def judge_sets(oracle: Oracle, sets: Sequence[Candidate], seed: int) -> list[Judgment]:
    """An oracle's word on each candidate set; the order shown comes from content and ``seed``."""
    seeds = [seed_for(seed, "judge", prompt.id, [a.id for a in answers]) for prompt, answers in sets]
    calls = (oracle.judge(prompt, answers, s) for (prompt, answers), s in zip(sets, seeds, strict=True))
    return await together(calls)
