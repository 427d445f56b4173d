"""Paid calls: chat completions over the OpenAI protocol, through the ledger, within budget, at the pace the server takes.

Every attempt is committed to the ledger, with its worst-case cost, before it is sent, and every reply before it is parsed.
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
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

import openai

from nashtune.errors import BudgetError, OracleError
from nashtune.judging.pace import Pace
from nashtune.judging.prices import Price, find_price
from nashtune.recipe import EngineSection
from nashtune.records import Message
from nashtune.seeds import content_hash
from nashtune.store.ledger import NO_CAPS, Caps, Ledger, Terms

FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 60.0
SHORTEST_SECRET = 16  # characters; a shorter key ("none", "EMPTY") is no secret and may be an ordinary word
RETRIED_STATUS = frozenset({408, 409, 429})  # and every 5xx
REFUSED_TO_ALL = frozenset({401, 403, 404})  # for the key or the model, not for the request
CONGESTED_STATUS = frozenset({408, 429, 502, 503, 504, 529})
UNBILLED_STATUS = frozenset({409, 429, 500, 503})  # the server says that it did not answer; others may hide a bill
RAW_RESPONSE = {"X-Stainless-Raw-Response": "raw"}  # the SDK's own way to say: do not parse
BYTES_PER_TOKEN = (
    3.0  # about, for rate limits; for budgets every byte counts as a token, which is the most there can be
)
TOKENS_PER_MESSAGE = 16  # roles and separators of a chat template


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One chat completion. Every field decides the answer and so is part of the call's key.

    ``replicate`` tells apart calls that are alike on purpose (several votes of one judge); it is not sent.
    ``temperature`` None leaves the choice to the server (reasoning models take no other). ``top_logprobs`` asks for the
    log-probs of that many most probable tokens at each place.
    """

    messages: tuple[Message, ...]
    temperature: float | None
    max_tokens: int
    top_p: float = 1.0
    n: int = 1
    seed: int | None = None
    response_format: Mapping[str, Any] | None = None
    top_logprobs: int | None = None
    replicate: int = 0

    def body(self, limit_field: str = "max_tokens") -> dict[str, Any]:
        """The JSON to send, less the model. Protocol defaults are left out, as not every server knows every field."""
        body: dict[str, Any] = {
            "messages": [{"role": m.role, "content": m.content} for m in self.messages],
            limit_field: self.max_tokens,
        }
        optional = {"temperature": (self.temperature, None), "top_p": (self.top_p, 1.0), "n": (self.n, 1)}
        optional |= {"seed": (self.seed, None), "response_format": (self.response_format, None)}
        body |= {name: value for name, (value, default) in optional.items() if value != default}
        return body if self.top_logprobs is None else body | {"logprobs": True, "top_logprobs": self.top_logprobs}

    @property
    def prompt_bytes(self) -> int:
        return sum(len(m.content.encode()) + TOKENS_PER_MESSAGE for m in self.messages)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a reply's n answers. ``finish_reason`` is the server's word ("stop", "length", "content_filter", ...)."""

    text: str
    finish_reason: str
    refusal: str = ""
    tokens: tuple[str, ...] = ()
    """The reply's tokens, where log-probs were asked for and given."""
    top_logprobs: tuple[Mapping[str, float], ...] = ()
    """At each token: most probable token -> its log-prob in nats."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A parsed reply. ``choices`` has at least one entry, and fewer than n where the server ignores n."""

    choices: tuple[Choice, ...]
    model_returned: str
    prompt_tokens: int
    completion_tokens: int
    from_ledger: bool
    cached_tokens: int = 0
    """Of the prompt tokens, those the server had in its prefix cache."""
    cost_usd: float = 0.0

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


class TransientFault(Exception):
    """An attempt that failed in a way worth another. ``retry_after`` in seconds, where the server named a time;
    ``unbilled``: it is certain that it cost nothing."""

    def __init__(
        self, reason: str, retry_after: float | None = None, *, congested: bool = False, unbilled: bool = False
    ) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.congested = congested
        self.unbilled = unbilled


@dataclass(frozen=True, slots=True)
class Payer:
    """The run and iteration that calls are booked on, and its caps."""

    run: str = ""
    iteration: int = 0
    caps: Caps = NO_CAPS


@dataclass(slots=True)
class _LoopState:
    """What belongs to the event loop that made it: connections, the pace, a lock per key being bought, and the calls whose
    reservations may still give room in the budget."""

    client: openai.AsyncOpenAI
    pace: Pace
    keys: WeakValueDictionary[str, asyncio.Lock]
    broken: OracleError | BudgetError | None = None
    """What made one call fail for good in a way that would make all fail; no further one is sent."""
    reserved: int = 0
    room: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)


class Dispatcher:
    """Sends chat completions to one server.

    Timeouts, lost connections, 408, 409, 429 and 5xx are tried again, up to ``engine.max_attempts`` tries, after an
    exponential back-off with full jitter (uniform over [0, min(60, 0.5 * 2**i)] seconds). What Retry-After asks for, however
    long, holds back every call to the server. May be used from several event loops. Without a ledger every call is sent and
    none recorded. ``clock`` (Unix seconds), ``sleep`` and ``rng`` are for tests.
    """

    def __init__(
        self,
        engine: EngineSection,
        ledger: Ledger | None = None,
        payer: Payer | None = None,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self.engine = engine
        self.price: Price = find_price(engine)
        self.payer = payer or Payer()
        self._url, self._loopback = _public_url(engine.base_url)
        self._ledger = ledger
        self._clock, self._sleep, self._rng = clock, sleep, rng or random.Random()
        self._api_key = self._read_api_key()
        self._loops: dict[asyncio.AbstractEventLoop, _LoopState] = {}
        self._limit_field = "max_tokens" if engine.token_limit == "auto" else engine.token_limit
        self._model_returned: str | None = None

    def key(self, request: ChatRequest) -> str:
        """SHA-256 of everything that decides the answer; the credentials and the neutral settings do not."""
        return content_hash("chat.completions", self._url, self.engine.model, dataclasses.asdict(request), length=64)

    def stored(self, request: ChatRequest) -> Reply | None:
        """The reply already bought for ``request``, None where it has to be bought."""
        return None if self._ledger is None else self._stored(self._ledger, self.key(request))

    def _stored(self, ledger: Ledger, key: str) -> Reply | None:
        found = ledger.get(key)
        if found is None:
            return None
        try:
            reply = self._read(found.raw, found.spent, from_ledger=True)
        except TransientFault as fault:  # received just before the process died, and unreadable
            ledger.failed(key, found.attempt, str(fault))
            return None
        self._check_model(reply)
        return reply

    async def call(self, request: ChatRequest) -> Reply:
        """The reply to ``request``, from the ledger where it was bought before.

        Raises CallRefusedError at once for a request or key the server refuses, BudgetError where its worst case would go
        over a cap, and OracleError after max_attempts or where the server answers with another model than before.
        """
        state = self._loop_state()
        if self._ledger is None:
            return await self._buy(state, None, "", request)
        key = self.key(request)
        async with state.keys.setdefault(key, asyncio.Lock()):  # equal calls at the same time buy one reply
            if (reply := self._stored(self._ledger, key)) is not None:
                return reply
            try:
                return await self._buy(state, self._ledger, key, request)
            except CallRefusedError as error:
                state.broken = error if error.status in REFUSED_TO_ALL else state.broken
                raise
            except (OracleError, BudgetError) as error:
                state.broken = error
                raise

    async def aclose(self) -> None:
        """Close the connections of the running loop; a later call opens new ones."""
        if state := self._loops.pop(asyncio.get_running_loop(), None):
            await state.client.close()

    async def _buy(self, state: _LoopState, ledger: Ledger | None, key: str, request: ChatRequest) -> Reply:
        tokens = request.prompt_bytes / BYTES_PER_TOKEN + request.n * request.max_tokens
        wait = 0.0
        for tries in range(1, self.engine.max_attempts + 1):
            async with state.pace.slot(tokens):
                if state.broken is not None:
                    raise state.broken
                attempt = None if ledger is None else await self._open(state, ledger, key, request)
                if ledger is not None and attempt is None:  # another process bought it meanwhile
                    if (reply := self._stored(ledger, key)) is not None:
                        return reply
                    continue
                try:
                    return await self._attempt(state, ledger, key, attempt or 0, request)
                except TransientFault as fault:
                    if tries == self.engine.max_attempts:
                        raise OracleError(
                            f"{self._url}: model {self.engine.model!r} did not answer in {tries} attempts "
                            f"(engine.max_attempts); the last one: {fault}"
                        ) from None
                    wait = fault.retry_after or 0.0
                    state.pace.pause(wait)
                finally:
                    state.reserved -= ledger is not None
                    state.room.set()
            await self._sleep(wait + self._backoff(tries))
        raise OracleError(f"{self._url}: the ledger's reply to call {key} is unreadable")

    async def _open(self, state: _LoopState, ledger: Ledger, key: str, request: ChatRequest) -> int | None:
        """Reserve and record an attempt; where the budget is all reserved, wait for what calls in flight leave of theirs."""
        terms = self.terms(request)
        while True:
            state.room.clear()
            try:
                attempt = await asyncio.wrap_future(
                    ledger.open_attempt(key, self._summary(request), terms, self.payer.caps)
                )
            except BudgetError:
                if not state.reserved:
                    raise
                await state.room.wait()
                continue
            state.reserved += attempt is not None
            return attempt

    async def _attempt(
        self, state: _LoopState, ledger: Ledger | None, key: str, attempt: int, request: ChatRequest
    ) -> Reply:
        """Send once; whatever comes of it is in the ledger before anything else happens."""

        async def close(**what: Any) -> float | None:
            if ledger is None:
                return None
            # Shielded: a reply that is there is kept, whatever becomes of the task that asked for it.
            return await asyncio.shield(asyncio.wrap_future(ledger.close_attempt(key, attempt, **what)))

        try:
            response = await self._post(state.client, request)
        except CallRefusedError as error:
            await close(reason=str(error), unbilled=True)
            raise
        except TransientFault as fault:
            await close(reason=str(fault), unbilled=fault.unbilled)
            if fault.congested:
                state.pace.congested()
            raise
        except asyncio.CancelledError:
            if ledger is not None:  # not awaited: this task has no more turns
                ledger.close_attempt(key, attempt, reason="cancelled in flight; it may have been billed")
            raise
        raw = self._redact(response.text)
        spent = await close(raw=raw)
        state.pace.read(response.headers)
        try:
            reply = self._read(raw, spent, from_ledger=False)
        except TransientFault as fault:
            await close(reason=str(fault))
            raise
        state.pace.went_well()
        self._check_model(reply)
        return reply

    def terms(self, request: ChatRequest) -> Terms:
        """Who pays for ``request``, at which prices, and its cost at worst: every byte a token, every answer full length."""
        worst = self.price.cost(request.prompt_bytes, request.n * request.max_tokens)
        prices = (self.price.input, self.price.cached, self.price.output)
        return Terms(self.payer.run, self.payer.iteration, worst, *prices)

    def _read(self, raw: str, spent: float | None, *, from_ledger: bool) -> Reply:
        """``spent``: dollars as the ledger has them, at the prices it was bought for; None without a ledger."""
        reply = parse_reply(raw, from_ledger=from_ledger)
        if spent is None:
            spent = self.price.cost(reply.prompt_tokens, reply.completion_tokens, reply.cached_tokens)
        return dataclasses.replace(reply, cost_usd=spent)

    def _check_model(self, reply: Reply) -> None:
        """Raises OracleError where the server's model is not the one it was when this run began."""
        found = reply.model_returned
        if (
            self._ledger is None
            or not found
            or found == self._model_returned
            or self.engine.on_model_change == "accept"
        ):
            return
        first = self._ledger.remember(
            f"model returned: {self.payer.run} {self._url} {self.engine.model}", found
        ).result()
        if first != found:
            raise OracleError(
                f"{self._url}: asked for {self.engine.model!r}, the server answered as {first!r} when this run began and as "
                f"{found!r} now; judgments of two models would be mixed. Accepted: the same model, or "
                "`engine.on_model_change: accept`"
            )
        self._model_returned = found

    async def _post(self, client: openai.AsyncOpenAI, request: ChatRequest) -> Any:
        """One POST -> the HTTP response. The SDK's typed method would walk through every field of the body."""
        limit_field = self._limit_field
        async with self._faults_named(self.engine.timeout_s, limit_field):
            body = {"model": self.engine.model, **request.body(limit_field)}
            raw = await client.post("/chat/completions", body=body, cast_to=object, options={"headers": RAW_RESPONSE})
            return raw.http_response  # type: ignore[attr-defined]

    @asynccontextmanager
    async def _faults_named(self, timeout_s: float, limit_field: str) -> AsyncIterator[None]:
        """What goes wrong with the SDK inside, within ``timeout_s``, as a TransientFault or a CallRefusedError."""
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except (TimeoutError, openai.APITimeoutError):
            reason = f"no reply within {timeout_s} s (it may have been billed)"
            raise TransientFault(reason, congested=True) from None
        except openai.APIConnectionError as error:
            refused = (
                type(error.__cause__).__name__ == "ConnectError"
            )  # httpx's or httpx2's, as the SDK's version has it
            reason = self._redact(f"connection failed: {error.__cause__ or error}")
            raise TransientFault(reason, unbilled=refused) from None
        except openai.APIStatusError as error:
            wait = self._retry_after(error.response.headers.get("retry-after"))
            raise self._status_error(error.status_code, _server_message(error), limit_field, wait) from None

    def _status_error(
        self, status: int, message: str, limit_field: str, wait: float | None = None
    ) -> TransientFault | CallRefusedError:
        """What an error status means for a request sent with ``limit_field``; ``wait`` as in TransientFault."""
        message = self._redact(message)
        reason = f"status {status}: {message}"
        if status in (400, 422) and self._takes_other_limit(message, limit_field):
            return TransientFault(reason, unbilled=True)
        if status in RETRIED_STATUS or status >= 500:
            return TransientFault(
                reason, wait, congested=status in CONGESTED_STATUS, unbilled=status in UNBILLED_STATUS
            )
        where = f"{self._url}: model {self.engine.model!r}: {reason}"
        if status in (401, 403):
            where += f" (key from {self._key_source()})"
        return CallRefusedError(where, status, message)

    def _takes_other_limit(self, message: str, sent: str) -> bool:
        """Newer models of some servers know the length limit by another name only, and say so; to every request that was
        under way with the old name."""
        if self.engine.token_limit == "auto" and sent == "max_tokens" and "max_completion_tokens" in message:
            self._limit_field = "max_completion_tokens"
            return True
        return False

    def _backoff(self, tries: int) -> float:
        """Seconds until the next try, after ``tries`` failed ones: full jitter."""
        return self._rng.uniform(0, min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (tries - 1)))

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
            pace = Pace(
                self.engine.concurrency,
                self.engine.requests_per_minute,
                self.engine.tokens_per_minute,
                clock=self._clock,
                sleep=self._sleep,
            )
            self._loops[loop] = _LoopState(client, pace, WeakValueDictionary())
        return self._loops[loop]

    def _read_api_key(self) -> str:
        if self.engine.api_key_file is not None:
            try:
                key = Path(self.engine.api_key_file).expanduser().read_text(encoding="utf-8").strip()
            except OSError as error:
                raise OracleError(f"engine.api_key_file: {self.engine.api_key_file}: {error.strerror}") from None
            if not key:
                raise OracleError(
                    f"engine.api_key_file: {self.engine.api_key_file}: empty; accepted: a file with the key alone"
                )
            return key
        if key := os.environ.get(self.engine.api_key_env, ""):
            return key
        if self._loopback:
            return "none"
        raise OracleError(f"{self._url}: {self._key_source()} is not set; it holds the API key")

    def _key_source(self) -> str:
        file = self.engine.api_key_file
        return (
            f"the file {file} (engine.api_key_file)"
            if file
            else (f"the environment variable {self.engine.api_key_env} (engine.api_key_env)")
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
        cached = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
        model = str(body.get("model") or "")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise TransientFault(f"the reply is not a chat completion: {raw[:200]!r}") from None
    if not choices:
        raise TransientFault(f"the reply has no choices: {raw[:200]!r}")
    return Reply(choices, model, *tokens, from_ledger=from_ledger, cached_tokens=cached)


def _choice(choice: Any) -> Choice:
    message = choice["message"]
    text, refusal, finish = message.get("content"), message.get("refusal"), choice.get("finish_reason")
    if not isinstance(text or "", str) or not isinstance(refusal or "", str):
        raise TypeError("content and refusal are strings or null")
    places = (choice.get("logprobs") or {}).get("content") or ()
    tokens = tuple(str(place["token"]) for place in places)
    top = tuple({str(t["token"]): float(t["logprob"]) for t in place.get("top_logprobs") or ()} for place in places)
    return Choice(text or "", str(finish or ""), refusal or "", tokens, top)


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
