import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading

import pytest
from judge_server import JudgeServer

from nashtune.errors import StoreError
from nashtune.judging.chat import ChatRequest
from nashtune.judging.dispatch import Dispatcher
from nashtune.recipe import EngineSection
from nashtune.records import Message
from nashtune.store.ledger import Ledger, StoredReply

REPLY = '{"model": "m-1", "usage": {"prompt_tokens": 7, "completion_tokens": 3}, "choices": []}'


def ask(text: str) -> ChatRequest:
    return ChatRequest((Message("user", text),), temperature=0.0, max_tokens=20)


def counts(ledger: Ledger) -> tuple[int, ...]:
    names = ("calls", "done", "failed", "inflight", "prompt_tokens", "completion_tokens")
    totals = ledger.totals()
    assert set(totals) == {*names, "cost_usd", "exposure_usd"}
    return tuple(totals[name] for name in names)


def rows(path, columns="key, attempt, state"):
    with sqlite3.connect(path) as db:
        return db.execute(f"SELECT {columns} FROM attempts ORDER BY key, attempt").fetchall()


def test_states_and_totals_of_a_call(tmp_path):
    with Ledger(tmp_path / "ledger.db") as ledger:
        ledger.plan("a", {"model": "m"})
        assert counts(ledger) == (1, 0, 0, 0, 0, 0)
        assert ledger.begin("a") == 1
        assert ledger.totals()["inflight"] == 1
        ledger.failed("a", 1, "status 500")
        assert ledger.begin("a") == 2
        ledger.done("a", 2, REPLY)
        assert ledger.get("a") == StoredReply(2, REPLY, 0.0)
        assert counts(ledger) == (1, 1, 1, 0, 7, 3)
    assert rows(tmp_path / "ledger.db", "attempt, state, reason, model") == [
        (1, "failed", "status 500", None),
        (2, "done", None, "m-1"),
    ]


def test_a_done_call_cannot_be_begun_again_and_its_first_reply_stays(tmp_path):
    with Ledger(tmp_path / "ledger.db") as ledger:
        ledger.plan("a", {})
        first, second = ledger.begin("a"), ledger.begin("a")  # two processes at once, each before the other's reply
        assert (first, second) == (1, 2)
        ledger.done("a", 2, REPLY)
        ledger.done("a", 1, "late twin")
        assert ledger.begin("a") is None
        assert ledger.get("a") == StoredReply(2, REPLY, 0.0)
        with pytest.raises(StoreError, match="attempt 2 of call a is not inflight"):
            ledger.done("a", 2, "other")


def test_an_unreadable_reply_is_kept_and_counted(tmp_path):
    with Ledger(tmp_path / "ledger.db") as ledger:
        ledger.plan("a", {})
        for raw in (REPLY, '{"usage": ', "[" * 5000, '"text"', '{"usage": {"prompt_tokens": "many"}}'):
            attempt = ledger.begin("a")
            assert attempt is not None
            ledger.done("a", attempt, raw)
            ledger.failed("a", attempt, "not a chat completion")
        assert ledger.get("a") is None
        assert counts(ledger) == (1, 0, 5, 0, 7, 3)
    assert rows(tmp_path / "ledger.db", "reply")[0] == (REPLY,)


def test_beginning_an_unplanned_call_is_refused_and_changes_nothing(tmp_path):
    with Ledger(tmp_path / "ledger.db") as ledger:
        with pytest.raises(StoreError, match="without having been planned"):
            ledger.begin("a")
        ledger.plan("a", {})
        assert ledger.begin("a") == 1


def test_durability_settings(tmp_path):
    with Ledger(tmp_path / "ledger.db") as ledger:
        pragma = {name: ledger._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")}
    assert pragma == {"journal_mode": "wal", "synchronous": 2}  # 2 is FULL


def test_threads_and_processes_share_one_ledger(tmp_path):
    path = tmp_path / "ledger.db"
    script = (
        "import sys; from nashtune.store.ledger import Ledger\n"
        "with Ledger(sys.argv[1]) as ledger:\n"
        "    for i in range(20):\n"
        "        key = f'k{i}'; ledger.plan(key, {}); n = ledger.begin(key)\n"
        "        if n is not None: ledger.done(key, n, '{}')\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script, str(path)]) for _ in range(3)]
    with Ledger(path) as ledger:

        def work():
            for i in range(20):
                ledger.plan(f"t{i}", {})
                if (n := ledger.begin(f"t{i}")) is not None:
                    ledger.done(f"t{i}", n, "{}")

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [p.wait(30) for p in processes] == [0, 0, 0]
        totals = ledger.totals()
    assert (totals["calls"], totals["done"], totals["inflight"]) == (40, 40, 0)


@pytest.mark.parametrize("content", [b"this is no database at all, only text" * 40, b"\x00" * 3000])
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "ledger.db"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"ledger\.db"):
        Ledger(path)
    assert path.read_bytes() == content


def test_pages_damaged_later_are_a_store_error(tmp_path):
    path = tmp_path / "ledger.db"
    with Ledger(path) as ledger:
        for i in range(200):
            ledger.plan(f"{i}" * 40, {"pad": "x" * 100})
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(bytes(data))
    with pytest.raises(StoreError, match="malformed"), Ledger(path) as ledger:
        ledger.plan("new", {})


def test_another_programs_database_is_refused_untouched(tmp_path):
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE t (x)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="not a ledger of this version"):
        Ledger(path)
    assert path.read_bytes() == before
    with pytest.raises(StoreError, match="cannot open"):
        Ledger(tmp_path / "no such folder" / "ledger.db")


KILLED = """
import asyncio, sys
from nashtune.judging.chat import ChatRequest
from nashtune.judging.dispatch import Dispatcher
from nashtune.recipe import EngineSection
from nashtune.records import Message
from nashtune.store.ledger import Ledger

async def main(url, path):
    dispatcher = Dispatcher(EngineSection(price="free", base_url=url, model="m"), Ledger(path))
    for text in ("first", "second"):
        await dispatcher.call(ChatRequest((Message("user", text),), temperature=0.0, max_tokens=20))

asyncio.run(main(*sys.argv[1:]))
"""


def test_kill_9_in_mid_call_loses_nothing_done_and_shows_what_was_in_flight(tmp_path):
    path = tmp_path / "ledger.db"
    with JudgeServer(["ok", "hang"]) as server:
        process = subprocess.Popen([sys.executable, "-c", KILLED, server.url, str(path)])
        assert server.hanging.wait(30)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
        assert [row[1:] for row in rows(path)] in ([(1, "done"), (1, "inflight")], [(1, "inflight"), (1, "done")])

        async def again():
            with Ledger(path) as ledger:
                dispatcher = Dispatcher(EngineSection(price="free", base_url=server.url, model="m"), ledger)
                replies = [await dispatcher.call(ask(text)) for text in ("first", "second", "second")]
                await dispatcher.aclose()
                return [r.from_ledger for r in replies], ledger.totals()

        from_ledger, totals = asyncio.run(again())
        assert from_ledger == [True, False, True]
        assert [r["messages"][0]["content"] for r in server.requests] == ["first", "second", "second"]
    assert (totals["calls"], totals["done"], totals["inflight"]) == (2, 2, 1)
    second = Dispatcher(EngineSection(price="free", base_url=server.url, model="m")).key(ask("second"))
    assert [row[1:] for row in rows(path) if row[0] == second] == [(1, "inflight"), (2, "done")]


def test_a_reply_stored_but_unreadable_is_bought_anew_and_kept(tmp_path):
    path = tmp_path / "ledger.db"
    with JudgeServer() as server, Ledger(path) as ledger:
        dispatcher = Dispatcher(EngineSection(price="free", base_url=server.url, model="m"), ledger)
        key = dispatcher.key(ask("first"))
        ledger.plan(key, {})
        assert ledger.begin(key) == 1
        ledger.done(key, 1, "<html>busy</html>")  # and the process died before it could look
        reply = asyncio.run(dispatcher.call(ask("first")))
        assert server.billed == 1
    assert reply.from_ledger is False
    assert rows(path, "attempt, state, reason IS NOT NULL") == [(1, "failed", 1), (2, "done", 0)]
    assert rows(path, "reply")[0] == ("<html>busy</html>",)


def test_a_caller_that_gives_up_does_not_stop_the_writer(tmp_path):
    async def give_up(ledger):
        for i in range(50):
            waiting = asyncio.ensure_future(asyncio.wrap_future(ledger.remember(f"n{i}", "v")))
            await asyncio.sleep(0)
            waiting.cancel()

    with Ledger(tmp_path / "ledger.db") as ledger:
        asyncio.run(give_up(ledger))
        assert ledger.remember("last", "v").result(10) == "v"
        assert ledger.fact("n49") == "v"
