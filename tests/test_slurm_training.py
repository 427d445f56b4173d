"""Training on several machines: srun (a stand-in that starts the machines' processes here), one torchrun a machine, c10d."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from test_ranks import assert_same_training, six_steps, trace
from test_torchrun import ranks_below, wait_until
from tiny_pairs import learnable_pairs, tiny_job, tiny_policy

from nashtune.errors import TrainingError
from nashtune.recipe import LoraSection, ScaleSection
from nashtune.records import Policy
from nashtune.training.job import StepMetrics
from nashtune.training.trainer import train_policy

STANDIN = Path(__file__).parent / "slurm_standin"
SLURM = ScaleSection(launcher="slurm", train_nodes=2)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return tiny_policy(tmp_path_factory.mktemp("policy") / "zero")


@pytest.fixture(autouse=True)
def allocation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two machines, both this one."""
    path = (str(STANDIN), str(Path(sys.executable).parent), os.environ["PATH"])  # with a prefix, `python` is looked for
    monkeypatch.setenv("PATH", os.pathsep.join(path))
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "one,two"}
    for name, value in {**job, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)


def torchruns() -> list[psutil.Process]:
    """One for each machine, in their order."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if "nashtune.scale.slurm" in child.cmdline() and "srun" not in " ".join(child.cmdline()):
                found.append((child.environ()["SLURM_NODEID"], child))
        except psutil.Error:  # gone by now
            continue
    return [child for _, child in sorted(found, key=lambda pair: pair[0])]


def once(step: int, do: Callable[[], None]) -> Callable[[StepMetrics], None]:
    """Do it as soon as that step is heard of."""
    done: list[int] = []

    def look(metrics: StepMetrics) -> None:
        if metrics.step >= step and not done:
            done.append(step)
            do()

    return look


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_and_one_process_goes_on(policy: Policy, tmp_path: Path) -> None:
    one, two = (
        tiny_job(tmp_path / n, policy, learnable_pairs(16), epochs=25, checkpoint_steps=5, learning_rate=1e-5)
        for n in ("one", "two")
    )
    stopped: list[psutil.Process] = []

    def stop() -> None:
        stopped.append(ranks_below(os.getpid())[1])
        stopped[0].suspend()

    scale = SLURM.model_copy(update={"train_timeout_s": 8.0})
    with pytest.raises(
        TrainingError, match=r"stood still for \d+ s: rank 1 \(host .*\) gives no sign of life; it was at step"
    ):
        train_policy(two, once(10, stop), scale=scale)
    assert not psutil.wait_procs(stopped, timeout=10)[1]
    assert not torchruns()
    begun = trace(two)
    assert 10 <= len(begun) < 100
    train_policy(one)
    train_policy(two)
    assert_same_training(one, two)


def test_two_machines_train_as_one_process(policy: Policy, tmp_path: Path) -> None:
    changes = {"lora": LoraSection(rank=2), "gradient_checkpointing": True, "learning_rate": 1e-2}
    one, two = (six_steps(tmp_path / n, policy, **changes) for n in ("one", "two"))
    seen: list[StepMetrics] = []
    train_policy(one)
    result = train_policy(two, seen.append, scale=SLURM.model_copy(update={"rank_prefix": ("env", "PREFIXED=1")}))
    assert_same_training(one, two)
    assert [m.step for m in seen] == [1, 2, 3, 4, 5, 6]
    assert len(result.rank_memory_gb) == 2
    assert not (two.folder / "ranks").exists()


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["rank", "torchrun of the first machine", "torchrun of the second machine"])
def test_what_is_killed_comes_back(policy: Policy, tmp_path: Path, killed: str) -> None:
    one, two = (
        tiny_job(tmp_path / n, policy, learnable_pairs(16), epochs=25, checkpoint_steps=5, learning_rate=1e-5)
        for n in ("one", "two")
    )
    steps: list[int] = []
    victims: list[psutil.Process] = []

    def kill() -> None:
        here = ranks_below(os.getpid()) if killed == "rank" else torchruns()
        assert len(here) == 2
        victims.append(here["first" not in killed])
        victims[0].send_signal(signal.SIGKILL)

    look = once(12, kill)

    def heard(metrics: StepMetrics) -> None:
        steps.append(metrics.step)
        look(metrics)

    train_policy(one)
    train_policy(two, heard, scale=SLURM)
    assert victims
    assert steps == list(range(1, 101))
    assert_same_training(one, two)


@pytest.mark.slow
def test_fewer_machines_go_on(policy: Policy, tmp_path: Path) -> None:
    one, two = (
        tiny_job(tmp_path / n, policy, learnable_pairs(16), epochs=25, checkpoint_steps=5, learning_rate=1e-5)
        for n in ("one", "two")
    )
    train_policy(one)
    look = once(12, lambda: torchruns()[1].kill())
    result = train_policy(two, look, scale=SLURM.model_copy(update={"min_train_nodes": 1}))
    assert len(result.rank_memory_gb) == 1
    assert_same_training(one, two)


def test_no_allocation_and_a_small_one_are_refused(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    with pytest.raises(TrainingError, match=r"scale\.train_nodes is 2 but Slurm job \d+ has 1 machines"):
        train_policy(six_steps(tmp_path, policy), scale=SLURM)
    monkeypatch.delenv("SLURM_JOB_ID")
    with pytest.raises(TrainingError, match=r"SLURM_JOB_ID is not set"):
        train_policy(six_steps(tmp_path, policy), scale=SLURM)


TRAINS = """
import sys
from pathlib import Path
from test_slurm_training import SLURM
from tiny_pairs import learnable_pairs, tiny_job
from nashtune.model.loading import fingerprint
from nashtune.records import Policy
from nashtune.training.trainer import train_policy
policy = Policy(Path(sys.argv[1]), fingerprint(Path(sys.argv[1])), "zero")
train_policy(tiny_job(Path(sys.argv[2]), policy, learnable_pairs(16), epochs=500), scale=SLURM)
"""


@pytest.mark.slow
def test_nothing_outlives_a_killed_run(policy: Policy, tmp_path: Path) -> None:
    folders = [str(Path(__file__).parent), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    run = subprocess.Popen([sys.executable, "-c", TRAINS, policy.folder, tmp_path], env=environment)
    steps = tmp_path / "train" / "metrics.jsonl"
    wait_until(lambda: steps.exists() and len(steps.read_text().splitlines()) > 5, run)
    below = psutil.Process(run.pid).children(recursive=True)
    assert len(below) >= 5  # the one that is tied to the run, srun, two torchruns, their ranks
    run.kill()
    run.wait()
    assert not psutil.wait_procs(below, timeout=60)[1]
