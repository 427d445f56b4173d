"""One server's batch API: files, batches and result lines, with faults tried again and no batch made twice."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import openai
from openai.types import Batch

from nashtune.errors import OracleError
from nashtune.judging.faults import CallRefusedError, TransientFault

URL = "/v1/chat/completions"  # of each line, whatever the server's own address: the protocol says so
FILE_TIMEOUT_S = 900.0  # 100 MB on a slow line
POLL_TRIES = 5
"""Looks at a batch are tried this many times max_attempts: they cost nothing, and a batch takes hours anyway."""
PAGE = 100  # batches listed at once; the most the protocol has
OVER = frozenset({"completed", "expired", "cancelled", "failed"})

T = TypeVar("T")


class NotSubmittedError(OracleError):
    """It is certain that the batch was not made, so its calls cost nothing."""


@dataclass(frozen=True, slots=True)
class Line:
    """What a result file says of one call. ``status`` 200: ``body`` is the chat completion's JSON; any other: ``message``
    says why there is none (0: the request was never run)."""

    key: str
    status: int
    body: str = ""
    message: str = ""


class BatchServer:
    """The endpoints of a batch API behind ``client``.

    ``guard`` (seconds) turns the SDK's exceptions into TransientFault and CallRefusedError; ``pause`` waits after so many
    failed tries, at least so many seconds. Raises OracleError, that begins with ``where``, after ``tries`` transient faults.
    """

    def __init__(
        self,
        client: openai.AsyncOpenAI,
        guard: Callable[[float], AbstractAsyncContextManager[None]],
        pause: Callable[[int, float], Awaitable[None]],
        *,
        where: str,
        tries: int,
        timeout_s: float,
    ) -> None:
        self._client, self._guard, self._pause = client, guard, pause
        self._where, self._tries, self._timeout_s = where, tries, timeout_s

    async def submit(self, data: bytes, tag: str, run: str) -> str:
        """Make a batch of JSON lines -> its id. Raises NotSubmittedError where it is certain that there is none, and
        OracleError where it is not."""
        try:
            file = await self._try("upload", lambda: self._upload(data), FILE_TIMEOUT_S)
        except OracleError as error:
            raise NotSubmittedError(self._explained(error)) from None
        return await self._create(file.id, tag, run)

    async def find(self, tag: str) -> str | None:
        """The id of the batch with this tag, None where the server has none."""
        try:
            return await self._find(tag)
        except CallRefusedError as error:
            raise OracleError(self._explained(error)) from None

    async def _find(self, tag: str) -> str | None:
        page = await self._try("list", self._first_page)
        while True:
            for batch in page.data or ():
                if (batch.metadata or {}).get("nashtune") == tag:
                    return batch.id
            if not page.has_next_page():
                return None
            page = await self._try("list", page.get_next_page)

    async def _first_page(self) -> Any:
        page = await self._client.batches.list(limit=PAGE)
        if not hasattr(page, "has_next_page"):
            raise TransientFault(f"the reply is no list of batches: {str(page)[:200]!r}")
        return page

    async def look(self, batch_id: str) -> Batch:
        """The state of a batch. Raises CallRefusedError with status 404 where the server does not know it."""

        async def retrieve() -> Batch:
            return _with_id(await self._client.batches.retrieve(batch_id))

        return await self._try("look at the batch", retrieve, most=POLL_TRIES * self._tries)

    async def text(self, file_id: str) -> str:
        """A result file."""

        async def download() -> str:
            return (await self._client.files.content(file_id)).content.decode("utf-8", errors="replace")

        try:
            return await self._try("download", download, FILE_TIMEOUT_S, most=POLL_TRIES * self._tries)
        except CallRefusedError as error:
            raise OracleError(f"{error}; it was a result file of a batch") from None

    async def _upload(self, data: bytes) -> Any:
        return _with_id(await self._client.files.create(file=("nashtune.jsonl", data), purpose="batch"))

    async def _create(self, file_id: str, tag: str, run: str) -> str:
        """A batch that was made although its answer got lost is found by its tag: made twice it would be billed twice."""
        last = ""
        for tries in range(1, self._tries + 1):
            try:
                async with self._guard(self._timeout_s):
                    batch = await self._client.batches.create(
                        input_file_id=file_id,
                        endpoint=URL,
                        completion_window="24h",
                        metadata={"nashtune": tag, "run": run},
                    )
                    return _with_id(batch).id
            except CallRefusedError as error:
                raise NotSubmittedError(self._explained(error)) from None
            except TransientFault as fault:
                await self._pause(tries, fault.retry_after or 0.0)
                if (found := await self.find(tag)) is not None:
                    return found
                last = str(fault)
        raise OracleError(f"{self._where}: could not create a batch in {self._tries} attempts; the last one: {last}")

    async def _try(
        self, what: str, ask: Callable[[], Awaitable[T]], timeout_s: float | None = None, most: int | None = None
    ) -> T:
        most = most or self._tries
        for tries in range(1, most + 1):
            try:
                async with self._guard(timeout_s or self._timeout_s):
                    return await ask()
            except TransientFault as fault:
                if tries == most:
                    raise OracleError(f"{self._where}: {what} failed {tries} times; the last time: {fault}") from None
                await self._pause(tries, fault.retry_after or 0.0)
        raise AssertionError("unreachable")

    def _explained(self, error: OracleError) -> str:
        if isinstance(error, CallRefusedError) and error.status in (404, 405, 501):
            return (
                f"{self._where}: engine.batch is true, but the server has no batch API (status {error.status}: "
                f"{error.server_message}). Accepted: `engine.batch: false`, or a server that has one"
            )
        return str(error)


def _with_id(made: Any) -> Any:
    """``made``, where it is what was asked for. A proxy's page with status 200 is a transient fault."""
    if not isinstance(getattr(made, "id", None), str):
        raise TransientFault(f"the reply is not what was asked for: {str(made)[:200]!r}")
    return made


def request_line(key: str, body: dict[str, Any]) -> bytes:
    """One line of a batch's input file."""
    line = {"custom_id": key, "method": "POST", "url": URL, "body": body}
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


def read_line(text: str) -> Line | None:
    """One line of a result file, None where it is unreadable."""
    try:
        line = json.loads(text)
        key, response, error = line["custom_id"], line.get("response"), line.get("error")
        if not isinstance(key, str):
            return None
        if not response:
            error = error or {}
            return Line(key, 0, message=f"{error.get('code') or 'error'}: {error.get('message') or '(no message)'}")
        status, body = int(response["status_code"]), response.get("body")
        if status == 200:
            return Line(key, 200, body=json.dumps(body, ensure_ascii=False))
        return Line(key, status, message=_message(body) or _message(line) or "(no message)")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _message(body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    return str(error.get("message") or "")[:1000] if isinstance(error, dict) else ""
