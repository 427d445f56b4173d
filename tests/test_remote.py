"""The dispatcher against a real server with faults, and the remote engine on top of it."""

import asyncio
import dataclasses
import random
from email.utils import formatdate

import pytest
from judge_server import JudgeServer

from nashtune.errors import OracleError, SamplingError
from nashtune.judging.chat import ChatRequest
from nashtune.judging.dispatch import Dispatcher
from nashtune.judging.faults import CallRefusedError
from nashtune.recipe import EngineSection
from nashtune.records import Message
from nashtune.sampling.engine import Request, SamplingParams
from nashtune.sampling.remote import RemoteEngine
from nashtune.store.ledger import Ledger

REQUEST = ChatRequest((Message("user", "What is rain?"),), temperature=0.0, max_tokens=20)
NOW = 1_700_000_000.0


class Naps:
    """A sleep that only notes how long it was asked to be, and the clock that it moves."""

    def __init__(self):
        self.seconds = []
        self.now = NOW

    async def __call__(self, seconds):
        self.seconds.append(seconds)
        self.now += seconds

    def clock(self):
        return self.now


def dispatcher(server, ledger=None, naps=None, **engine):
    section = EngineSection(price="free", base_url=server.url, model="m", **engine)
    naps = naps or Naps()
    return Dispatcher(section, ledger, clock=naps.clock, sleep=naps, rng=random.Random(0))


def call(d, *requests):
    async def together():
        try:
            return await asyncio.gather(*(d.call(r) for r in requests or (REQUEST,)))
        finally:
            await d.aclose()

    return asyncio.run(together())


@pytest.mark.parametrize("fault", ["429", "500", "503", "408", "409", "reset", "body"])
def test_transient_faults_are_tried_again_and_recorded(tmp_path, fault):
    naps = Naps()
    with JudgeServer([fault, fault]) as server, Ledger(tmp_path / "l.db") as ledger:
        (reply,) = call(dispatcher(server, ledger, naps), REQUEST)
        assert len(server.requests) == 3
        totals = ledger.totals()
    assert reply.text.endswith(".")
    assert (reply.finish_reason, reply.model_returned, reply.from_ledger) == ("stop", "m-0001", False)
    assert (totals["calls"], totals["done"], totals["failed"], totals["inflight"]) == (1, 1, 2, 0)
    assert len(naps.seconds) == 2


def test_timeouts_are_tried_again():
    with JudgeServer(["hang"]) as server:
        (reply,) = call(dispatcher(server, timeout_s=0.3))
        assert len(server.requests) == 2
    assert reply.text


def test_back_off_is_full_jitter_and_honours_retry_after():
    naps = Naps()
    date = formatdate(NOW + 9000, usegmt=True)
    script = ["500", "500", "500", "429:7", f"429:{date}", "429:soon", "429:-3", "429:86400"]
    with JudgeServer(script) as server:
        call(dispatcher(server, naps=naps, max_attempts=9))
    caps = [0.5 * 2**i for i in range(8)]
    passed = sum(naps.seconds[:4])
    asked = [0, 0, 0, 7, 9000 - passed, 0, 0, 86400]
    for seconds, least, cap in zip(naps.seconds, asked, caps, strict=True):
        assert least - 1e-3 <= seconds <= least + cap
    jitter = [(s - a) / c for s, a, c in zip(naps.seconds, asked, caps, strict=True)]
    assert max(jitter) - min(jitter) > 0.3  # spread over [0, 1], not a fixed share


def test_gives_up_after_max_attempts_with_the_servers_last_word():
    with JudgeServer(["500"] * 5) as server:
        with pytest.raises(OracleError, match=r"127\.0\.0\.1.*'m'.*3 attempts.*status 500: status 500"):
            call(dispatcher(server, max_attempts=3))
        assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_refusals_end_at_once_naming_server_model_and_message(status):
    with JudgeServer([f"{status}:no such thing"]) as server:
        with pytest.raises(CallRefusedError, match=rf"127\.0\.0\.1.*'m'.*status {status}") as caught:
            call(dispatcher(server))
        assert len(server.requests) == 1
    assert caught.value.status == status
    assert ("OPENAI_API_KEY" in str(caught.value)) == (status in (401, 403))


def test_the_key_reaches_the_server_and_neither_ledger_nor_messages(tmp_path, monkeypatch):
    secret = "sk-a-very-secret-key-0123456789"
    monkeypatch.setenv("MY_KEY", secret)
    with JudgeServer(["leak", "401"], require_key=secret) as server, Ledger(tmp_path / "l.db") as ledger:
        d = dispatcher(server, ledger, api_key_env="MY_KEY")
        leaking = dataclasses.replace(REQUEST, messages=(Message("user", "again"),))
        call(d)
        with pytest.raises(CallRefusedError, match=r"Incorrect API key provided: \[key\].*MY_KEY") as caught:
            call(d, leaking)
        assert secret not in str(caught.value)
        assert server.billed == 1
        files = list(tmp_path.iterdir())
        assert any(f.name.endswith("-wal") for f in files)
        assert all(secret.encode() not in f.read_bytes() for f in files)


def test_a_key_is_needed_elsewhere_than_on_this_machine(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(OracleError, match=r"OPENAI_API_KEY .*is not set"):
        Dispatcher(EngineSection(price="free", base_url="https://judge.example/v1", model="m"))
    with pytest.raises(SamplingError, match="OPENAI_API_KEY"):
        RemoteEngine(EngineSection(price="free", base_url="https://judge.example/v1", model="m"))
    for url in ("http://localhost:1/v1", "http://127.0.0.5:1/v1", "http://[::1]:1/v1"):
        Dispatcher(EngineSection(price="free", base_url=url, model="m"))


def test_every_field_decides_the_key_and_neutral_settings_do_not():
    def key(request=REQUEST, **engine):
        settings = {"base_url": "http://127.0.0.1:1/v1", "model": "m", "price": "free", **engine}
        return Dispatcher(EngineSection.model_validate(settings)).key(request)

    changes = {
        "messages": (Message("system", "What is rain?"),),
        "temperature": 0.5,
        "max_tokens": 21,
        "top_p": 0.9,
        "n": 2,
        "seed": 1,
        "response_format": {"type": "json_object"},
        "top_logprobs": 5,
        "replicate": 1,
    }
    assert set(changes) == {f.name for f in dataclasses.fields(ChatRequest)}
    keys = {key()} | {key(dataclasses.replace(REQUEST, **{name: value})) for name, value in changes.items()}
    keys |= {key(base_url="http://127.0.0.1:2/v1"), key(model="m2")}
    assert len(keys) == len(changes) + 3
    assert all(len(k) == 64 for k in keys)
    assert key(concurrency=1, timeout_s=1, max_attempts=1, api_key_env="OTHER") == key()
    assert key(base_url="http://127.0.0.1:1/v1/") == key()


def test_equal_calls_at_once_and_in_later_loops_are_bought_once(tmp_path):
    with JudgeServer() as server, Ledger(tmp_path / "l.db") as ledger:
        d = dispatcher(server, ledger)
        replies = call(d, *[REQUEST] * 5) + call(d)
        assert len(server.requests) == 1
        call(d, dataclasses.replace(REQUEST, replicate=1))
        assert len(server.requests) == 2
    assert sum(not r.from_ledger for r in replies) == 1
    assert len({r.text for r in replies}) == 1


def test_a_new_loop_works_though_the_old_one_was_never_closed_down():
    with JudgeServer() as server:
        d = dispatcher(server)
        texts = {asyncio.run(d.call(REQUEST)).text for _ in range(3)}
        assert len(server.requests) == 3  # no ledger: each is sent
    assert len(texts) == 1


def test_concurrency_is_limited():
    many = [dataclasses.replace(REQUEST, replicate=i) for i in range(12)]
    with JudgeServer() as server:
        call(dispatcher(server, concurrency=3), *many)
        assert server.stats()["requests"] == 12
        assert server.most_at_once <= 3


def test_engine_answers_every_seed_once_and_resumes_from_the_ledger(tmp_path):
    requests = [Request(f"p{i}", (Message("user", f"q{i}"),), (), (2**40 + i, 2**50 + 100 + i)) for i in range(6)]
    params = SamplingParams(temperature=0.5, top_p=0.9, max_new_tokens=12)
    with JudgeServer(["500", "429"]) as server, Ledger(tmp_path / "l.db") as ledger:
        section = EngineSection(price="free", base_url=server.url, model="m", concurrency=4)
        first = {(c.prompt_id, c.k): c for c in RemoteEngine(section, ledger).generate(requests, params)}
        sent = len(server.requests)
        again = {(c.prompt_id, c.k): c for c in RemoteEngine(section, ledger).generate(requests, params)}
        assert len(server.requests) == sent == 14
        bodies = server.requests
    assert set(first) == {(f"p{i}", k) for i in range(6) for k in range(2)}
    assert again == first
    assert len({c.text for c in first.values()}) == 12
    assert all((c.token_ids, c.logprob, c.finish) == ((), None, "stop") for c in first.values())
    assert {(b["temperature"], b["top_p"], b["max_tokens"]) for b in bodies} == {(0.5, 0.9, 12)}
    assert {b["seed"] for b in bodies} == {s % 2**31 for r in requests for s in r.seeds}


def test_engine_reports_truncation_and_refusals():
    requests = [Request("p", (Message("user", "q"),), (), (1, 2))]
    with JudgeServer(["truncated", "refusal"]) as server:
        section = EngineSection(price="free", base_url=server.url, model="m", concurrency=1)
        cut, refusal = sorted(RemoteEngine(section).generate(requests, SamplingParams()), key=lambda c: c.k)
    assert cut.finish == "length"
    assert (refusal.text, refusal.finish) == ("I cannot help with that.", "stop")


def test_engine_errors_are_sampling_errors_and_early_stops_leave_no_thread_waiting():
    requests = [Request(f"p{i}", (Message("user", f"q{i}"),), (), (1,)) for i in range(8)]
    with JudgeServer(["ok", "404:no such model", *["hang"] * 3]) as server:
        engine = RemoteEngine(EngineSection(price="free", base_url=server.url, model="m", concurrency=1))
        with pytest.raises(SamplingError, match="no such model"):
            list(engine.generate(requests, SamplingParams()))
        stream = engine.generate(requests[:0], SamplingParams())
        assert list(stream) == []
    with JudgeServer(["ok", "hang"]) as server:
        stream = RemoteEngine(EngineSection(price="free", base_url=server.url, model="m")).generate(
            requests, SamplingParams()
        )
        next(stream)
        assert server.hanging.wait(10)
        stream.close()
    with pytest.raises(SamplingError, match="top_k is 5"):
        engine.generate(requests, SamplingParams(top_k=5))
    with pytest.raises(SamplingError, match="stop_token_ids"):
        engine.generate(requests, SamplingParams(stop_token_ids=(2,)))


def test_engine_works_inside_a_running_loop():
    async def outer(section):
        request = Request("p", (Message("user", "q"),), (), (1,))
        return [c.text for c in RemoteEngine(section).generate([request], SamplingParams())]

    with JudgeServer() as server:
        assert len(asyncio.run(outer(EngineSection(price="free", base_url=server.url, model="m")))) == 1


def test_a_call_cancelled_while_its_reply_is_being_stored_keeps_the_reply(tmp_path, monkeypatch):
    with JudgeServer() as server, Ledger(tmp_path / "l.db") as ledger:
        d, close = dispatcher(server, ledger), ledger.close_attempt

        async def cancelled_at_the_close():
            task = asyncio.create_task(d.call(REQUEST))

            def close_and_cancel(*args, **what):
                task.cancel()
                return close(*args, **what)

            monkeypatch.setattr(ledger, "close_attempt", close_and_cancel)
            with pytest.raises(asyncio.CancelledError):
                await task
            await d.aclose()

        asyncio.run(cancelled_at_the_close())
        monkeypatch.undo()
        (reply,) = call(d, REQUEST)
        assert len(server.requests) == 1
        assert reply.from_ledger
        totals = ledger.totals()
    assert (totals["done"], totals["failed"], totals["inflight"]) == (1, 0, 0)


def test_a_reply_costs_what_the_ledger_says_it_was_bought_for(tmp_path):
    with JudgeServer() as server, Ledger(tmp_path / "l.db") as ledger:
        costs = []
        for price in ({"input": 1.0, "output": 2.0}, {"input": 50.0, "output": 90.0}):  # the list price rose since
            section = EngineSection(price=price, base_url=server.url, model="m")
            (reply,) = call(Dispatcher(section, ledger), REQUEST)
            costs.append(reply.cost_usd)
        assert len(server.requests) == 1
        assert costs[0] == costs[1] == ledger.totals()["cost_usd"] > 0
