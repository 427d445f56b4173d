"""How fast one endpoint may be asked: calls in flight, requests and tokens a minute, and pauses the server asks for."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

FIRST_CALLS_AT_ONCE = 4
BACK_OFF_EVERY_S = 1.0
LONG_WAIT_S = 60.0  # a longer one that the server asks for is told: a run that stands still for hours should say why
DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Bucket:
    """``rate`` units a minute, of which up to a minute's worth may be saved up. No limit while ``rate`` is None."""

    rate: float | None
    level: float = 0.0
    at: float = 0.0

    def __post_init__(self) -> None:
        self.level = self.rate or 0.0

    def wait(self, amount: float, now: float) -> float:
        """Seconds until ``amount`` is there; more than a whole bucket waits for a full one."""
        if self.rate is None:
            return 0.0
        self._fill(now)
        short = min(amount, self.rate) - self.level
        return max(0.0, short * 60 / self.rate)

    def take(self, amount: float, now: float) -> None:
        if self.rate is not None:
            self._fill(now)
            self.level -= amount

    def told(self, limit: float | None, remaining: float | None, now: float) -> None:
        """What the server's headers say counts: its limit replaces ours where lower, its remainder caps what is saved."""
        if limit is not None and limit > 0 and (self.rate is None or limit < self.rate):
            if self.rate is None:
                self.level, self.at = limit, now
            self.rate = limit
        if remaining is not None and self.rate is not None:
            self._fill(now)
            self.level = min(self.level, remaining)

    def _fill(self, now: float) -> None:
        assert self.rate is not None
        self.level = min(self.rate, self.level + max(0.0, now - self.at) * self.rate / 60)
        self.at = now


class Pace:
    """Lets calls through one at a time, in order of arrival, as fast as the endpoint takes them.

    Calls in flight start at 4, double with each round of successes until the first sign of congestion (429, 503, a timeout),
    then rise by one a round and halve on each further sign, never above ``most``. ``clock`` is in seconds and must not be
    one that somebody may set back. ``where`` names the endpoint in what is logged.
    """

    def __init__(
        self,
        most: int,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        where: str = "the server",
    ):
        self.most, self._where = most, where
        self.limit = float(min(most, FIRST_CALLS_AT_ONCE))
        self.in_flight = 0
        self.requests, self.tokens = Bucket(requests_per_minute), Bucket(tokens_per_minute)
        self._clock, self._sleep = clock, sleep
        self._not_before = 0.0
        self._starting, self._backed_off = True, -math.inf
        self._gate = asyncio.Lock()
        self._room = asyncio.Event()

    @asynccontextmanager
    async def slot(self, tokens: float) -> AsyncIterator[None]:
        """A place in flight for one attempt of at most about ``tokens`` tokens."""
        async with self._gate:
            while self.in_flight >= int(self.limit):
                self._room.clear()
                await self._room.wait()
            while (wait := self._wait(tokens)) > 0:
                await self._sleep(wait)
            now = self._clock()
            self.requests.take(1, now)
            self.tokens.take(tokens, now)
            self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1
            self._room.set()

    def _wait(self, tokens: float) -> float:
        now = self._clock()
        return max(self._not_before - now, self.requests.wait(1, now), self.tokens.wait(tokens, now))

    def pause(self, seconds: float) -> None:
        """No call before ``seconds`` have passed, however many: the server asked."""
        now = self._clock()
        more = now + seconds - max(now, self._not_before)
        self._not_before = max(self._not_before, now + seconds)
        if more >= LONG_WAIT_S:
            log.warning(
                "%s asks for a pause of %s; no call is sent until then", self._where, f"{seconds / 60:,.0f} minutes"
            )

    def went_well(self) -> None:
        self.limit = min(float(self.most), self.limit + (1.0 if self._starting else 1.0 / self.limit))
        self._room.set()

    def congested(self) -> None:
        """A sign that it was too fast; several at about the same time are one."""
        self._starting = False
        now = self._clock()
        if now - self._backed_off >= BACK_OFF_EVERY_S:
            self._backed_off = now
            self.limit = max(1.0, self.limit / 2)

    def read(self, headers: Mapping[str, str]) -> None:
        """Learn from OpenAI's rate-limit headers, where the server sends them."""
        now = self._clock()
        for name, bucket in (("requests", self.requests), ("tokens", self.tokens)):
            limit, remaining = (_number(headers.get(f"x-ratelimit-{what}-{name}")) for what in ("limit", "remaining"))
            if limit is None and remaining is None:
                continue
            bucket.told(limit, remaining, now)
            reset = duration(headers.get(f"x-ratelimit-reset-{name}"))
            if remaining is not None and remaining < 1 and reset:
                self.pause(reset)


def duration(text: str | None) -> float | None:
    """Seconds in a reset header: "1s", "6m0s", "120ms", or a plain number; None where it is none of these."""
    if not text:
        return None
    if (plain := _number(text)) is not None:
        return plain
    parts = DURATION.findall(text)
    return sum(float(n) * UNITS[unit] for n, unit in parts) if "".join(n + u for n, u in parts) == text else None


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
