"""Judging through faults and kills: what is charged, and what the ledger knows of it.

    python bench/judge_chaos.py [--json] [--judgements 3000] [--kills 80]

A server on loopback answers as a judge and misbehaves in every way it knows: rate limits with and without a time, errors,
slow and lost connections, timeouts after billing, half a body, grades that cannot be used, refusals. A process judges
against it with 16 calls in flight and is killed (kill -9) again and again, then left to finish. The server's own count of
charged answers, body by body, is the truth that the ledger is held against.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from bars import arguments, finish

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

IN_FLIGHT = 16
FAULTS = (
    *("429", "429:0.05", "500", "503", "408", "409", "reset", "body", "slow", "hang"),
    *("fence", "prose", "missing", "extra", "range", "text", "twice", "truncated", "garbage", "refusal"),
)
FAULT_SHARE = 0.15
WORDS = "rain falls where warm air rises and cools".split()  # noqa: SIM905


class Misbehaviour:
    """A script without end: mostly "ok", else one of the faults, hangs being rare as each costs a timeout."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.given: list[str] = []

    def popleft(self) -> str:
        weights = [0.2 if fault == "hang" else 1.0 for fault in FAULTS]
        faulty = self.random.random() < FAULT_SHARE
        self.given.append(self.random.choices(FAULTS, weights)[0] if faulty else "ok")
        return self.given[-1]


def serve() -> None:
    """The server's process: prints its port; GET /log lists [body, charged] of every request in order."""
    import hashlib

    import judge_server

    server = judge_server.JudgeServer()
    script = Misbehaviour(1)
    server.script = script  # type: ignore[assignment]

    class Handler(judge_server._Handler):
        judge = server

        def do_GET(self) -> None:
            with server.lock:
                bodies = [
                    hashlib.sha256(json.dumps(b, sort_keys=True).encode()).hexdigest()[:20] for b in server.requests
                ]
                charged = [not fault.partition(":")[0].isdigit() for fault in script.given]
            self._send(200, {"log": list(zip(bodies, charged, strict=True)), "billed": server.billed})

    server._http.RequestHandlerClass = Handler
    with server:
        print(server.port, flush=True)
        time.sleep(3600)


def judge_all(port: int, ledger_file: Path, judgements: int) -> list[str]:
    """What the killed process does; returns the outcomes."""
    from nashtune.judging.dispatch import Dispatcher, Payer
    from nashtune.judging.rubric import RubricOracle
    from nashtune.recipe import RubricOracle as Section
    from nashtune.records import Message, Prompt, Response
    from nashtune.store.ledger import Ledger

    engine = {"base_url": f"http://127.0.0.1:{port}/v1", "model": "judge", "timeout_s": 1.0, "max_attempts": 20}
    engine |= {"concurrency": IN_FLIGHT, "price": {"input": 2.5, "output": 10}}
    section = Section.model_validate({"kind": "rubric", "engine": engine, "max_tokens": 200})

    async def run(ledger: Ledger) -> list[str]:
        oracle = RubricOracle(section, Dispatcher(section.engine, ledger, Payer("chaos", 1)))

        async def one(number: int) -> str:
            draw = random.Random(number)
            prompt = Prompt.make([Message("user", f"Question {number}: why does it rain?")])
            texts = [" ".join(draw.choices(WORDS, k=draw.randint(3, 30))) for _ in range(3)]
            answers = [Response(f"{number}-{k}", prompt.id, k, "student", "t", text) for k, text in enumerate(texts)]
            return (await oracle.judge(prompt, answers, number)).outcome

        waiting = asyncio.Semaphore(4 * IN_FLIGHT)  # not all prompts in memory at once

        async def bounded(number: int) -> str:
            async with waiting:
                return await one(number)

        try:
            return await asyncio.gather(*(bounded(number) for number in range(judgements)))
        finally:
            await oracle.aclose()

    with Ledger(ledger_file) as ledger:
        return asyncio.run(run(ledger))


def killed(port: int, ledger_file: Path, judgements: int, seconds: float) -> bool:
    """Fork, judge, kill after ``seconds``; whether the kill found it alive. Forked, so that no time goes into imports."""
    child = os.fork()
    if child == 0:
        try:
            judge_all(port, ledger_file, judgements)
            os._exit(0)
        finally:
            os._exit(1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def server_log(port: int) -> tuple[list[tuple[str, bool]], int]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/log") as reply:
        body = json.loads(reply.read())
    return [(key, charged) for key, charged in body["log"]], body["billed"]


def ledger_counts(file: Path) -> Counter[str]:
    """Attempts by what the ledger thinks of them: done (or failed with a reply), maybe charged, certainly not."""
    import sqlite3

    with sqlite3.connect(file) as db:
        rows = db.execute("SELECT state, reply IS NOT NULL, exposure > 0 FROM attempts").fetchall()
    found: Counter[str] = Counter()
    for state, reply, exposed in rows:
        found["charged" if reply else "inflight" if state == "inflight" else "maybe" if exposed else "free"] += 1
    return found


def chaos(judgements: int, kills: int) -> dict[str, Any]:
    import nashtune.judging.rubric
    import nashtune.store.ledger  # noqa: F401 - imported before forking

    process = subprocess.Popen([sys.executable, __file__, "--part", "serve"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port = int(process.stdout.readline())
    draw, hits = random.Random(2), 0
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "ledger.sqlite"
            started = time.monotonic()
            while hits < kills:
                hits += killed(port, file, judgements, draw.uniform(0.1, 0.5))
            outcomes = judge_all(port, file, judgements)
            seconds = time.monotonic() - started
            log, billed = server_log(port)
            again = judge_all(port, file, judgements)
            unchanged = len(server_log(port)[0]) == len(log)
            counts = ledger_counts(file)
            from nashtune.store.ledger import Ledger

            with Ledger(file) as ledger:
                ledger.check()
                totals = ledger.totals("chaos")
    finally:
        process.kill()
        process.wait()
    charges = Counter(key for key, charged in log if charged)
    return {
        "judgements": judgements,
        "kills": hits,
        "seconds": round(seconds, 1),
        "outcomes": dict(Counter(outcomes)),
        "same_outcomes_when_asked_again": outcomes == again,
        "calls_when_asked_again": 0 if unchanged else 1,
        "server": {"requests": len(log), "charged": billed, "charged_twice": sum(c - 1 for c in charges.values())},
        "ledger": {
            **counts,
            "cost_usd": round(totals["cost_usd"], 4),
            "exposure_usd": round(totals["exposure_usd"], 4),
        },
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--judgements", type=int, default=3000)
    parser.add_argument("--kills", type=int, default=80)
    options = parser.parse_args()
    if options.part == "serve":
        serve()
        return
    found = chaos(options.judgements, options.kills)
    ledger, server = found["ledger"], found["server"]
    unknown = ledger.get("inflight", 0) + ledger.get("maybe", 0)
    beyond = server["charged"] - ledger["charged"]
    if not options.json:
        print(json.dumps(found, indent=1))
    bars = {
        "judgements done": (
            sum(found["outcomes"].values()),
            lambda x: x == options.judgements,
            f"{options.judgements}",
        ),
        "kills": (found["kills"], lambda x: x >= options.kills, f"at least {options.kills}"),
        "calls sent when asked again": (found["calls_when_asked_again"], lambda x: x == 0, "0"),
        "charged by the server beyond the ledger's replies": (beyond, lambda x: 0 <= x <= unknown, f"0 to {unknown}"),
        "charged twice": (
            server["charged_twice"],
            lambda x: x <= unknown,
            f"at most {unknown}: in flight or unanswered",
        ),
    }
    finish(found, bars, options.json)


if __name__ == "__main__":
    main()
