"""Paid calls: chat completions over the OpenAI protocol, through the ledger, with retries and limited concurrency.

Every attempt is committed to the ledger before it is sent and every reply before it is parsed.
Cost is not computed here.
"""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import json
import math
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

import openai

from nashtune.errors import OracleError
from nashtune.recipe import EngineSection
from nashtune.records import Message
from nashtune.seeds import content_hash
from nashtune.store.ledger import Ledger, StoredReply

FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 60.0
SHORTEST_SECRET = 16  # characters; a shorter key ("none", "EMPTY") is no secret and may be an ordinary word
RETRIED_STATUS = frozenset({408, 409, 429})  # and every 5xx


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One chat completion. Every field decides the answer and so is part of the call's key.

    ``replicate`` tells apart calls that are alike on purpose (several votes of one judge); it is not sent.
    """

    messages: tuple[Message, ...]
    temperature: float
    max_tokens: int
    top_p: float = 1.0
    n: int = 1
    seed: int | None = None
    response_format: Mapping[str, Any] | None = None
    replicate: int = 0

    def body(self) -> dict[str, Any]:
        """The JSON to send, less the model. Protocol defaults are left out, as not every server knows every field."""
        body: dict[str, Any] = {
            "messages": [{"role": m.role, "content": m.content} for m in self.messages],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        optional = {"top_p": (self.top_p, 1.0), "n": (self.n, 1), "seed": (self.seed, None)}
        body |= {name: value for name, (value, default) in optional.items() if value != default}
        return body if self.response_format is None else body | {"response_format": self.response_format}


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a reply's n answers. ``finish_reason`` is the server's word ("stop", "length", "content_filter", ...)."""

    text: str
    finish_reason: str
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """A parsed reply. ``choices`` has at least one entry, and fewer than n where the server ignores n."""

    choices: tuple[Choice, ...]
    model_returned: str
    prompt_tokens: int
    completion_tokens: int
    from_ledger: bool

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def finish_reason(self) -> str:
        return self.choices[0].finish_reason


class CallRefusedError(OracleError):
    """The server will not serve this request however often it is asked (a 4xx status other than 408, 409, 429)."""

    def __init__(self, message: str, status: int, server_message: str) -> None:
        super().__init__(message)
        self.status = status
        self.server_message = server_message


class _TransientFault(Exception):
    """An attempt that failed in a way worth another; ``retry_after`` in seconds, where the server named a time."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class _LoopState:
    """What belongs to the event loop that made it: connections, places in flight, and a lock per key being bought."""

    client: openai.AsyncOpenAI
    places: asyncio.Semaphore
    keys: WeakValueDictionary[str, asyncio.Lock]


class _NoLedger:
    """Stands in where calls are not recorded: every call is sent."""

    def get(self, key: str) -> StoredReply | None:
        return None

    def plan(self, key: str, request: Mapping[str, Any]) -> None: ...

    def begin(self, key: str) -> int | None:
        return 1

    def done(self, key: str, attempt: int, raw: str) -> None: ...

    def failed(self, key: str, attempt: int, reason: str) -> None: ...


class Dispatcher:
    """Sends chat completions to one server.

    Timeouts, lost connections, 408, 409, 429 and 5xx are tried again, up to ``engine.max_attempts`` tries, after an
    exponential back-off with full jitter (uniform over [0, min(60, 0.5 * 2**i)] seconds) on top of what Retry-After
    asks. A call that waits keeps its place among the ``engine.concurrency`` in flight: a server that limits its rate is
    not pressed harder. May be used from several event loops. ``clock`` (Unix seconds), ``sleep`` and ``rng`` are for
    tests.
    """

    def __init__(
        self,
        engine: EngineSection,
        ledger: Ledger | None = None,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self.engine = engine
        self._url, self._loopback = _public_url(engine.base_url)
        self._ledger = ledger if ledger is not None else _NoLedger()
        self._clock, self._sleep, self._rng = clock, sleep, rng or random.Random()
        self._api_key = self._read_api_key()
        self._loops: dict[asyncio.AbstractEventLoop, _LoopState] = {}

    def key(self, request: ChatRequest) -> str:
        """SHA-256 of everything that decides the answer; the credentials and the neutral settings do not."""
        return content_hash("chat.completions", self._url, self.engine.model, dataclasses.asdict(request), length=64)

    def stored(self, request: ChatRequest) -> Reply | None:
        """The reply already bought for ``request``, None where it has to be bought."""
        key = self.key(request)
        found = self._ledger.get(key)
        if found is None:
            return None
        try:
            return parse_reply(found.raw, from_ledger=True)
        except _TransientFault as fault:  # received just before the process died, and unreadable
            self._ledger.failed(key, found.attempt, str(fault))
            return None

    async def call(self, request: ChatRequest) -> Reply:
        """The reply to ``request``, from the ledger where it was bought before.

        Raises CallRefusedError at once for a request or key the server refuses, and OracleError after max_attempts.
        """
        state = self._loop_state()
        key = self.key(request)
        async with state.keys.setdefault(key, asyncio.Lock()):  # equal calls at the same time buy one reply
            if (reply := self.stored(request)) is not None:
                return reply
            self._ledger.plan(key, self._summary(request))
            async with state.places:
                return await self._buy(state.client, key, request)

    async def aclose(self) -> None:
        """Close the connections of the running loop; a later call opens new ones."""
        if state := self._loops.pop(asyncio.get_running_loop(), None):
            await state.client.close()

    async def _buy(self, client: openai.AsyncOpenAI, key: str, request: ChatRequest) -> Reply:
        for tries in range(1, self.engine.max_attempts + 1):
            attempt = self._ledger.begin(key)
            if attempt is None:  # another process bought it meanwhile
                if (reply := self.stored(request)) is not None:
                    return reply
                continue
            try:
                raw = await self._post(client, request)
                self._ledger.done(key, attempt, raw)
                return parse_reply(raw, from_ledger=False)
            except CallRefusedError as error:
                self._ledger.failed(key, attempt, str(error))
                raise
            except _TransientFault as fault:
                self._ledger.failed(key, attempt, str(fault))
                if tries == self.engine.max_attempts:
                    raise OracleError(
                        f"{self._url}: model {self.engine.model!r} did not answer in {tries} attempts "
                        f"(engine.max_attempts); the last one: {fault}"
                    ) from None
                await self._sleep(self._delay(tries, fault.retry_after))
        raise OracleError(f"{self._url}: the ledger's reply to call {key} is unreadable")

    async def _post(self, client: openai.AsyncOpenAI, request: ChatRequest) -> str:
        """One POST; the body received, as text."""
        try:
            async with asyncio.timeout(self.engine.timeout_s):
                response = await client.chat.completions.with_raw_response.create(
                    model=self.engine.model, **request.body()
                )
                return self._redact(response.http_response.text)
        except (TimeoutError, openai.APITimeoutError):
            raise _TransientFault(f"no reply within {self.engine.timeout_s} s (it may have been billed)") from None
        except openai.APIConnectionError as error:
            raise _TransientFault(self._redact(f"connection failed: {error.__cause__ or error}")) from None
        except openai.APIStatusError as error:
            message = self._redact(_server_message(error))
            reason = f"status {error.status_code}: {message}"
            if error.status_code in RETRIED_STATUS or error.status_code >= 500:
                raise _TransientFault(reason, self._retry_after(error.response.headers.get("retry-after"))) from None
            where = f"{self._url}: model {self.engine.model!r}: {reason}"
            if error.status_code in (401, 403):
                where += f" (key from the environment variable {self.engine.api_key_env})"
            raise CallRefusedError(where, error.status_code, message) from None

    def _delay(self, tries: int, retry_after: float | None) -> float:
        """Seconds until the next try, after ``tries`` failed ones."""
        return (retry_after or 0.0) + self._rng.uniform(0, min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (tries - 1)))

    def _retry_after(self, header: str | None) -> float | None:
        """Seconds that a Retry-After header asks for, given as seconds or as an HTTP date; None where it is neither."""
        try:
            seconds = float(header or "nan")
        except ValueError:
            try:
                when = parsedate_to_datetime(header or "")
            except ValueError:
                return None
            seconds = when.replace(tzinfo=when.tzinfo or UTC).timestamp() - self._clock()
        return max(0.0, seconds) if math.isfinite(seconds) else None

    def _loop_state(self) -> _LoopState:
        loop = asyncio.get_running_loop()
        if loop not in self._loops:
            self._loops = {known: state for known, state in self._loops.items() if not known.is_closed()}
            client = openai.AsyncOpenAI(
                api_key=self._api_key,
                base_url=self.engine.base_url,
                max_retries=0,  # a POST that the SDK repeats could be billed twice without the ledger knowing
                timeout=None,  # asyncio.timeout bounds the whole request, the SDK's only the gaps between bytes
                http_client=openai.DefaultAsyncHttpxClient(trust_env=not self._loopback, timeout=None),
            )
            self._loops[loop] = _LoopState(client, asyncio.Semaphore(self.engine.concurrency), WeakValueDictionary())
        return self._loops[loop]

    def _read_api_key(self) -> str:
        name = self.engine.api_key_env
        if key := os.environ.get(name, ""):
            return key
        if self._loopback:
            return "none"
        raise OracleError(
            f"{self._url}: environment variable {name} (engine.api_key_env) is not set; it holds the API key"
        )

    def _redact(self, text: str) -> str:
        """Servers may repeat the key they were given; it must reach neither the ledger nor a message."""
        return text.replace(self._api_key, "[key]") if len(self._api_key) >= SHORTEST_SECRET else text

    def _summary(self, request: ChatRequest) -> dict[str, Any]:
        body = request.body() | {"base_url": self._url, "model": self.engine.model, "replicate": request.replicate}
        body["messages"] = [{"role": m.role, "characters": len(m.content)} for m in request.messages]
        return body


def parse_reply(raw: str, *, from_ledger: bool) -> Reply:
    """Read the body of a chat completion; a body that is none is a transient fault (proxies answer 200 with pages)."""
    try:
        body = json.loads(raw)
        choices = tuple(_choice(c) for c in body["choices"])
        usage = body.get("usage") or {}
        tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        model = str(body.get("model") or "")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise _TransientFault(f"the reply is not a chat completion: {raw[:200]!r}") from None
    if not choices:
        raise _TransientFault(f"the reply has no choices: {raw[:200]!r}")
    return Reply(choices, model, *tokens, from_ledger=from_ledger)


def _choice(choice: Any) -> Choice:
    message = choice["message"]
    text, refusal, finish = message.get("content"), message.get("refusal"), choice.get("finish_reason")
    if not isinstance(text or "", str) or not isinstance(refusal or "", str):
        raise TypeError("content and refusal are strings or null")
    return Choice(text or "", str(finish or ""), refusal or "")


def _server_message(error: openai.APIStatusError) -> str:
    body = error.body
    if isinstance(body, Mapping) and body.get("message"):
        return str(body["message"])[:1000]
    return error.response.text[:1000] or "(no message)"


def _public_url(base_url: str) -> tuple[str, bool]:
    """The address without credentials, query and closing slash; whether it is this machine's. Raises OracleError."""
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise OracleError(f"engine.base_url is {base_url!r}; accepted: an address such as http://127.0.0.1:8000/v1")
    url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
    if parts.hostname == "localhost":
        return url, True
    try:
        return url, ipaddress.ip_address(parts.hostname).is_loopback
    except ValueError:
        return url, False
