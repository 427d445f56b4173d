"""Losses and gradient norms, step by step, that no change of the code may move: `python tests/test_golden_traces.py` writes them.

A tiny random model in float32, fixed seeds; what another machine or library rounds otherwise is far below the tolerance.
Rewrite the traces only where the method itself is meant to change, and say why in the commit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_pairs import learnable_pairs, tiny_job, tiny_policy

from nashtune.training.trainer import StepMetrics, train_policy

FILE = Path(__file__).parent / "golden" / "training.json"
CASES: dict[str, dict[str, Any]] = {
    "dno-prct": {"name": "dno-prct", "beta": 0.1, "alpha": 0.005},
    "dno": {"name": "dno", "beta": 0.5, "alpha": 0.1},
    "sft": {"name": "sft"},
}
QUANTITIES = ("loss", "grad_norm")


def trace(case: str, folder: Path, **changes: Any) -> list[dict[str, float]]:
    """Loss and gradient norm of each step: 12 pairs, batches of 4, two epochs, several micro-batches a step."""
    policy = tiny_policy(folder / "zero", tie_word_embeddings=True)
    steps: list[StepMetrics] = []
    job = tiny_job(folder / case, policy, learnable_pairs(12), epochs=2, learning_rate=5e-4, **CASES[case], **changes)
    train_policy(job, steps.append)
    return [{name: getattr(step, name) for name in QUANTITIES} for step in steps]


@pytest.mark.parametrize("case", CASES)
def test_training_reproduces_its_golden_trace(case: str, tmp_path: Path) -> None:
    expected = json.loads(FILE.read_text())[case]
    found = trace(case, tmp_path)
    assert len(found) == len(expected) == 6
    for step, (now, then) in enumerate(zip(found, expected, strict=True), 1):
        assert now == pytest.approx(then, rel=1e-5), f"step {step}"


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        FILE.write_text(json.dumps({case: trace(case, Path(place)) for case in CASES}, indent=1) + "\n")
