"""`nashtune eval` killed (SIGKILL) in sampling and in judging: resumed, each answer judged once."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from judge_server import JudgeServer
from reference_data import REFERENCE_DATA, needs_reference_data
from suite_data import alpaca_folder
from tiny_chat import write_tiny_policy
from typer.testing import CliRunner

from nashtune.cli import app

CONCURRENCY = 8
PROBES = 7


class KillsAt:
    """The server's script: all is "ok", and the client is killed as its n-th request of an attempt arrives."""

    def __init__(self) -> None:
        self.victim: subprocess.Popen[bytes] | None = None
        self.left = -1

    def popleft(self) -> str:
        self.left -= 1
        if self.left == 0 and self.victim is not None:
            os.kill(self.victim.pid, signal.SIGKILL)
        return "ok"


class Evaluation:
    """The command that evaluates a tiny model, and ways to end it."""

    def __init__(self, tmp_path: Path, data: Path, server: JudgeServer):
        config = write_tiny_policy(tmp_path / "policy") / "config.json"
        longest = {"max_position_embeddings": 16_384}  # bytes of the longest published prompt
        config.write_text(json.dumps(json.loads(config.read_text()) | longest))
        self.out, self.server, self.kills = tmp_path / "out", server, KillsAt()
        server.script = self.kills  # type: ignore[assignment]
        settings = {"data": data, "judge.model": "judge", "judge.base_url": server.url, "judge.price": "free"}
        settings |= {"judge.concurrency": CONCURRENCY, "max_new_tokens": 4, "dtype": "float32", "slots": 64}
        self.words = ["eval", str(tmp_path / "policy"), "--suite", "alpaca_eval", "--out", str(self.out), "--json"]
        for key, value in settings.items():
            self.words += ["-o", f"{key}={value}"]

    def killed_at(self, pattern: str) -> None:
        script = str(Path(__file__).parent / "killed_at.py")
        done = subprocess.run([sys.executable, script, str(self.out), pattern, *self.words], capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()

    def killed_at_request(self, number: int) -> None:
        self.kills.left = number
        process = subprocess.Popen(
            [sys.executable, "-m", "nashtune.cli", *self.words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.kills.victim = process
        _, told = process.communicate()
        assert process.returncode == -signal.SIGKILL, told.decode()

    def finished(self) -> dict[str, Any]:
        self.kills.victim = None
        done = CliRunner().invoke(app, self.words)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)["evaluations"][0]

    def hold_against_the_ledger(self, prompts: int) -> None:
        """Every reply once in the ledger; what the server got twice was in flight at a kill."""
        bodies = Counter(
            hashlib.sha256(json.dumps(b, sort_keys=True).encode()).hexdigest() for b in self.server.requests
        )
        with sqlite3.connect(self.out / "ledger.sqlite") as ledger:
            states = dict(ledger.execute("select state, count(*) from attempts group by state"))
            keys = ledger.execute("select count(distinct key) from attempts where state = 'done'").fetchone()[0]
        # the probe's two calls with one seed are alike in all but what is not sent
        assert keys == states["done"] == prompts + PROBES == len(bodies) + 1
        twice = sum(bodies.values()) - states["done"]
        assert twice <= states.get("inflight", 0)
        assert sum(bodies.values()) <= sum(states.values())


def unchanged(folder: Path) -> dict[str, str]:
    """Hash of all that an evaluation computes."""
    kept = [
        f
        for f in folder.rglob("*")
        if (f.is_file() and f.suffix in {".parquet", ".jsonl"}) or f.name == "annotations.json"
    ]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(kept)}


def test_killed_in_sampling_and_in_judging_an_evaluation_judges_each_answer_once(tmp_path: Path) -> None:
    data = alpaca_folder(tmp_path / "data", 60)
    with JudgeServer() as server:
        killed = Evaluation(tmp_path, data, server)
        killed.killed_at("alpaca_eval/policy/answers-1/000001-*.parquet")
        assert len(server.requests) == PROBES
        for number in (1, 30):
            killed.killed_at_request(number)
        assert not list(killed.out.rglob("scores.json"))
        found = killed.finished()
        killed.hold_against_the_ledger(60)
        assert found["counts"]["verdicts"] == 60
        requests, kept = len(server.requests), unchanged(killed.out)
        assert killed.finished() == found, "a finished evaluation does nothing"
        assert (len(server.requests), unchanged(killed.out)) == (requests, kept)
        shutil.move(killed.out, tmp_path / "killed")
        killed.finished()  # as if never stopped
        assert unchanged(killed.out) == unchanged(tmp_path / "killed")


def write_published_data(folder: Path) -> Path:
    """The published set in the hub's layout; the gamed baselines' verdicts are the surrogates of the reference data."""
    import pyarrow.parquet as pq

    folder.mkdir()
    rows = pq.read_table(REFERENCE_DATA / "alpacaeval_prompts.parquet").to_pylist()
    written = [
        {
            "dataset": r["dataset"],
            "instruction": r["instruction"],
            "output": r["reference_output"],
            "generator": "gpt4_1106_preview",
        }
        for r in rows
    ]
    (folder / "alpaca_eval_gpt4_baseline.json").write_text(json.dumps(written))
    shutil.copy(REFERENCE_DATA / "alpacaeval_judge_prompt.txt", folder)
    with (folder / "df_gamed.csv").open("w", newline="") as stream:
        lines = csv.writer(stream)
        lines.writerow(["index", "model", "std_delta_len", "preference", "instruction_difficulty"])
        for r in pq.read_table(REFERENCE_DATA / "alpacaeval_gamed_baselines.parquet").to_pylist():
            lines.writerow(
                [r["index"], r["model"], r["std_delta_len"], r["preference_surrogate"], r["instruction_difficulty"]]
            )
    return folder


@pytest.mark.slow
@needs_reference_data
def test_all_of_alpaca_eval_killed_five_times(tmp_path: Path) -> None:
    data = write_published_data(tmp_path / "data")
    with JudgeServer() as server:
        killed = Evaluation(tmp_path, data, server)
        killed.killed_at("alpaca_eval/policy/answers-1/000020-*.parquet")
        for number in (2, 100, 300, 250):
            killed.killed_at_request(number)
        found = killed.finished()
        killed.hold_against_the_ledger(805)
    assert found["counts"]["verdicts"] == 805
    assert found["counts"]["unusable"] == 0
    assert 0 < found["metrics"]["alpaca_eval_lc"]["low"] < found["metrics"]["alpaca_eval_lc"]["high"] < 100
