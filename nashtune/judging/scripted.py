"""An oracle that looks at text length or a hash: deterministic and free, for tests and dry runs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from nashtune import recipe
from nashtune.records import Judgment, Prompt, Response
from nashtune.seeds import seed_for


class ScriptedOracle:
    """Scores a candidate from 1 to 6 by its text alone, so that the same text always gets the same score for a prompt.

    ``hash``: a whole number, uniform over texts. ``longer`` and ``shorter``: strictly monotone in the number w of
    words, 1 + 5 w / (w + 6) and 1 + 120 / (w + 24): a "positive" (5 or more) has at least 24 or at most 6 words.
    A share ``unusable_rate`` of the judgments, drawn by the seed, is unusable instead. Each takes ``latency_s``, at most
    ``concurrency`` at once, as a server's would: with it the pipeline can be timed without one.
    """

    name = "scripted"
    needs_logprobs: frozenset[str] = frozenset()

    def __init__(self, section: recipe.ScriptedOracle) -> None:
        self._section = section
        self._under_way = asyncio.Semaphore(section.concurrency)

    async def judge(self, prompt: Prompt, candidates: Sequence[Response], seed: int) -> Judgment:
        if self._section.latency_s:
            async with self._under_way:
                await asyncio.sleep(self._section.latency_s)
        ids = tuple(c.id for c in candidates)
        if seed_for("scripted unusable", seed, prompt.id) < self._section.unusable_rate * 2**63:
            return Judgment(prompt.id, ids, self.name, outcome="unusable", reason="scripted (oracle.unusable_rate)")
        return Judgment(prompt.id, ids, self.name, scores=tuple(self._score(prompt, c.text) for c in candidates))

    async def aclose(self) -> None: ...

    def _score(self, prompt: Prompt, text: str) -> float:
        words = len(text.split())
        match self._section.prefer:
            case "hash":
                return float(1 + seed_for("scripted score", prompt.id, text) % 6)
            case "longer":
                return 1 + 5 * words / (words + 6)
            case "shorter":
                return 1 + 120 / (words + 24)
