"""What a vLLM engine is asked to serve."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nashtune.records import Policy


@dataclass(frozen=True, slots=True)
class Target:
    """A policy to answer as: the weights of ``base`` with ``adapters`` on top, which is ``policy`` up to rounding.

    ``context``: most tokens of prompt and answer together; ``lora_rank``: rank of all adapters that will be served, 0 none.
    """

    policy: Policy
    base: Policy
    adapters: tuple[Path, ...] = ()
    context: int = 2048
    lora_rank: int = 0
