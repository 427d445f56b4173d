"""What stages share."""

import asyncio
import os
import signal

import pytest

from nashtune.stages.work import finish


async def _answer() -> int:
    await asyncio.sleep(0)
    return 42


def test_a_coroutine_is_finished_with_and_without_a_running_loop() -> None:
    async def notebook() -> int:
        return finish(_answer())

    assert finish(_answer()) == 42
    assert asyncio.run(notebook()) == 42


def test_ctrl_c_while_the_event_loop_is_being_made_interrupts_and_leaves_nothing_half_made(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    made = asyncio.new_event_loop

    def interrupted() -> asyncio.AbstractEventLoop:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):  # the handler runs between two bytecodes
            pass
        loops.append(made())
        return loops[-1]

    loops: list[asyncio.AbstractEventLoop] = []
    monkeypatch.setattr(asyncio.events, "new_event_loop", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C
    try:
        with pytest.raises(KeyboardInterrupt):
            finish(_answer())
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(loops) == 1
    assert loops[0].is_closed()
    assert not [w for w in recwarn if "never awaited" in str(w.message)]
