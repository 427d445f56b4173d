"""Paid calls: chat completions over the OpenAI protocol, through the ledger, within budget, at the pace the server takes.

Every attempt is committed to the ledger, with its worst-case cost, before it is sent, and every reply before it is parsed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import openai

from nashtune.errors import BudgetError, OracleError
from nashtune.judging import faults
from nashtune.judging.chat import ChatRequest, Reply, call_key, parse_reply, summary
from nashtune.judging.endpoint import Endpoint
from nashtune.judging.faults import CallRefusedError, TransientFault
from nashtune.judging.pace import Pace
from nashtune.judging.prices import Price, find_price
from nashtune.recipe import EngineSection
from nashtune.store.ledger import NO_CAPS, Caps, Ledger, Terms

RAW_RESPONSE = {"X-Stainless-Raw-Response": "raw"}  # the SDK's own way to say: do not parse
BYTES_PER_TOKEN = 3.0
"""About, for rate limits; for budgets every byte counts as a token, which is the most there can be."""


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
    none recorded. ``clock`` (seconds), ``sleep`` and ``rng`` are for tests.
    """

    def __init__(
        self,
        engine: EngineSection,
        ledger: Ledger | None = None,
        payer: Payer | None = None,
        *,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self.engine = engine
        self.price: Price = find_price(engine)
        self.payer = payer or Payer()
        self._endpoint = Endpoint(engine)
        self._url = self._endpoint.url
        self._ledger = ledger
        self._clock, self._sleep, self._rng = clock or time.time, sleep, rng or random.Random()
        self._ticks = clock or time.monotonic  # a pause must not grow where the machine's clock is set back
        self._loops: dict[asyncio.AbstractEventLoop, _LoopState] = {}
        self._limit_field = "max_tokens" if engine.token_limit == "auto" else engine.token_limit
        self._model_returned: str | None = None

    def key(self, request: ChatRequest) -> str:
        """SHA-256 of everything that decides the answer; the credentials and the neutral settings do not."""
        return call_key(self._url, self.engine.model, request)

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
                state.broken = error if error.status in faults.REFUSED_TO_ALL else state.broken
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
            await self._sleep(wait + faults.backoff(tries, self._rng))
        raise OracleError(f"{self._url}: the ledger's reply to call {key} is unreadable")

    async def _open(self, state: _LoopState, ledger: Ledger, key: str, request: ChatRequest) -> int | None:
        """Reserve and record an attempt; where the budget is all reserved, wait for what calls in flight leave of theirs."""
        terms = self.terms(request)
        while True:
            state.room.clear()
            try:
                attempt = await asyncio.wrap_future(
                    ledger.open_attempt(key, summary(self._url, self.engine.model, request), terms, self.payer.caps)
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
        raw = self._endpoint.redact(response.text)
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

    def _faults_named(self, timeout_s: float, limit_field: str) -> AbstractAsyncContextManager[None]:
        """What goes wrong with the SDK inside, within ``timeout_s``, as a TransientFault or a CallRefusedError."""

        def of_status(error: openai.APIStatusError) -> TransientFault | CallRefusedError:
            wait = faults.retry_after(error.response.headers.get("retry-after"), self._clock())
            return self._status_error(error.status_code, faults.server_message(error), limit_field, wait)

        return faults.named(timeout_s, self._endpoint.redact, of_status)

    def _status_error(
        self, status: int, message: str, limit_field: str, wait: float | None = None
    ) -> TransientFault | CallRefusedError:
        """What an error status means for a request sent with ``limit_field``; ``wait`` as in TransientFault."""
        message = self._endpoint.redact(message)
        reason = f"status {status}: {message}"
        if status in (400, 422) and self._takes_other_limit(message, limit_field):
            return TransientFault(reason, unbilled=True)
        if (fault := faults.transient_status(status, message, wait)) is not None:
            return fault
        where = f"{self._url}: model {self.engine.model!r}: {reason}"
        if status in (401, 403):
            where += f" (key from {self._endpoint.key_source()})"
        return CallRefusedError(where, status, message)

    def _takes_other_limit(self, message: str, sent: str) -> bool:
        """Newer models of some servers know the length limit by another name only, and say so; to every request that was
        under way with the old name."""
        if self.engine.token_limit == "auto" and sent == "max_tokens" and "max_completion_tokens" in message:
            self._limit_field = "max_completion_tokens"
            return True
        return False

    def _loop_state(self) -> _LoopState:
        loop = asyncio.get_running_loop()
        if loop not in self._loops:
            self._loops = {known: state for known, state in self._loops.items() if not known.is_closed()}
            pace = Pace(
                self.engine.concurrency,
                self.engine.requests_per_minute,
                self.engine.tokens_per_minute,
                clock=self._ticks,
                sleep=self._sleep,
                where=self._url,
            )
            self._loops[loop] = _LoopState(self._endpoint.client(), pace, WeakValueDictionary())
        return self._loops[loop]
