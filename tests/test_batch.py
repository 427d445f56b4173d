"""The batch API against a real server with faults, and across killed processes."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from judge_server import JudgeServer

from nashtune import recipe
from nashtune.errors import BudgetError, OracleError
from nashtune.judging import batch as batch_module
from nashtune.judging.batch import BatchDispatcher
from nashtune.judging.chat import ChatRequest, Reply
from nashtune.judging.dispatch import Dispatcher, Payer
from nashtune.judging.faults import CallRefusedError
from nashtune.judging.registry import judges_in_batches
from nashtune.judging.rubric import RubricOracle
from nashtune.records import Judgment, Message, Prompt, Response
from nashtune.store.ledger import Caps, Ledger

PRICE = recipe.PriceSection(input=1000.0, output=3000.0)  # dollars a million tokens


def engine(server: JudgeServer, **settings: Any) -> recipe.EngineSection:
    common: dict[str, Any] = {"batch": True, "batch_poll_s": 0.02, "model": "m", "price": PRICE, "max_attempts": 3}
    return recipe.EngineSection(base_url=server.url, **common | settings)


def ask(text: str) -> ChatRequest:
    return ChatRequest((Message("user", text),), temperature=0.0, max_tokens=20)


def dispatcher(server: JudgeServer, ledger: Ledger, caps: Caps | None = None, **settings: Any) -> BatchDispatcher:
    async def nap(seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.02))

    payer = Payer("r", 1, caps or Caps())
    return BatchDispatcher(engine(server, **settings), ledger, payer, sleep=nap, rng=random.Random(0))


def call(d: Dispatcher, texts: Sequence[str]) -> list[Reply]:
    async def together() -> list[Reply]:
        try:
            return await asyncio.gather(*(d.call(ask(text)) for text in texts))
        finally:
            await d.aclose()

    return asyncio.run(together())


TEXTS = [f"question {i}" for i in range(6)]


def agree(server: JudgeServer, ledger: Ledger) -> dict[str, Any]:
    """The ledger's totals, which must be the server's."""
    totals = ledger.totals("r")
    assert [totals["prompt_tokens"], totals["completion_tokens"]] == server.batches.tokens
    dollars = (1000 * server.batches.tokens[0] + 3000 * server.batches.tokens[1]) / 2e6  # half price
    assert totals["cost_usd"] == pytest.approx(dollars)
    assert totals["exposure_usd"] == 0
    return totals


def states(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return [row[0] for row in db.execute("SELECT state FROM batches ORDER BY planned_at")]


def test_calls_travel_together_at_half_price_and_say_what_single_calls_say(tmp_path: Path) -> None:
    with JudgeServer() as server, Ledger(tmp_path / "l.db") as ledger:
        replies = call(dispatcher(server, ledger), [*TEXTS, *TEXTS])
        assert server.stats()["batches"] == [6]
        assert agree(server, ledger)["done"] == server.billed == 6
        single = call(Dispatcher(engine(server, batch=False)), TEXTS)
        assert [r.choices for r in replies[:6]] == [r.choices for r in single]
        assert [2 * r.cost_usd for r in replies[:6]] == pytest.approx([r.cost_usd for r in single])
        again = call(dispatcher(server, ledger), TEXTS)
        assert all(r.from_ledger for r in again)
        assert len(server.batches.made) == 1
    assert states(tmp_path / "l.db") == ["ended"]
    with closing(sqlite3.connect(tmp_path / "l.db")) as db:
        assert {row[0] for row in db.execute("SELECT batch FROM attempts")} == set(server.batches.made)


def test_size_limits_split_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with JudgeServer() as server, Ledger(tmp_path / "l.db") as ledger:
        call(dispatcher(server, ledger, batch_size=4), TEXTS)
        assert sorted(server.stats()["batches"]) == [2, 4]
        monkeypatch.setattr(batch_module, "MOST_BYTES", 700)
        call(dispatcher(server, ledger), [f"more {i}" for i in range(6)])
        assert all(len(data) <= 700 for data in server.batches.files.values() if b'"more' in data[:400])
        assert agree(server, ledger)["done"] == server.billed == 12


def judged(server: JudgeServer, ledger: Ledger | None, count: int = 3) -> list[Judgment]:
    """Judgments of ``count`` prompts by the rubric oracle; without a ledger, by single calls."""
    section = recipe.RubricOracle(kind="rubric", engine=engine(server, batch=ledger is not None))
    via = Dispatcher(section.engine) if ledger is None else dispatcher(server, ledger)
    oracle = RubricOracle(section, via)
    assert judges_in_batches(section) == (ledger is not None)
    prompts = [Prompt.make([Message("user", f"Why {i}?")]) for i in range(count)]

    async def run() -> list[Judgment]:
        def answers(p: Prompt) -> list[Response]:
            return [Response(f"{p.id}{k}", p.id, k, "student", "t", "w " * 6 * k + "end") for k in range(3)]

        try:
            return await asyncio.gather(*(oracle.judge(p, answers(p), 5) for p in prompts))
        finally:
            await oracle.aclose()

    return asyncio.run(run())


def test_the_rubric_oracle_works_unchanged_and_repairs_in_a_later_batch(tmp_path: Path) -> None:
    with JudgeServer() as server, Ledger(tmp_path / "l.db") as ledger:
        server.batches.lines.extend(["ok", "garbage"])
        judgments = judged(server, ledger)
        assert server.stats()["batches"] == [3, 1]
        assert agree(server, ledger)["done"] == server.billed == 4
        single = judged(server, None)
    assert [j.outcome for j in judgments] == ["ok"] * 3
    assert [j.scores for j in judgments] == [j.scores for j in single]
    assert [j.usage.calls for j in judgments] == [1, 2, 1]


def test_a_refused_response_format_is_stepped_down(tmp_path: Path) -> None:
    with JudgeServer() as server, Ledger(tmp_path / "l.db") as ledger:
        server.batches.lines.extend(["400:response_format json_schema is not supported"] * 3)
        assert [j.outcome for j in judged(server, ledger)] == ["ok"] * 3
        assert server.stats()["batches"] == [3, 3]
        agree(server, ledger)


@pytest.mark.parametrize(
    ("behaviour", "batches"),
    [
        ("shuffle+twice+stray", [6]),
        ("polls:4", [6]),
        ("expired:2+shuffle", [6, 4]),
        ("expired:2+silent", [6, 4]),
        ("cancelled:5", [6, 1]),
        ("failed:0", [6, 6]),
        ("reset", [6]),
        ("lost", [6]),
    ],
)
def test_odd_batches_cost_nothing_twice(tmp_path: Path, behaviour: str, batches: list[int]) -> None:
    with JudgeServer() as server, Ledger(tmp_path / "l.db") as ledger:
        server.batches.script.append(behaviour)
        d = dispatcher(server, ledger)
        replies = call(d, TEXTS)
        assert server.stats()["batches"] == batches
        assert {r.finish_reason for r in replies} == {"stop"}  # not of the second, altered line
        assert d.strays == (7 if "stray" in behaviour else 0)
        assert agree(server, ledger)["done"] == server.billed == 6
    assert set(states(tmp_path / "l.db")) == {"ended"}


def test_a_line_that_cannot_be_read_counts_at_its_worst(tmp_path: Path) -> None:
    with JudgeServer() as server, Ledger(tmp_path / "l.db") as ledger:
        server.batches.script.append("broken")
        call(dispatcher(server, ledger), TEXTS)
        totals = ledger.totals("r")
    assert (totals["done"], totals["failed"], server.billed) == (6, 1, 7)
    assert totals["exposure_usd"] > 0


@pytest.mark.parametrize("fault", ["upload", "create", "list", "look", "content"])
def test_server_errors_are_tried_again(tmp_path: Path, fault: str) -> None:
    with JudgeServer() as server, Ledger(tmp_path / "l.db") as ledger:
        server.batches.faults[fault] = 2
        server.batches.script.extend(["reset"] if fault == "list" else [])
        call(dispatcher(server, ledger), TEXTS)
        assert server.stats()["batches"] == [6]
        assert agree(server, ledger)["done"] == 6


@pytest.mark.parametrize("fault", ["error", "500", "429"])
def test_failed_lines_are_tried_again_in_a_later_batch(tmp_path: Path, fault: str) -> None:
    with JudgeServer() as server, Ledger(tmp_path / "l.db") as ledger:
        server.batches.lines.extend([fault, "ok", fault])
        call(dispatcher(server, ledger), TEXTS)
        assert server.stats()["batches"] == [6, 2]
        assert agree(server, ledger)["failed"] == 2
        server.batches.lines.extend([fault] * 3)
        with pytest.raises(OracleError, match=r"'m' did not answer in 3 batches"):
            call(dispatcher(server, ledger), ["new"])
        assert agree(server, ledger)["failed"] == 5


def test_the_other_name_of_the_length_limit_is_taken_up_by_all_lines(tmp_path: Path) -> None:
    with JudgeServer() as server, Ledger(tmp_path / "l.db") as ledger:
        server.batches.lines.extend(["400:Use max_completion_tokens instead"] * 6)
        server.batches.lines.extend(["400:too long"])
        with pytest.raises(CallRefusedError, match="too long"):
            call(dispatcher(server, ledger), TEXTS)
        assert all("max_completion_tokens" in body for body in server.requests[6:])


def test_refusals_of_a_whole_batch_are_named(tmp_path: Path) -> None:
    with JudgeServer() as server, Ledger(tmp_path / "l.db") as ledger:
        server.batches.script.append("invalid:no such model on line 1")
        with pytest.raises(OracleError, match=r"127\.0\.0\.1.*'m'.*failed: no such model on line 1"):
            call(dispatcher(server, ledger), TEXTS)
        server.batches.absent = True
        with pytest.raises(OracleError, match=r"engine\.batch is true.*404.*engine\.batch: false"):
            call(dispatcher(server, ledger), TEXTS)
        totals = agree(server, ledger)
    assert (totals["failed"], totals["inflight"]) == (12, 0)
    assert set(states(tmp_path / "l.db")) == {"ended"}
    with pytest.raises(OracleError, match=r"engine\.batch.*ledger"):
        BatchDispatcher(engine(server))


def test_a_cap_holds_back_what_does_not_fit_until_room_is_known(tmp_path: Path) -> None:
    with JudgeServer() as server, Ledger(tmp_path / "l.db") as ledger:
        worst = dispatcher(server, ledger).terms(ask(TEXTS[0])).exposure
        call(dispatcher(server, ledger, Caps(run=4.5 * worst)), TEXTS)  # real costs are far below the worst case
        assert server.stats()["batches"][0] == 4
        assert agree(server, ledger)["done"] == 6
        spent = ledger.totals("r")["cost_usd"]
        with pytest.raises(BudgetError, match=r"budget\.usd"):
            call(dispatcher(server, ledger, Caps(run=spent + 0.5 * worst)), ["new"])
        assert agree(server, ledger)["done"] == server.billed == 6


# ---- killed processes ----------------------------------------------------------------------------------------------------

CHILD = """
import asyncio, os, signal, sys
from nashtune.judging import batch_server
from nashtune.judging.batch import BatchDispatcher, batches
from nashtune.judging.chat import ChatRequest
from nashtune.judging.dispatch import Payer
from nashtune.recipe import EngineSection, PriceSection
from nashtune.records import Message
from nashtune.store.ledger import Ledger

url, path, moment = sys.argv[1:]
die = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
looks = closes = 0
if moment == "planned":
    batch_server.BatchServer.submit = die
if moment == "uploaded":
    batch_server.BatchServer._create = die
if moment == "created":
    batches.submitted = die
if moment == "ended":
    batches.ended = die
real_look, real_close = batch_server.BatchServer.look, Ledger.close_attempt

async def look(self, id):
    global looks
    looks += 1
    if looks == 3:
        die()
    return await real_look(self, id)

def close_attempt(self, *a, **k):
    global closes
    closes += 1
    future = real_close(self, *a, **k)
    if closes == 3:
        future.result()
        die()
    return future

if moment == "polling":
    batch_server.BatchServer.look = look
if moment == "harvesting":
    Ledger.close_attempt = close_attempt

async def main():
    price = PriceSection(input=1000.0, output=3000.0)
    engine = EngineSection(base_url=url, model="m", price=price, batch=True, batch_poll_s=0.02, max_attempts=3)
    d = BatchDispatcher(engine, Ledger(path), Payer("r", 1))
    asks = [ChatRequest((Message("user", f"question {i}"),), 0.0, 20) for i in range(6)]
    await asyncio.gather(*(d.call(a) for a in asks))

asyncio.run(main())
"""


@pytest.mark.parametrize("moment", ["planned", "uploaded", "created", "polling", "harvesting", "ended"])
def test_kill_9_buys_nothing_twice(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "l.db"
    with JudgeServer() as server:
        server.batches.page = 1
        server.batches.script.append("polls:4")
        killed = subprocess.run([sys.executable, "-c", CHILD, server.url, str(path), moment], check=False)
        assert killed.returncode == -9
        with Ledger(path) as ledger:
            if moment == "created":  # others' batches stand before it in the server's list
                for n in range(3):
                    server.batches.made[f"other-{n}"] = {"id": f"other-{n}", "request_counts": {"total": 0}}
            replies = call(dispatcher(server, ledger), [*TEXTS, "a new one"])
            assert len({r.text for r in replies}) == 7
            assert agree(server, ledger)["done"] == server.billed == 7
            assert set(server.batches.bought.values()) == {1}
            assert ledger.totals("r")["inflight"] == 0
        sizes = [size for size in server.stats()["batches"] if size]
    assert sizes == ([7] if moment in ("planned", "uploaded") else [6, 1])
    assert set(states(path)) == {"ended"}


def test_kills_at_every_moment_one_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    with JudgeServer() as server:
        server.batches.script.extend(["polls:6+expired:4"])
        for moment in ("planned", "uploaded", "created", "polling", "harvesting"):
            killed = subprocess.run([sys.executable, "-c", CHILD, server.url, str(path), moment], check=False)
            assert killed.returncode == -9
        with Ledger(path) as ledger:
            call(dispatcher(server, ledger), TEXTS)
            assert agree(server, ledger)["done"] == server.billed == 6
        assert set(server.batches.bought.values()) == {1}


def test_batches_of_other_runs_and_judges_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    with JudgeServer() as server:
        subprocess.run([sys.executable, "-c", CHILD, server.url, str(path), "planned"], check=False)
        with Ledger(path) as ledger:
            call(dispatcher(server, ledger, model="other"), TEXTS)
            call(BatchDispatcher(engine(server), ledger, Payer("r2", 1)), ["else"])
            assert ledger.totals("r")["inflight"] == 6
    assert states(path) == ["planned", "ended", "ended"]


def test_two_dispatchers_of_one_run_do_not_take_each_others_batches(tmp_path: Path) -> None:
    with JudgeServer() as server, Ledger(tmp_path / "l.db") as ledger:
        server.batches.script.extend(["polls:20"])

        async def both() -> None:
            first, second = dispatcher(server, ledger), dispatcher(server, ledger)
            early = asyncio.gather(*(first.call(ask(text)) for text in TEXTS))
            while not server.batches.looks:
                await asyncio.sleep(0.01)
            await second.call(ask("late"))
            await early
            await first.aclose()
            await second.aclose()

        asyncio.run(both())
        assert server.stats()["batches"] == [6, 1]
        assert agree(server, ledger)["done"] == server.billed == 7
