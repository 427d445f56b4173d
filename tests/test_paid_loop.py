"""The loop with a paid judge and teacher: a real HTTP server on loopback that counts what it bills."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_chat import tiny_recipe

from nashtune.records import Judgment
from nashtune.run import Run
from nashtune.store import tables

NASHTUNE = [sys.executable, "-m", "nashtune.cli", "run"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Address of a judge server in a process of its own."""
    port_file = tmp_path / "port"
    script = Path(__file__).parent / "judge_server.py"
    process = subprocess.Popen([sys.executable, str(script), "--port", "0", "--port-file", str(port_file)])
    while not (port_file.exists() and port_file.read_text().strip()):
        assert process.poll() is None
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port_file.read_text().strip()}"
    process.terminate()
    process.wait()


def stats(server: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{server}/stats") as reply:
        return json.load(reply)


def test_a_killed_paid_run_buys_each_judgment_once_but_those_in_flight(
    server: str, tiny_folder: Path, tmp_path: Path
) -> None:
    engine = {"base_url": f"{server}/v1", "model": "judge-1", "concurrency": 2, "price": "free", "probe": False}
    recipe = tiny_recipe(tiny_folder, iterations=1) | {
        "folder": str(tmp_path),
        "oracle": {"kind": "rubric", "engine": engine},
        "teacher": {"kind": "remote", "engine": engine | {"model": "teacher-1"}, "max_new_tokens": 40},
    }
    file, run = tmp_path / "paid.yaml", tmp_path / "tiny"
    file.write_text(yaml.safe_dump(recipe))
    kills = 0
    for moment in (
        "iteration-0/validate-teacher/*.parquet",
        "iteration-0/validate-judge/*.parquet",
        "iteration-1/judge/*.parquet",
    ):
        process = subprocess.Popen([*NASHTUNE, str(file)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            if list(run.glob(moment)):
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.0005)
        process.wait()
    done = subprocess.run([*NASHTUNE, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = Run.read(run)
    judged = [
        j
        for t, name in ((0, "validate-judge"), (1, "judge"), (1, "validate-judge"))
        for j in tables.stream(Judgment, found.stage(t, name).files())
    ]
    assert len(judged) == 8 + 12 + 8
    assert all(j.outcome == "ok" and j.model_requested == "judge-1" for j in judged)
    with sqlite3.connect(run / "ledger.sqlite") as ledger:
        states = dict(ledger.execute("select state, count(*) from attempts group by state"))
    billed = stats(server)["billed"]
    assert kills == 3
    assert states["done"] == 28 + 8 + 12  # judgments, and the teacher's answers
    assert states["done"] <= billed <= states["done"] + 2 * kills  # at most what was in flight is bought twice
    assert billed - states["done"] <= states.get("inflight", 0)
    assert found.summaries()[1].tokens["judge"] > 0


def test_each_stage_is_judged_in_one_batch(server: str, tiny_folder: Path, tmp_path: Path) -> None:
    engine = {"base_url": f"{server}/v1", "model": "judge-1", "price": "free", "batch": True, "batch_poll_s": 0.5}
    recipe = tiny_recipe(tiny_folder, iterations=1) | {
        "folder": str(tmp_path),
        "oracle": {"kind": "rubric", "engine": engine},
    }
    file = tmp_path / "paid.yaml"
    file.write_text(yaml.safe_dump(recipe))
    done = subprocess.run([*NASHTUNE, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = stats(server)
    found = stats(server)
    assert found["batches"] == [8, 8, 12, 12, 8]  # the teacher is the best of several by the same judge
    assert found["billed"] == 48
