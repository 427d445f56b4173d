"""Sampled tokens of fixed seeds, kept in golden_samples.json: no change of the engine may change them.

python tests/test_sampling_golden.py        # writes the file anew, for a change of the random streams alone
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_native import SAMPLED, make_engine, make_requests, run

GOLDEN = Path(__file__).with_name("golden_samples.json")
FAMILIES = ["llama", "mistral", "gemma2"]


def sample(family: str, **options: Any) -> dict[str, dict[str, Any]]:
    done = run(make_engine(family, **options), make_requests(8, 3), SAMPLED)
    return {f"{who} {k}": {"ids": list(c.token_ids), "logprob": c.logprob} for (who, k), c in sorted(done.items())}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("slots", [5, 24])
def test_samples_are_those_of_the_golden_trace(family: str, slots: int) -> None:
    expected = json.loads(GOLDEN.read_text())[family]
    found = sample(family, slots=slots)
    assert {key: c["ids"] for key, c in found.items()} == {key: c["ids"] for key, c in expected.items()}
    for key, c in found.items():
        assert c["logprob"] == pytest.approx(expected[key]["logprob"], abs=2e-4), key


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({family: sample(family, slots=5) for family in FAMILIES}) + "\n")
