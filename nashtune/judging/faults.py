"""What goes wrong with a call: which faults are worth another try, which are for good, and how long to wait."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC
from email.utils import parsedate_to_datetime

import openai

from nashtune.errors import OracleError

FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 60.0
RETRIED_STATUS = frozenset({408, 409, 429})  # and every 5xx
REFUSED_TO_ALL = frozenset({401, 403, 404})  # for the key or the model, not for the request
CONGESTED_STATUS = frozenset({408, 429, 502, 503, 504, 529})
UNBILLED_STATUS = frozenset({409, 429, 500, 503})  # the server says that it did not answer; others may hide a bill


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


@asynccontextmanager
async def named(
    timeout_s: float, redact: Callable[[str], str], of_status: Callable[[openai.APIStatusError], Exception]
) -> AsyncIterator[None]:
    """What goes wrong with the SDK inside, within ``timeout_s``, as a TransientFault, or for an error status as what
    ``of_status`` makes of it."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except (TimeoutError, openai.APITimeoutError):
        reason = f"no reply within {timeout_s} s (it may have been billed)"
        raise TransientFault(reason, congested=True) from None
    except openai.APIConnectionError as error:
        # httpx's or httpx2's, as the SDK's version has it
        refused = type(error.__cause__).__name__ == "ConnectError"
        reason = redact(f"connection failed: {error.__cause__ or error}")
        raise TransientFault(reason, unbilled=refused) from None
    except openai.APIStatusError as error:
        raise of_status(error) from None


def transient_status(status: int, message: str, wait: float | None) -> TransientFault | None:
    """The fault that an error status is, ``wait`` as in TransientFault; None where another try is of no use."""
    if status in RETRIED_STATUS or status >= 500:
        reason = f"status {status}: {message}"
        return TransientFault(reason, wait, congested=status in CONGESTED_STATUS, unbilled=status in UNBILLED_STATUS)
    return None


def backoff(tries: int, rng: random.Random) -> float:
    """Seconds until the next try, after ``tries`` failed ones: full jitter."""
    return rng.uniform(0, min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (tries - 1)))


def retry_after(header: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header asks for, given as seconds or as an HTTP date; None where it is neither.
    ``now``: Unix seconds."""
    try:
        seconds = float(header or "nan")
    except ValueError:
        try:
            when = parsedate_to_datetime(header or "")
        except ValueError:
            return None
        seconds = when.replace(tzinfo=when.tzinfo or UTC).timestamp() - now
    return max(0.0, seconds) if math.isfinite(seconds) else None


def server_message(error: openai.APIStatusError) -> str:
    """Why the server says it refused."""
    body = error.body
    if isinstance(body, Mapping) and body.get("message"):
        return str(body["message"])[:1000]
    return error.response.text[:1000] or "(no message)"
