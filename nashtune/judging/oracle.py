"""The one protocol that every oracle speaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from nashtune.records import Judgment, Prompt, Response


class Oracle(Protocol):
    """Says which of several answers to a prompt is better.

    ``needs_logprobs`` names the policies (keys of Response.logprobs, as "0") whose log-probs the oracle reads.
    """

    name: str
    needs_logprobs: frozenset[str]

    async def judge(self, prompt: Prompt, candidates: Sequence[Response], seed: int) -> Judgment:
        """Judge the whole candidate set. ``seed`` decides the order of presentation. Raises OracleError only where no
        judgment is possible at all; an unusable reply is returned as a Judgment with outcome "unusable"."""
        ...

    async def aclose(self) -> None: ...
