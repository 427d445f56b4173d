"""Training processes under torchrun itself: killed, interrupted, orphaned."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from test_ranks import assert_same_training, six_steps, trace
from tiny_chat import tiny_recipe
from tiny_pairs import learnable_pairs, tiny_job, tiny_policy
from transformers import AutoModelForCausalLM

from nashtune.errors import ModelError, TrainingError
from nashtune.recipe import LoraSection, ScaleSection
from nashtune.records import Policy
from nashtune.scale.torchrun import Torchrun
from nashtune.training.job import StepMetrics
from nashtune.training.trainer import train_policy

TWO = ScaleSection(train_processes=2)
NASHTUNE = [sys.executable, "-c", "from nashtune.cli import app; app()", "run"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return tiny_policy(tmp_path_factory.mktemp("policy") / "zero")


def ranks_below(process: int) -> list[psutil.Process]:
    """The training ranks that were started for a process, in order."""
    found = []
    for child in psutil.Process(process).children(recursive=True):
        try:
            command = child.cmdline()
            if "nashtune.training.rank" in command and not any("nashtune.scale." in word for word in command):
                found.append((int(child.environ()["RANK"]), child))
        except psutil.Error:  # gone by now
            continue
    return [child for _, child in sorted(found, key=lambda pair: pair[0])]


def wait_until(true: Callable[[], Any], process: subprocess.Popen[Any]) -> None:
    while not true():
        assert process.poll() is None, "ended before its time"
        time.sleep(0.02)


def test_all_processes_start_again_when_one_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    looks: list[int] = []
    with Torchrun("restless", [str(tmp_path)], processes=2, threads=3, log=tmp_path / "log") as processes:
        code = processes.watch(lambda: looks.append(1))
    assert code == 0, (tmp_path / "log").read_text()
    said = {file.stem: json.loads(file.read_text()) for file in tmp_path.glob("*.json")}
    assert sorted(said) == ["0-0", "0-1", "1-0", "1-1"]
    assert {(v["WORLD_SIZE"], v["OMP_NUM_THREADS"], v["MASTER_ADDR"]) for v in said.values()} == {
        ("2", "3", "127.0.0.1")
    }
    assert len({v["pid"] for v in said.values()}) == 4
    assert len(looks) > 1


ORPHANED = """
import sys
from pathlib import Path
from nashtune.scale.torchrun import Torchrun
with Torchrun("restless", [sys.argv[1], "forever"], processes=2, threads=1, log=Path(sys.argv[1], "log")) as processes:
    processes.watch(lambda: None)
"""


@pytest.mark.slow
def test_processes_do_not_outlive_a_killed_run(tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    parent = subprocess.Popen([sys.executable, "-c", ORPHANED, str(tmp_path)], env={**os.environ, "PYTHONPATH": path})
    wait_until(lambda: len(list(tmp_path.glob("?-0.json"))) == 2, parent)
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(children) >= 3
    parent.kill()
    parent.wait()
    assert not psutil.wait_procs(children, timeout=60)[1]


@pytest.mark.slow
def test_torchrun_trains_as_one_process_and_tells_every_step(policy: Policy, tmp_path: Path) -> None:
    one, two = (six_steps(tmp_path / n, policy) for n in ("one", "two"))
    seen: list[StepMetrics] = []
    train_policy(one)
    result = train_policy(two, seen.append, scale=TWO)
    assert_same_training(one, two)
    assert [m.step for m in seen] == [1, 2, 3, 4, 5, 6]
    assert [m.loss for m in seen] == [row["loss"] for row in trace(two)]
    assert len(result.rank_memory_gb) == 2
    assert not (two.folder / "ranks").exists()
    assert train_policy(two, scale=TWO) == result


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_killed_ranks_go_on_from_the_last_checkpoint(policy: Policy, tmp_path: Path, victim: int) -> None:
    one, two = (
        tiny_job(tmp_path / n, policy, learnable_pairs(16), epochs=50, checkpoint_steps=10, learning_rate=1e-5)
        for n in ("one", "two")
    )
    steps: list[int] = []
    killed: list[psutil.Process] = []

    def kill_at_times(metrics: StepMetrics) -> None:
        steps.append(metrics.step)
        if len(killed) < 3 and metrics.step >= 25 + 60 * len(killed):
            killed.append(ranks_below(os.getpid())[victim])
            killed[-1].kill()

    train_policy(one)
    train_policy(two, kill_at_times, scale=TWO)
    assert len({process.pid for process in killed}) == 3
    assert steps == list(range(1, 201))
    assert_same_training(one, two)


@pytest.mark.slow
def test_what_a_rank_refuses_is_raised_here(policy: Policy, tmp_path: Path) -> None:
    job = six_steps(tmp_path / "modules", policy, lora=LoraSection(target_modules=("w_q",)))
    with pytest.raises(ModelError, match=r"train\.lora\.target_modules: \('w_q',\)"):
        train_policy(job, scale=TWO)
    broken = tiny_policy(tmp_path / "broken")
    model = AutoModelForCausalLM.from_pretrained(broken.folder)
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(float("nan"))
    model.save_pretrained(broken.folder)
    with pytest.raises(ModelError, match="the log-prob of one is nan"):
        train_policy(six_steps(tmp_path / "broken", broken), scale=TWO)
    assert not ranks_below(os.getpid())


def test_pairs_are_refused_before_anything_is_started(policy: Policy, tmp_path: Path) -> None:
    job = tiny_job(tmp_path, policy, [])
    with pytest.raises(TrainingError, match="0 pairs"):
        train_policy(job, scale=TWO)
    assert not (job.folder / "ranks").exists()


@pytest.mark.slow
def test_a_run_is_interrupted_and_goes_on_in_one_process(tiny_folder: Path, tmp_path: Path) -> None:
    file, run = tmp_path / "recipe.yaml", tmp_path / "runs" / "tiny"
    recipe = tiny_recipe(tiny_folder, train={"epochs": 60}, iterations=1) | {"folder": str(tmp_path / "runs")}
    file.write_text(yaml.safe_dump(recipe))
    process = subprocess.Popen(
        [*NASHTUNE, str(file), "scale.train_processes=2"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_until(lambda: list(run.glob("iteration-1/train/checkpoint-*/state.json")), process)
    ranks = ranks_below(process.pid)
    assert len(ranks) == 2
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    assert "the same command goes on from here" in told
    assert "Traceback" not in told
    assert not psutil.wait_procs(ranks, timeout=10)[1]
    subprocess.run([*NASHTUNE, str(file)], check=True, capture_output=True)
    facts = json.loads((run / "iteration-1" / "train.json").read_text())["facts"]
    assert len(facts["rank_memory_gb"]) == 1
