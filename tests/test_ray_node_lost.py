"""A machine of a Ray cluster is lost for good while ranks train on it (a cluster simulated on this machine)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_ranks import assert_same_training
from tiny_pairs import learnable_pairs, tiny_job, tiny_policy

from nashtune.recipe import ScaleSection
from nashtune.training.job import StepMetrics
from nashtune.training.trainer import train_policy

ray = pytest.importorskip("ray", reason="ray is an optional package (pip install 'nashtune[ray]')")
pytestmark = pytest.mark.slow


@pytest.fixture
def lose_a_machine() -> Iterator[Callable[[], None]]:
    """A cluster of two machines of one core, this process its driver; and what takes one of them away."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    lost = [cluster.add_node(num_cpus=1) for _ in range(2)][1]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    yield lambda: cluster.remove_node(lost, allow_graceful=False)
    ray.shutdown()
    cluster.shutdown()


def test_the_machines_that_are_left_go_on(lose_a_machine: Callable[[], None], tmp_path: Path) -> None:
    policy = tiny_policy(tmp_path / "zero")
    one, two = (
        tiny_job(tmp_path / n, policy, learnable_pairs(16), epochs=25, checkpoint_steps=5, learning_rate=1e-5)
        for n in ("one", "two")
    )
    steps: list[int] = []

    def lose_one(metrics: StepMetrics) -> None:
        steps.append(metrics.step)
        if metrics.step == 12:
            lose_a_machine()

    train_policy(one)
    scale = ScaleSection(launcher="ray", train_nodes=2, min_train_nodes=1)
    result = train_policy(two, lose_one, scale=scale)
    assert len(result.rank_memory_gb) == 1
    assert steps == list(range(1, 101))
    assert_same_training(one, two)
