"""Servers, keys, disks and recipes at their worst: nothing hangs, no budget grows, and each error says what is wrong."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from judge_server import JudgeServer

from nashtune.errors import BudgetError, NashtuneError, OracleError, StoreError
from nashtune.judging.chat import ChatRequest, Reply
from nashtune.judging.dispatch import Dispatcher, Payer
from nashtune.judging.endpoint import Endpoint
from nashtune.judging.pace import Pace
from nashtune.loop import improve
from nashtune.recipe import EngineSection, parse_recipe
from nashtune.records import Message
from nashtune.store.ledger import Caps, Ledger

PRICE = {"input": 1000.0, "cached_input": 100.0, "output": 3000.0}  # a tenth of a cent for a prompt token
ASK = ChatRequest((Message("user", "What is rain, in five words or so?"),), 0.0, 20)
WORST = (len("What is rain, in five words or so?") + 16) * 1e-3 + 20 * 3e-3


async def no_sleep(_: float) -> None: ...


def bought(server: JudgeServer, ledger: Ledger, caps: Caps | None = None, **engine: Any) -> Reply:
    section = EngineSection.model_validate(
        {"base_url": server.url, "model": "m", "price": PRICE, "max_attempts": 2} | engine
    )
    payer = Payer("r", 1, caps or Caps())

    async def call() -> Reply:
        dispatcher = Dispatcher(section, ledger, payer, sleep=no_sleep, rng=random.Random(0))
        try:
            return await asyncio.wait_for(dispatcher.call(ASK), 20)
        finally:
            await dispatcher.aclose()

    return asyncio.run(call())


@pytest.mark.parametrize(
    "usage",
    [
        None,
        [],
        {},
        {"prompt_tokens": 0, "completion_tokens": 0},
        {"prompt_tokens": -100_000, "completion_tokens": -5},
        {"prompt_tokens": "many", "completion_tokens": 5},
        {"prompt_tokens": 7.5, "completion_tokens": 5},
        {"prompt_tokens": True, "completion_tokens": 5},
        {"prompt_tokens": 7},
    ],
    ids=json.dumps,
)
def test_a_usage_that_says_nothing_counts_at_the_worst_case(tmp_path: Path, usage: Any) -> None:
    with JudgeServer([f"usage:{json.dumps(usage)}"]) as server, Ledger(tmp_path / "l.db") as ledger:
        assert bought(server, ledger).cost_usd == pytest.approx(WORST)
        found = ledger.totals("r")
        assert (found["cost_usd"], found["exposure_usd"]) == (0, pytest.approx(WORST))
        assert server.billed == found["done"] == 1, "a reply that is there is no fault"


@pytest.mark.parametrize("cached", [-50, 51, "many", None])
def test_a_share_of_cached_tokens_that_cannot_be_is_no_discount(tmp_path: Path, cached: Any) -> None:
    usage = {"prompt_tokens": 50, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": cached}}
    with JudgeServer([f"usage:{json.dumps(usage)}"]) as server, Ledger(tmp_path / "l.db") as ledger:
        assert bought(server, ledger).cost_usd == pytest.approx(50e-3 + 2 * 3e-3)


def test_half_an_emoji_in_a_reply_or_an_error_is_kept_as_what_can_be_kept(tmp_path: Path) -> None:
    with JudgeServer(["emoji", "400:odd \ud83d text"]) as server, Ledger(tmp_path / "l.db") as ledger:
        assert bought(server, ledger).text.endswith("\ufffd")
        ledger.write(lambda db: db.execute("UPDATE calls SET key = 'x'") and None)
        with pytest.raises(OracleError, match="odd \ufffd text"):
            bought(server, ledger, model="n")
        ledger.check()


def test_a_change_that_cannot_be_written_fails_alone_and_the_writer_goes_on(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.db") as ledger:
        ledger.plan("k", {})
        assert ledger.begin("k") == 1
        with pytest.raises(UnicodeEncodeError):
            ledger.close_attempt("k", 1, reason="\ud83d").result(timeout=20)
        ledger.close_attempt("k", 1, raw="{}").result(timeout=20)
        assert ledger.totals()["done"] == 1


FULL = """
import resource, signal, sys
from nashtune.errors import StoreError
from nashtune.store.ledger import Ledger
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Ledger(sys.argv[1]) as ledger:
    ledger.plan("first", {})
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    try:
        for i in range(10_000):
            ledger.write(lambda db: ledger.plan_within(db, f"k{i}", {"pad": "x" * 5000})).result(timeout=20)
    except StoreError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    ledger.plan("last", {})
    ledger.check()
    print(ledger.totals()["calls"] - i)
"""


def test_a_full_disk_is_a_store_error_and_the_ledger_goes_on_once_there_is_room(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "l.db")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    message, left = done.stdout.splitlines()
    assert message.startswith(f"{tmp_path}/l.db: ledger: ")
    assert left == "2", "all before it, first and last"


def test_another_model_in_the_middle_of_a_run_halts_it_unless_told_otherwise(tmp_path: Path) -> None:
    with JudgeServer(["model:m-a", "model:m-b", "model:m-b"]) as server, Ledger(tmp_path / "l.db") as ledger:
        assert bought(server, ledger).model_returned == "m-a"
        ledger.write(lambda db: db.execute("UPDATE attempts SET key = key || 'x'") and None)
        ledger.write(lambda db: db.execute("UPDATE calls SET key = key || 'x'") and None).result()
        with pytest.raises(OracleError, match="answered as 'm-a' when this run began and as 'm-b' now"):
            bought(server, ledger)
        assert ledger.totals("r")["done"] == 2, "what was paid for is kept"
        assert bought(server, ledger, on_model_change="accept").model_returned == "m-b"
        assert server.billed == 2


def test_a_budget_of_nothing_lets_free_calls_through_alone(tmp_path: Path) -> None:
    with JudgeServer() as server, Ledger(tmp_path / "l.db") as ledger:
        with pytest.raises(BudgetError, match=r"budget\.usd: 0 dollars would be exceeded"):
            bought(server, ledger, Caps(0.0, None))
        assert server.billed == 0
        assert bought(server, ledger, Caps(0.0, 0.0), price={"input": 0, "output": 0}).cost_usd == 0


def test_a_pause_of_hours_is_waited_for_and_told_once_and_a_clock_set_back_adds_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pace = Pace(4, clock=lambda: 100.0, where="http://judge/v1")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            pace.pause(3 * 3600)
        pace.pause(5)
    assert [record.getMessage() for record in caplog.records] == [
        "http://judge/v1 asks for a pause of 180 minutes; no call is sent until then"
    ]
    assert pace._wait(1) == 3 * 3600
    with JudgeServer() as server:
        monkeypatch.setattr("time.time", lambda: 0.0)
        dispatcher = Dispatcher(EngineSection(base_url=server.url, model="m", price="free"))

        async def pace_of() -> Pace:
            return dispatcher._loop_state().pace

        assert asyncio.run(pace_of())._clock() > 0, "a clock that nobody sets"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "empty"),
        (b"\xff\xfe\x00key", "not a text file"),
        (b"sk-one-secret-of-many\nsk-another-secret", "no API key"),
        (b"sk one secret", "no API key"),
        ("sk-sécret-of-many-words".encode(), "no API key"),
        (None, "No such file"),
    ],
)
def test_a_key_file_that_holds_no_key_is_named_and_not_repeated(
    tmp_path: Path, content: bytes | None, told: str
) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(OracleError, match=f"(?s)key.*{told}.*accepted: ") as error:
        Endpoint(EngineSection(model="m", api_key_file=str(file)))
    assert "secret" not in str(error.value)
    assert "cret" not in str(error.value)


def written(folder: Path, **changes: Any) -> Path:
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"question {n}"}) + "\n" for n in range(40)))
    recipe = {
        "name": "odd",
        "folder": str(folder / "runs"),
        "policy": {"model": "none"},
        "prompts": {"source": str(prompts), "dedupe": {"near": None}, "validation": {"count": 10}},
        "sampling": {"engine": "scripted"},
        "teacher": {"kind": "scripted"},
        "iterations": 1,
    }
    file = folder / "odd.yaml"
    file.write_text(yaml.safe_dump(recipe | changes))
    return file


SERVED = {"base_url": "http://127.0.0.1:9/v1", "model": "m", "price": PRICE, "probe": False}
FREE_PAIR = [{"oracle": {"kind": "scripted"}}] * 2


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"oracle": {"kind": "rubric", "engine": SERVED}, "budget": {"usd": 0.01}},
            r"budget\.usd: the run is expected to cost",
        ),
        (
            {"oracle": {"kind": "rubric", "engine": SERVED}, "budget": {"usd_per_iteration": 0.01}},
            r"budget\.usd_per_iteration: iteration 0 is expected to cost",
        ),
        (
            {"oracle": {"kind": "rubric", "engine": SERVED | {"api_key_file": "/no/such/key"}}},
            "engine.api_key_file: /no/such/key",
        ),
        (
            {"oracle": {"kind": "rubric", "engine": {"model": "no-such-model", "base_url": "http://127.0.0.1:9/v1"}}},
            "price list",
        ),
        (
            {
                "oracle": {
                    "kind": "cascade",
                    "cheap": {"kind": "preference_model", "folder": "/no/such/model"},
                    "strong": {"kind": "scripted"},
                }
            },
            "/no/such/model",
        ),
    ],
)
def test_what_would_stop_a_run_later_is_said_before_it_makes_anything(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    file = written(tmp_path, **changes)
    with pytest.raises(NashtuneError, match=told):
        improve(file)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"oracle": {"kind": "panel", "members": FREE_PAIR, "quorum": 3}},
            "oracle.panel.quorum is 3 but the panel has 2",
        ),
        (
            {"oracle": {"kind": "pairwise", "engine": SERVED, "replies": 5}},
            "oracle.pairwise.replies is 5 at temperature 0",
        ),
        (
            {"oracle": {"kind": "compact", "engine": SERVED, "temperature": 0}},
            "oracle.compact.replies is 3 at temperature 0",
        ),
        (
            {"oracle": {"kind": "rubric", "engine": SERVED | {"timeout_s": float("inf")}}},
            "timeout_s: Input should be a finite",
        ),
        ({"budget": {"usd": float("inf")}}, "budget.usd: Input should be a finite"),
    ],
)
def test_settings_of_judges_that_cannot_be_meant_are_refused(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(NashtuneError, match=told):
        parse_recipe(yaml.safe_load(written(tmp_path, **changes).read_text()))


def test_a_folder_that_cannot_hold_a_ledger_is_named(tmp_path: Path) -> None:
    (tmp_path / "l.db").mkdir()
    with pytest.raises(StoreError, match=r"l\.db: cannot open the ledger"):
        Ledger(tmp_path / "l.db")
