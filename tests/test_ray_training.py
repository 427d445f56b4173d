"""Training under Ray Train: the same losses as one process, killed ranks started again, refusals raised by the run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from test_ranks import assert_same_training, six_steps
from tiny_pairs import learnable_pairs, tiny_job, tiny_policy

from nashtune.errors import ModelError
from nashtune.recipe import LoraSection, ScaleSection
from nashtune.records import Policy
from nashtune.training.job import StepMetrics
from nashtune.training.trainer import train_policy

ray = pytest.importorskip("ray", reason="ray is an optional package (pip install 'nashtune[ray]')")
pytestmark = pytest.mark.slow
RAY = ScaleSection(launcher="ray", train_nodes=2)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return tiny_policy(tmp_path_factory.mktemp("policy") / "zero")


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Of this process: ranks run on it, and not on one of their own."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def workers() -> list[psutil.Process]:
    """Ray's processes that hold a rank."""
    found = []
    for process in psutil.process_iter(["cmdline", "pid"]):
        try:
            if "RayTrainWorker" in " ".join(process.info["cmdline"] or ()) and os.getpid() in {
                parent.pid for parent in process.parents()
            }:
                found.append(process)
        except psutil.Error:  # gone by now
            continue
    return found


def test_ranks_of_ray_train_as_one_process_and_come_back_when_killed(policy: Policy, tmp_path: Path) -> None:
    one, two = (
        tiny_job(tmp_path / n, policy, learnable_pairs(16), epochs=25, checkpoint_steps=5, learning_rate=1e-5)
        for n in ("one", "two")
    )
    steps: list[int] = []
    killed: list[psutil.Process] = []

    def kill_once(metrics: StepMetrics) -> None:
        steps.append(metrics.step)
        if metrics.step >= 12 and not killed:
            here = workers()
            assert len(here) == 2
            killed.append(here[1])
            killed[0].kill()

    train_policy(one)
    result = train_policy(two, kill_once, scale=RAY)
    assert killed
    assert steps == list(range(1, 101))
    assert len(result.rank_memory_gb) == 2
    assert_same_training(one, two)
    assert not (two.folder / "ranks").exists()


def test_what_a_rank_of_ray_refuses_is_raised_here(policy: Policy, tmp_path: Path) -> None:
    job = six_steps(tmp_path, policy, lora=LoraSection(target_modules=("w_q",)))
    with pytest.raises(ModelError, match=r"train\.lora\.target_modules: \('w_q',\)"):
        train_policy(job, scale=RAY)
    assert not psutil.wait_procs(workers(), timeout=20)[1]
