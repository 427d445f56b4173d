"""Judging while samples are still being drawn: the same files as judging afterwards, and begun earlier."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from judge_server import JudgeServer
from tiny_chat import tiny_recipe

from nashtune.errors import BudgetError, OracleError
from nashtune.recipe import parse_recipe
from nashtune.run import Run
from nashtune.sampling.role import Sampler
from nashtune.stages.judging import judge
from nashtune.stages.teacher import sample


def recipe(folder: Path, server: JudgeServer, name: str, **changes: Any):
    engine = {"base_url": server.url, "model": "judge", "price": {"input": 1, "output": 1}, "probe": False}
    sections = {"sampling": {"engine": "scripted"}, "teacher": {"kind": "scripted"}, "name": name} | changes
    oracle = {"kind": "rubric", "engine": engine, "max_tokens": 200}
    return parse_recipe(tiny_recipe(folder, **sections) | {"folder": str(folder), "oracle": oracle})


@pytest.fixture
def slow_end(monkeypatch: pytest.MonkeyPatch):
    """Makes the last unit of training samples wait for something (at most 20 s) before it is drawn."""
    work = Sampler.work

    came: list[bool] = []

    def wait_for(happened) -> list[bool]:
        def waiting(self, opened, unit):
            if unit.index == 2:
                deadline = time.monotonic() + 20
                while not happened() and time.monotonic() < deadline:
                    time.sleep(0.01)
                came.append(happened())
            return work(self, opened, unit)

        monkeypatch.setattr(Sampler, "work", waiting)
        return came

    return wait_for


def test_judging_begins_before_sampling_ends_and_gives_the_same_files(
    tiny_folder: Path, tmp_path: Path, slow_end
) -> None:
    (tmp_path / "prompts.jsonl").write_bytes((tiny_folder / "prompts.jsonl").read_bytes())
    outputs = {}
    with JudgeServer() as server:
        for overlap in (False, True):
            came = slow_end((lambda: len(server.requests) > 12) if overlap else lambda: True)
            settings = recipe(tmp_path, server, "same", scale={"overlap": overlap})
            with Run.open(settings, tmp_path / f"overlap-{overlap}") as run:
                candidates = sample(run, 1)
                before = len(list((run.stage(1, "judge").folder).glob("*.parquet")))
                judge(run, candidates)
                assert before == (3 if overlap else 0)
                outputs[overlap] = run.stage(1, "judge").output
                facts = run.stage(1, "judge").record()["facts"]
                assert facts["judgments"] == 12
                assert facts["cost_usd"] > 0
            assert came[-1]  # the second run's requests came while its last unit was waiting
    assert outputs[True] == outputs[False]


def test_a_judge_that_cannot_work_stops_the_sampler_early(tiny_folder: Path, tmp_path: Path, slow_end) -> None:
    (tmp_path / "prompts.jsonl").write_bytes((tiny_folder / "prompts.jsonl").read_bytes())
    with JudgeServer(["401"] * 99) as server, Run.open(recipe(tmp_path, server, "refused"), tmp_path / "run") as run:
        slow_end(lambda: len(server.requests) >= 4 and time.sleep(0.5) is None)
        with pytest.raises(OracleError, match="status 401"):
            sample(run, 1)
        assert not run.stage(1, "judge").file.exists()


def test_a_budget_is_never_passed_and_the_run_goes_on_when_it_is_raised(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_bytes((tiny_folder / "prompts.jsonl").read_bytes())
    with JudgeServer() as server:
        with Run.open(recipe(tmp_path, server, "poor", budget={"usd": 0.005}), tmp_path / "run") as run:
            with pytest.raises(BudgetError, match=r"budget\.usd: 0\.005 dollars would be exceeded"):
                judge(run, sample(run, 1))
            name = run.id
        sent = len(server.requests)
        assert 0 < sent < 12
        with Run.open(recipe(tmp_path, server, "poor", budget={"usd": 1.0}), tmp_path / "run") as run:
            judge(run, sample(run, 1))
            from nashtune.stages.work import ledger_of

            totals = ledger_of(run).totals(name)
        assert len(server.requests) == 12  # what was bought before is not bought again
        words = sum(len(m["content"].split()) for body in server.requests for m in body["messages"])
        assert totals["prompt_tokens"] == words
        assert totals["cost_usd"] == pytest.approx((words + totals["completion_tokens"]) / 1e6)
