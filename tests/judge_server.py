"""A loopback server that speaks the OpenAI chat-completions protocol, with faults on demand.

As a judge (a prompt of the rubric oracle) it scores each answer by its number of words; to any other messages it
answers a deterministic sentence. A script names one behaviour per request, in order of arrival; after its end all is "ok".
Its batch API and its faults are in judge_batches.py.

In a test: ``with JudgeServer(["429:2", "prose"]) as server: ... server.url, server.stats()``.
As a process: ``python tests/judge_server.py --port 0 --port-file FILE [--script 429:2,prose] [--require-key KEY]``;
GET /stats counts, POST /script {"script": [...]} appends.

| behaviour | reply |
| --- | --- |
| ok, fence, prose | proper grades: bare, in a code fence, with text around |
| missing, extra, range, half, text, twice, other | one missing, one too many, 9, 3.5, "4", given twice, other keys |
| truncated, garbage, refusal | content cut (finish "length"), no JSON, a refusal |
| first, vary | compares in favour of the answer shown first; scores that differ from choice to choice |
| nologprobs, one | leaves out log-probs that were asked for; gives one choice whatever n |
| usage:JSON, model:NAME | a reply with that usage, from that model |
| emoji | the content ends in half an emoji, as JSON can spell it |
| says:TEXT | that text |
| leak | an ordinary reply that repeats the key it got |
| body | status 200 with half a body in JSON |
| 400:MESSAGE, 401, 404, 408, 429[:RETRY-AFTER], 500, 503 | that status; 401 repeats the key it got |
| reset | the connection is reset after the work was done |
| slow | an ordinary reply after 0.2 s |
| hang | no answer until the server is closed |
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import random
import re
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from judge_batches import Batches

MARK = re.compile(r"Every line that carries the mark ([0-9a-f]{16})")
WORDS = "clear short answer with one good reason and a small example that helps the reader see the point".split()  # noqa: SIM905


def score(text: str) -> int:
    """Grade of an answer: one more point for every 5 words, 1 to 6."""
    return min(6, 1 + len(text.split()) // 5)


def answers_in(message: str) -> list[str] | None:
    """The candidates shown to the judge, None where the message is not the rubric oracle's."""
    if (found := MARK.search(message)) is None:
        return None
    mark = found[1]
    return [
        match[2]
        for match in re.finditer(
            rf"----- {mark} ANSWER (\d+) -----\n(.*?)\n----- {mark} END OF ANSWER \1 -----", message, re.DOTALL
        )
    ]


class JudgeServer:
    """Runs in a thread on 127.0.0.1; ``requests`` keeps the bodies received, ``billed`` counts answers worked out."""

    def __init__(
        self,
        script: Sequence[str] = (),
        *,
        port: int = 0,
        require_key: str = "",
        refused_formats: Sequence[str] = (),
    ) -> None:
        self.script = deque(script)
        self.require_key = require_key
        self.refused_formats = frozenset(refused_formats)
        self.requests: list[dict[str, Any]] = []
        self.billed = 0
        self.most_at_once = 0
        self.at_once = 0
        self.batches = Batches(self)
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.hanging = threading.Event()
        handler = type("BoundHandler", (_Handler,), {"judge": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()

    def stats(self) -> dict[str, Any]:
        return {
            "requests": len(self.requests),
            "billed": self.billed,
            **self.batches.stats(),
            "most_at_once": self.most_at_once,
        }


class _Handler(BaseHTTPRequestHandler):
    judge: JudgeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None: ...

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # clients that were killed, or gave up
            super().handle()

    def do_GET(self) -> None:
        if not self._batch_api(b""):
            self._send(200, self.judge.stats())

    def _batch_api(self, data: bytes) -> bool:
        """Whether the request was the batch API's, and has been answered."""
        answer = self.judge.batches.handle(self.command, self.path, data)
        if answer == "reset":
            self._reset()
        elif answer is not None:
            self._send(*answer)
        return answer is not None

    def do_POST(self) -> None:
        judge = self.judge
        length = int(self.headers.get("Content-Length", 0))
        data = self.rfile.read(length)
        if len(data) < length:  # the client was killed while it sent
            self.close_connection = True
            return None
        if self._batch_api(data):
            return None
        body = json.loads(data)
        if self.path == "/script":
            judge.script.extend(body["script"])
            return self._send(200, {})
        with judge.lock:
            judge.requests.append(body)
            judge.at_once += 1
            judge.most_at_once = max(judge.most_at_once, judge.at_once)
            behaviour, _, argument = (judge.script.popleft() if judge.script else "ok").partition(":")
        try:
            self._behave(behaviour, argument, body)
        finally:
            with judge.lock:
                judge.at_once -= 1

    def _behave(self, behaviour: str, argument: str, body: dict[str, Any]) -> None:
        judge, key = self.judge, self.headers.get("Authorization", "").removeprefix("Bearer ")
        if behaviour == "401" or (judge.require_key and key != judge.require_key):
            return self._send(401, {"error": {"message": f"Incorrect API key provided: {key}"}})
        asked = (body.get("response_format") or {}).get("type", "")
        if asked in judge.refused_formats:
            return self._send(400, {"error": {"message": f"response_format.type {asked} is not supported"}})
        if behaviour.isdigit():
            headers = {"Retry-After": argument} if argument and behaviour != "400" else {}
            return self._send(int(behaviour), {"error": {"message": argument or f"status {behaviour}"}}, headers)
        with judge.lock:
            judge.billed += 1
        if behaviour == "slow":
            time.sleep(0.2)
        if behaviour == "hang":
            judge.hanging.set()
            judge.closing.wait()
        if behaviour in ("hang", "reset"):
            return self._reset()
        odd = {"leak": {"debug": key}, "model": {"model": argument}}.get(behaviour, {})
        odd |= {"usage": json.loads(argument)} if behaviour == "usage" else {}
        answer = completion(behaviour, body)
        if behaviour == "says":
            answer["choices"][0]["message"]["content"] = argument
        reply = json.dumps(answer | odd)
        return self._send(200, reply[: len(reply) // 2] if behaviour == "body" else reply)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _send(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(data), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)


def completion(behaviour: str, body: dict[str, Any]) -> dict[str, Any]:
    messages = body["messages"]
    asked = messages[0]["content"]
    answers = answers_in(asked)
    if answers is None and body.get("max_tokens") == 1 and body.get("top_logprobs"):
        content = "mM"[share_of_m(messages) < 0.5]
    elif answers is None and any("[[rating]]" in message["content"] for message in messages):
        content = f"Rating: [[{1 + round(9 * share_of_m(messages))}]]"
    elif answers is None:
        content = _sentence(body)
    elif "Reply with one character" in asked:
        content = "1" if behaviour == "first" or score(answers[0]) > score(answers[1]) else "2"
    elif '{"scores": [' in asked:
        content = json.dumps({"scores": [9 if behaviour == "range" else score(text) for text in answers]})
    else:
        content = _grades(behaviour, answers)
    finish, refusal = "stop", None
    if behaviour == "emoji":
        content += "\ud83d"
    if behaviour == "truncated":
        content, finish = content[: len(content) * 2 // 3], "length"
    if behaviour == "refusal":
        content, refusal = None, "I cannot help with that."
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"] + "-0001",
        "choices": [
            {
                "index": i,
                "message": {"role": "assistant", "content": _varied(content, i, behaviour), "refusal": refusal},
                "finish_reason": finish,
                "logprobs": _logprobs(content or "", messages)
                if body.get("logprobs") and behaviour != "nologprobs"
                else None,
            }
            for i in range(1 if behaviour == "one" else body.get("n", 1))
        ],
        "usage": {
            "prompt_tokens": sum(len(m["content"].split()) for m in messages),
            "completion_tokens": len((content or refusal or "").split()),
        },
    }


def _varied(content: str | None, index: int, behaviour: str) -> str | None:
    """Every score of an odd choice one lower, as a judge that samples would waver."""
    if content is None or behaviour != "vary" or index % 2 == 0:
        return content
    return re.sub(r"[1-6]", lambda digit: str(int(digit[0]) - 1), content)


def share_of_m(messages: list[dict[str, str]]) -> float:
    """P("m") against "M", of a judge that is asked for one letter: from 0 to 1, by the text alone."""
    return hashlib.sha256(json.dumps(messages).encode()).digest()[0] / 255


def _logprobs(content: str, messages: list[dict[str, str]]) -> dict[str, Any]:
    """A token for each word piece; a digit has 0.75 on itself and 0.25 on the digit below (or the other verdict). One letter:
    "m" and "M" have 0.9 between them, by ``share_of_m``; a share of 0 is not among the most probable."""
    places = []
    if content in ("m", "M"):
        share = share_of_m(messages)
        masses = {"m": 0.9 * share, "M": 0.9 * (1 - share), "The": 0.1}
        top = [{"token": token, "logprob": math.log(mass)} for token, mass in masses.items() if mass]
        return {"content": [{"token": content, "logprob": math.log(masses[content]), "top_logprobs": top}]}
    for token in re.findall(r"\d|[^\d]+", content):
        top = [{"token": token, "logprob": 0.0}]
        if token.isdigit():
            other = {"1": "2", "2": "1"}[token] if content in ("1", "2") else str(max(0, int(token) - 1))
            top = [{"token": token, "logprob": math.log(0.75)}, {"token": other, "logprob": math.log(0.25)}]
        places.append({"token": token, "logprob": top[0]["logprob"], "top_logprobs": top})
    return {"content": places}


def _grades(behaviour: str, answers: list[str]) -> str:
    grades: dict[str, Any] = {}
    for n, text in enumerate(answers, 1):
        grades[f"id{n}_justification"] = f"It has {len(text.split())} words."
        grades[f"id{n}_score"] = score(text)
    last = f"id{len(answers)}_score"
    odd = {"range": {last: 9}, "half": {last: 3.5}, "text": {last: "4"}, "extra": {f"id{len(answers) + 1}_score": 6}}
    grades |= odd.get(behaviour, {})
    if behaviour == "missing":
        del grades[last]
    if behaviour == "other":
        grades = {"grades": list(grades.values())}
    content = json.dumps(grades, indent=1)
    around = {
        "fence": f"```json\n{content}\n```",
        "prose": f"I weighed the set {{a, b}} of answers.\n\n{content}\n\nI hope this helps {{you}}.",
        "twice": content.replace("{", '{"id1_score": 6, ', 1),
        "garbage": "All of them are fine.",
    }
    return around.get(behaviour, content)


def _sentence(body: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps([body["messages"], body.get("seed")]).encode()).digest()
    rng = random.Random(digest)
    most = body.get("max_tokens") or body["max_completion_tokens"]
    words = [rng.choice(WORDS) for _ in range(min(rng.randint(4, 30), most))]
    return (" ".join(words) + ".").capitalize()


def main() -> None:
    parser = argparse.ArgumentParser(description="Loopback judge with faults on demand.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--port-file", help="where to write the port, once the server listens")
    parser.add_argument("--script", default="", help="behaviours separated by commas")
    parser.add_argument("--require-key", default="")
    parser.add_argument("--refused-formats", default="", help="response_format types answered with 400, by commas")
    args = parser.parse_args()
    split = [[word for word in text.split(",") if word] for text in (args.script, args.refused_formats)]
    with JudgeServer(split[0], port=args.port, require_key=args.require_key, refused_formats=split[1]) as server:
        if args.port_file:
            with open(args.port_file + ".new", "w") as file:
                file.write(str(server.port))
            os.replace(args.port_file + ".new", args.port_file)
        print(server.url, flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
