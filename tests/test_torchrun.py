"""Training processes under torchrun itself: killed, interrupted, orphaned."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from test_ranks import assert_same_training, six_steps, trace
from tiny_pairs import tiny_policy

from nashtune.records import Policy
from nashtune.training.job import StepMetrics
from nashtune.training.trainer import train_policy


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return tiny_policy(tmp_path_factory.mktemp("policy") / "zero")


def ranks_below(process: int) -> list[psutil.Process]:
    """The ranks that torchrun started for a process, in order."""
    found = []
    for child in psutil.Process(process).children(recursive=True):
        try:
            if "nashtune.training.rank" in child.cmdline() and "nashtune.scale.torchrun" not in child.cmdline():
                found.append((int(child.environ()["RANK"]), child))
        except psutil.Error:
            continue
    return [child for _, child in sorted(found, key=lambda pair: pair[0])]


def test_torchrun_trains_as_one_process_and_tells_every_step(policy: Policy, tmp_path: Path) -> None:
    one, two = (six_steps(tmp_path / n, policy) for n in ("one", "two"))
    seen: list[StepMetrics] = []
    train_policy(one)
    result = train_policy(two, seen.append, processes=2)
    assert_same_training(one, two)
    assert [m.step for m in seen] == [1, 2, 3, 4, 5, 6]
    assert [m.loss for m in seen] == [row["loss"] for row in trace(two)]
    assert len(result.rank_memory_gb) == 2
    assert not (two.folder / "ranks").exists()
    assert train_policy(two, processes=2) == result
