"""Judgements a second through dispatcher and ledger, against a server that answers at once.

    python bench/dispatch.py [--json] [--calls 3000]

What is measured is nashtune's own share of a call: the record before it, the request, the record of its reply, and reading it.
Every record is on disk before the next step. Client and server have a process each.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bars import arguments, finish

WORDS_A_PROMPT = 400
IN_FLIGHT = 32
BODY = json.dumps(
    {
        "model": "m-1",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "1"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 500, "completion_tokens": 1},
    }
).encode()
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY


class Instant(asyncio.Protocol):
    """Reads requests as far as their Content-Length says, and gives each the same reply."""

    def connection_made(self, transport: Any) -> None:
        self.transport, self.received = transport, b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            head = self.received[:end].lower()
            length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
            if len(self.received) < end + 4 + length:
                return
            self.received = self.received[end + 4 + length :]
            self.transport.write(ANSWER)


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Instant, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def measure(port: int, calls: int) -> dict[str, Any]:
    from nashtune.judging.chat import ChatRequest
    from nashtune.judging.dispatch import Dispatcher, Payer
    from nashtune.recipe import EngineSection
    from nashtune.records import Message
    from nashtune.store.ledger import Caps, Ledger

    engine = {"base_url": f"http://127.0.0.1:{port}/v1", "model": "m", "concurrency": IN_FLIGHT}
    section = EngineSection.model_validate(engine | {"price": {"input": 2.5, "output": 10}})
    requests = [
        ChatRequest((Message("user", f"{number} " + "word " * WORDS_A_PROMPT),), 0.0, 16) for number in range(calls)
    ]

    async def run(ledger: Ledger) -> tuple[float, float]:
        dispatcher = Dispatcher(section, ledger, Payer("bench", 1, Caps(run=1e6, iteration=1e6)))
        await dispatcher.call(ChatRequest((Message("user", "first"),), 0.0, 16))  # connections and imports
        wall, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(dispatcher.call(request) for request in requests))
        await dispatcher.aclose()
        return time.perf_counter() - wall, time.process_time() - cpu

    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "ledger.sqlite") as ledger:
        wall, cpu = asyncio.run(run(ledger))
        done = ledger.totals("bench")["done"]
    return {
        "calls": calls,
        "done": done - 1,
        "calls_per_second": round(calls / wall, 1),
        "cpu_ms_per_call": round(1000 * cpu / calls, 2),
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--calls", type=int, default=3000)
    options = parser.parse_args()
    if options.part == "serve":
        asyncio.run(serve())
        return
    process = subprocess.Popen([sys.executable, __file__, "--part", "serve"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = measure(int(process.stdout.readline()), options.calls)
    finally:
        process.kill()
        process.wait()
    if not options.json:
        print(f"{found['calls_per_second']} calls/s, {found['cpu_ms_per_call']} ms of CPU each")
    finish(found, {"calls a second": (found["calls_per_second"], lambda x: x >= 300, "at least 300")}, options.json)


if __name__ == "__main__":
    main()
