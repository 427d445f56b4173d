"""Identity and randomness from content.

A seed is a hash of what it is for (run seed, iteration, prompt id, k), never of when or where it runs, so results do not
depend on batch order, worker count or machine.
"""

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> str:
    """The one JSON text of ``value``: sorted keys, no spaces, NaN refused (ValueError)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def content_hash(*parts: Any, length: int = 16) -> str:
    """First ``length`` hex digits of SHA-256 over the canonical JSON of ``parts``."""
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()[:length]


def seed_for(*parts: Any) -> int:
    """A seed in [0, 2**63) decided by ``parts`` alone."""
    digest = hashlib.sha256(canonical_json(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
