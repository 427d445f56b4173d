"""Coroutines side by side, none left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all to their ends -> results in order. Where some fail, the first one's exception is raised once all have ended:
    a call in flight is paid for, and ``asyncio.gather`` would leave it to be cancelled when the program stops."""
    said = await asyncio.gather(*work, return_exceptions=True)
    results: list[T] = []
    for found in said:
        if isinstance(found, BaseException):
            raise found
        results.append(found)
    return results
