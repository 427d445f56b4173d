"""Coroutines side by side: all end before the first failure is told."""

import asyncio

import pytest

from nashtune.together import together


def test_results_come_in_the_order_asked() -> None:
    async def late(turns: int) -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        return turns

    assert asyncio.run(together(map(late, [3, 1, 2]))) == [3, 1, 2]
    assert asyncio.run(together([])) == []


def test_a_failure_waits_for_the_others_and_none_is_left_unheard(caplog: pytest.LogCaptureFixture) -> None:
    ended = []

    async def fail(name: str, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        ended.append(name)
        raise ValueError(name)

    with pytest.raises(ValueError, match="slow"):
        asyncio.run(together([fail("slow", 5), fail("fast", 1)]))
    assert ended == ["fast", "slow"]
    assert not caplog.records
