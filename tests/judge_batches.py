"""The batch API of the loopback judge: files, batches, result lines, and faults on demand.

``server.batches.script`` names the behaviour of each batch in order of creation, parts joined by "+":

| part | what happens |
| --- | --- |
| polls:N | not over before the Nth look |
| expired:K, cancelled:K, failed:K | over with that status after K lines, the rest in the error file |
| silent | lines not worked out leave no trace in the error file |
| shuffle, twice, stray, broken | lines out of order, each given twice, one of nobody's, one cut in half |
| invalid:MESSAGE | validation fails, nothing is worked out |
| reset, lost | the connection is reset: after the batch was made, before |

``lines`` names that of each line worked out: an error status ("400:MESSAGE", "500", ...), "error", or a reply's behaviour.
``faults``: endpoint (upload, create, list, look, content) -> number of 500s it still gives. ``absent``: no batch API.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections import Counter, deque
from typing import Any, Literal, TypeAlias
from urllib.parse import parse_qs, urlsplit

Answer: TypeAlias = "tuple[int, Any] | Literal['reset'] | None"


class Batches:
    """``made`` holds the batches in order of creation, ``tokens`` prompt and completion tokens billed, ``looks`` all looks."""

    def __init__(self, judge: Any) -> None:
        self.judge = judge
        self.script: deque[str] = deque()
        self.lines: deque[str] = deque()
        self.faults: Counter[str] = Counter()
        self.absent = False
        self.page = 100
        self.files: dict[str, bytes] = {}
        self.made: dict[str, dict[str, Any]] = {}
        self.behaviours: dict[str, dict[str, str]] = {}
        self.tokens = [0, 0]
        self.looks = 0
        self.bought: Counter[str] = Counter()
        self._numbers = itertools.count(1)

    def stats(self) -> dict[str, Any]:
        sizes = [batch["request_counts"]["total"] for batch in self.made.values()]
        return {"batches": sizes, "tokens": self.tokens, "looks": self.looks}

    def handle(self, method: str, path: str, data: bytes) -> Answer:
        """What to answer, None where the request is no business of the batch API."""
        url = urlsplit(path)
        parts = url.path.removeprefix("/v1/").split("/")
        if parts[0] not in ("files", "batches"):
            return None
        if self.absent:
            return 404, {"error": {"message": "Not Found"}}
        with self.judge.lock:
            return self._answer(method, parts, {k: v[0] for k, v in parse_qs(url.query).items()}, data)

    def _answer(self, method: str, parts: list[str], query: dict[str, str], data: bytes) -> Answer:
        names = {("POST", "files", 1): "upload", ("GET", "files", 3): "content", ("POST", "batches", 1): "create"}
        names |= {("GET", "batches", 1): "list", ("GET", "batches", 2): "look", ("POST", "batches", 3): "cancel"}
        what = names[method, parts[0], len(parts)]
        if self.faults[what] > 0:
            self.faults[what] -= 1
            return 500, {"error": {"message": f"{what} is down"}}
        if len(parts) > 1 and parts[1] not in (self.files if parts[0] == "files" else self.made):
            return 404, {"error": {"message": f"No such object: {parts[1]}"}}
        if what == "upload":
            return 200, {"id": self._file(_part(data, "file")), "object": "file", "purpose": "batch"}
        if what == "content":
            return 200, self.files[parts[1]].decode()
        if what == "create":
            return self._create(json.loads(data))
        if what == "list":
            return self._list(query)
        if what == "cancel":
            self.behaviours[parts[1]]["cancelled"] = "0"
        return 200, self._look(parts[1])

    def _file(self, data: bytes) -> str:
        name = f"file-{next(self._numbers)}"
        self.files[name] = data
        return name

    def _create(self, asked: dict[str, Any]) -> Answer:
        script = self.script.popleft() if self.script else ""
        behaviour = {name: value for name, _, value in (part.partition(":") for part in script.split("+"))}
        if "lost" in behaviour:
            return "reset"
        total = len(self.files[asked["input_file_id"]].splitlines())
        counts = {"total": total, "completed": 0, "failed": 0}
        fixed = {"object": "batch", "created_at": 1, "status": "validating", "request_counts": counts}
        batch = {"id": f"batch-{next(self._numbers)}", **fixed, **asked}
        self.made[batch["id"]], self.behaviours[batch["id"]] = batch, behaviour
        return "reset" if "reset" in behaviour else (200, batch)

    def _list(self, query: dict[str, str]) -> Answer:
        newest_first = list(reversed(self.made.values()))
        ids = [batch["id"] for batch in newest_first]
        start = ids.index(query["after"]) + 1 if "after" in query else 0
        end = start + min(self.page, int(query.get("limit", 20)))
        return 200, {"object": "list", "data": newest_first[start:end], "has_more": end < len(ids)}

    def _look(self, name: str) -> dict[str, Any]:
        batch, behaviour = self.made[name], self.behaviours[name]
        self.looks += 1
        left = int(behaviour.get("polls") or 1) - 1
        behaviour["polls"] = str(max(1, left))
        if batch["status"] not in ("validating", "in_progress") or left > 0:
            return batch
        if "invalid" in behaviour:
            error = {"code": "invalid", "message": behaviour["invalid"], "line": 1}
            batch |= {"status": "failed", "errors": {"object": "list", "data": [error]}}
        else:
            self._work(batch, behaviour)
        return batch

    def _work(self, batch: dict[str, Any], behaviour: dict[str, str]) -> None:
        status = next((s for s in ("expired", "cancelled", "failed") if s in behaviour), "completed")
        asked = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        worked = asked if status == "completed" else asked[: int(behaviour[status])]
        done, failed = [], []
        for line in worked:
            result = self._result(line)
            ok = result["response"] and result["response"]["status_code"] == 200
            (done if ok else failed).append(json.dumps(result))
        if "silent" not in behaviour:
            error = {"code": f"batch_{status}", "message": "This request could not be executed in time."}
            rest = asked[len(worked) :]
            failed += [json.dumps({"custom_id": r["custom_id"], "response": None, "error": error}) for r in rest]
        done = _disturbed(done, behaviour)
        batch["status"] = status
        batch["output_file_id"] = self._file("\n".join(done).encode()) if done else None
        batch["error_file_id"] = self._file("\n".join(failed).encode()) if failed else None

    def _result(self, line: dict[str, Any]) -> dict[str, Any]:
        from judge_server import completion

        behaviour, _, argument = (self.lines.popleft() if self.lines else "ok").partition(":")
        result = {"id": f"line-{next(self._numbers)}", "custom_id": line["custom_id"], "response": None, "error": None}
        self.judge.requests.append(line["body"])
        if behaviour == "error":
            return result | {"error": {"code": "server_error", "message": "the worker died"}}
        if behaviour.isdigit():
            body: dict[str, Any] = {"error": {"message": argument or f"status {behaviour}"}}
            return result | {"response": {"status_code": int(behaviour), "body": body}}
        body = completion(behaviour, line["body"])
        self.judge.billed += 1
        self.bought[line["custom_id"]] += 1
        self.tokens[0] += body["usage"]["prompt_tokens"]
        self.tokens[1] += body["usage"]["completion_tokens"]
        return result | {"response": {"status_code": 200, "body": body}}


def _disturbed(lines: list[str], behaviour: dict[str, str]) -> list[str]:
    if "shuffle" in behaviour:
        random.Random(0).shuffle(lines)
    if "twice" in behaviour:
        lines += [line.replace('"stop"', '"length"') for line in lines]
    if "stray" in behaviour:
        lines.insert(0, lines[0].replace('"custom_id": "', '"custom_id": "x'))
    if "broken" in behaviour:
        lines[-1] = lines[-1][: len(lines[-1]) // 2]
    return lines


def _part(data: bytes, name: str) -> bytes:
    """A field of a multipart form."""
    boundary = data[: data.index(b"\r\n")]
    for piece in data.split(boundary):
        head, _, content = piece.partition(b"\r\n\r\n")
        if re.search(rb'name="%s"' % name.encode(), head):
            return content.removesuffix(b"\r\n")
    raise KeyError(name)
