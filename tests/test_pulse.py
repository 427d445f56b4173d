"""Ranks that hang are named by the run that watches them."""

from __future__ import annotations

import json
import os
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from ranks import train_in_ranks
from tiny_pairs import six_steps, tiny_policy

from nashtune.errors import TrainingError
from nashtune.training.job import StepMetrics
from nashtune.training.pulse import Pulse, Watch, interval

TIMEOUT_S = 2.0
pulses: list[Pulse] = []


def hang_at_3(folder: Path, rank: int, metrics: StepMetrics) -> None:
    """What a rank does after each step: it tells how far it is, and one of them hangs for a while."""
    me = int(os.environ["RANK"])
    if metrics.step == 1:
        pulses.append(Pulse())
        pulses[0].start(folder, me, 2, interval(TIMEOUT_S))
    pulses[0].beat(f"step {metrics.step}")
    if metrics.step == 3 and me == rank:
        time.sleep(2.5 * TIMEOUT_S)


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_the_rank_that_hangs_is_told_from_the_one_that_waits(tmp_path: Path, rank: int) -> None:
    job = six_steps(tmp_path, tiny_policy(tmp_path / "zero"))
    signs = tmp_path / "signs"
    signs.mkdir()
    ranks = threading.Thread(target=train_in_ranks, args=(job,), kwargs={"on_step": partial(hang_at_3, signs, rank)})
    ranks.start()
    watch = Watch(signs, TIMEOUT_S)

    def look_on() -> None:
        while ranks.is_alive():
            watch.look()
            time.sleep(0.05)

    with pytest.raises(TrainingError) as told:
        look_on()
    ranks.join()
    message = str(told.value)
    assert f"rank {rank} (host " in message
    assert f"rank {1 - rank} " not in message
    assert "does not get further; it is at step 3 (trainer.py:" in message
    assert "in hang_at_3)" in message
    assert "scale.train_timeout_s (2 s)" in message


def sign(folder: Path, rank: int, **changes: object) -> None:
    known = {
        "rank": rank,
        "size": 2,
        "host": "a",
        "pid": rank,
        "sign": 1,
        "beats": 1,
        "at": "step 1",
        "waits": False,
        "where": "x",
    }
    (folder / f"pulse-{rank}.json").write_text(json.dumps(known | changes))


def look_for(seconds: int, watch: Watch, now: list[float]) -> None:
    for _ in range(seconds):
        now[0] += 1.001
        watch.look()


def test_progress_of_any_rank_silent_ranks_and_smaller_worlds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = Watch(tmp_path, 30)  # a sign each second

    def later(
        seconds: int, *, beats: int | None = None, alive: tuple[int, ...] = (0, 1), size: int = 2, pid: int = 0
    ) -> None:
        for _ in range(seconds):
            now[0] += 1.001
            for rank in alive:
                count = int(now[0]) if beats is None else beats
                sign(tmp_path, rank, sign=now[0], beats=count, size=size, pid=pid + rank, waits=rank == 1)
            watch.look()

    later(100)  # all get further
    later(25, beats=7)
    later(1)  # one step is progress
    later(28, alive=(1,), beats=9)
    with pytest.raises(TrainingError, match=r"rank 0 \(host a, process 0\) gives no sign of life"):
        later(5, alive=(1,), beats=9)
    (tmp_path / "pulse-1.json").unlink()  # a world of one goes on
    later(50, alive=(0,), size=1, pid=10)
    with pytest.raises(TrainingError) as told:
        later(40, alive=(0,), size=1, pid=10, beats=5)
    assert "rank 1" not in str(told.value)
    sign(tmp_path, 0, pid=20)
    now[0] += 1.001
    watch = Watch(tmp_path, 30)
    with pytest.raises(TrainingError, match="rank 1 never gave a sign of life"):
        later(40, alive=(0,), beats=5, pid=20)


def test_a_run_that_was_stopped_itself_blames_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = Watch(tmp_path, 30)
    sign(tmp_path, 0, size=1)
    now[0] = 2.0
    watch.look()
    now[0] = 5000.0
    watch.look()
    with pytest.raises(TrainingError, match="stood still for 3"):
        look_for(40, watch, now)


def test_a_start_that_never_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = Watch(tmp_path, 30)
    with pytest.raises(TrainingError, match="no training process has begun within 180"):
        look_for(2000, watch, now)
