"""What an endpoint can do, from what it really answers."""

import asyncio
import json
from pathlib import Path

import pytest
from judge_server import JudgeServer
from tiny_chat import tiny_recipe

from nashtune.errors import OracleError
from nashtune.judging.dispatch import Dispatcher
from nashtune.judging.probe import probe
from nashtune.recipe import EngineSection, parse_recipe
from nashtune.run import Run
from nashtune.stages.judging import judge
from nashtune.stages.teacher import sample


def probed(server: JudgeServer):
    async def run():
        dispatcher = Dispatcher(EngineSection(price="free", base_url=server.url, model="m", concurrency=1))
        try:
            return await probe(dispatcher)
        finally:
            await dispatcher.aclose()

    return asyncio.run(run())


def test_a_server_is_known_by_what_it_answers():
    with JudgeServer() as server:
        found = probed(server)
        assert len(server.requests) == 7
    assert (found.logprobs, found.usage, found.seed, found.model_returned) == (True, True, True, "m-0001")
    assert (found.json_schema, found.json_object, found.n) == (
        False,
        False,
        False,
    )  # it answers with a sentence, thrice the same
    assert found.tokens > 0


def test_refused_formats_and_missing_log_probs_are_no_error():
    with JudgeServer(["ok"] * 3 + ["nologprobs"], refused_formats=["json_schema", "json_object"]) as server:
        found = probed(server)
    assert (found.json_schema, found.json_object, found.logprobs) == (False, False, False)


def test_a_server_that_knows_neither_key_nor_model_is_an_error():
    with JudgeServer(["404:no such model"]) as server, pytest.raises(OracleError, match="no such model"):
        probed(server)


def recipe(folder: Path, server: JudgeServer, **oracle):
    engine = {"base_url": server.url, "model": "judge", "price": "free", "concurrency": 1}
    sections = {"sampling": {"engine": "scripted"}, "teacher": {"kind": "scripted"}, "scale": {"overlap": False}}
    oracle = {"kind": "pairwise", "engine": engine, "pairs": "teacher"} | oracle
    return parse_recipe(tiny_recipe(folder, **sections) | {"folder": str(folder), "oracle": oracle})


def test_a_run_asks_once_keeps_the_answer_and_refuses_what_cannot_work(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_bytes((tiny_folder / "prompts.jsonl").read_bytes())
    with JudgeServer() as server:
        with Run.open(recipe(tmp_path, server), tmp_path / "run") as run:
            candidates = sample(run, 1)
            judge(run, candidates)
            kept = json.loads((run.folder / "endpoints.json").read_text())
            assert kept[f"{server.url} judge"]["logprobs"] is True
        assert len(server.requests) == 7 + 12 * 2 * 3
        with Run.open(recipe(tmp_path, server), tmp_path / "run") as run:
            judge(run, sample(run, 1))
        assert len(server.requests) == 7 + 12 * 2 * 3
    with JudgeServer(["nologprobs"] * 99) as server:
        deaf = recipe(tmp_path, server, use="logprobs")
        with Run.open(deaf, tmp_path / "other") as run, pytest.raises(OracleError, match=r"no log-probs.*use: replies"):
            judge(run, sample(run, 1))
        assert len(server.requests) == 7


def test_a_best_of_n_teacher_asks_what_the_server_can_before_it_buys(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_bytes((tiny_folder / "prompts.jsonl").read_bytes())
    with JudgeServer(["nologprobs"] * 99) as server:
        settings = recipe(tmp_path, server, use="logprobs")
        settings = parse_recipe(settings.model_dump(by_alias=True) | {"teacher": {"kind": "best_of_n", "n": 2}})
        with Run.open(settings, tmp_path / "run") as run, pytest.raises(OracleError, match="no log-probs"):
            sample(run, 1)
        assert len(server.requests) == 7
