"""kill -9 at a moment of every stage, then the same command: the end is the same, bit for bit."""

from __future__ import annotations

import hashlib
import os
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

NASHTUNE = [sys.executable, "-m", "nashtune.cli", "run"]

# Files whose appearance says that a stage is in the middle of its work, in the order in which a run makes them.
MOMENTS = [
    "prompts/part-1.parquet",
    "iteration-0/validate-sample/000000-*.parquet",
    "iteration-1/sample/000001-*.parquet",
    "iteration-1/teacher-pool/000000-*.parquet",
    "iteration-1/judge/000000-*.parquet",
    "iteration-1/train/metrics.jsonl",
    "iteration-1/policy.partial",
    "iteration-1/validate-judge/000000-*.parquet",
    "iteration-1/kl-scores/000000-*.parquet",
    "iteration-2/sample/000002-*.parquet",
    "iteration-2/train/*",
    "average/policy",
    "average/validate-judge/000000-*.parquet",
    "average/summary.json",
]


def results(run: Path) -> dict[str, str]:
    """Hash of everything a run computes: samples, judgments, pairs, policies."""
    kept = [f for f in run.rglob("*") if f.is_file() and f.suffix in {".parquet", ".safetensors"}]
    return {str(f.relative_to(run)): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(kept)}


def kill_when(recipe: Path, run: Path, pattern: str) -> int:
    """Run the recipe until ``pattern`` appears, and then not an operation longer; its exit code."""
    command = [sys.executable, str(Path(__file__).parent / "killed_at.py"), str(run), pattern, "run", str(recipe)]
    return subprocess.run(command, capture_output=True, check=False).returncode


@pytest.fixture
def recipes(tiny_folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two recipes that differ in the folder alone."""
    files = []
    for name in ("killed", "whole"):
        file = tmp_path / f"{name}.yaml"
        changes: dict[str, Any] = {"train": {"epochs": 3}, "sampling": {"max_new_tokens": 24}, "average": "weights"}
        file.write_text(yaml.safe_dump(tiny_recipe(tiny_folder, **changes) | {"folder": str(tmp_path / name)}))
        files.append(file)
    return files[0], files[1]


def test_killed_in_every_stage_a_run_ends_as_if_never_stopped(recipes: tuple[Path, Path], tmp_path: Path) -> None:
    killed, whole = recipes
    run = tmp_path / "killed" / "tiny"
    codes = {moment: kill_when(killed, run, moment) for moment in MOMENTS}
    assert codes == dict.fromkeys(MOMENTS, -signal.SIGKILL)
    for file in (killed, whole):
        subprocess.run([*NASHTUNE, str(file)], check=True, capture_output=True)
    assert results(run) == results(tmp_path / "whole" / "tiny")
    assert not list(run.rglob("*.partial"))


def test_ctrl_c_ends_politely_and_workers_do_not_outlive_a_killed_run(
    recipes: tuple[Path, Path], tmp_path: Path
) -> None:
    file, run = recipes[0], tmp_path / "killed" / "tiny"
    process = subprocess.Popen([*NASHTUNE, str(file), "scale.workers=2"], stderr=subprocess.PIPE, text=True)
    while not list(run.glob("iteration-1/sample/*.parquet")):
        assert process.poll() is None, "ended before it sampled"
        time.sleep(0.001)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not psutil.wait_procs(workers, timeout=60)[1]

    again = subprocess.Popen(
        [*NASHTUNE, str(file)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # a shell's background jobs ignore Ctrl-C, and so would what they start
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list(run.glob("iteration-1/sample.json")):
        assert again.poll() is None, "ended before it sampled"
        time.sleep(0.001)
    again.send_signal(signal.SIGINT)
    told = again.communicate()[1]
    assert again.returncode == 130
    assert "the same command goes on from here" in told
    assert "Traceback" not in told
