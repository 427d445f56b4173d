"""What a cluster loses in bench/cluster_chaos.py, and the stopping of a process in the middle of what it does."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from ray_nodes import Nodes

ENDED = "the run ended (code {}) before what was to happen in it"


def stop_in_the_middle(
    find: Callable[[], psutil.Process | None], still: Callable[[], bool], run: subprocess.Popen
) -> psutil.Process:
    """Stop a process that ``find`` finds, at a moment at which ``still`` holds with the process stopped."""
    while True:
        if run.poll() is not None:
            raise RuntimeError(ENDED.format(run.returncode))
        found = find()
        if found is not None:
            try:
                found.suspend()
                while found.status() != psutil.STATUS_STOPPED:
                    time.sleep(0.001)
                if still():
                    return found
                found.resume()
            except psutil.NoSuchProcess:
                pass
        time.sleep(0.002)


def stop_actor(stage: Path, others: set[str], run: subprocess.Popen) -> psutil.Process:
    """Stop an actor, none of ``others`` (names), that is in the middle of a unit."""
    from nashtune.errors import StoreError
    from nashtune.scale.claims import Worker, at_work

    chosen: list[Worker] = []

    def find() -> psutil.Process | None:
        chosen[:] = []
        try:
            work = at_work(stage, {file.name for file in stage.glob("*.parquet")})
        except StoreError:  # cleared at this moment
            return None
        chosen[:] = [w for w in work.workers if w.unit and w.name not in others] if work else []
        return psutil.Process(int(chosen[0].name.rpartition("-")[2])) if chosen else None

    def still() -> bool:
        work = at_work(stage, {file.name for file in stage.glob("*.parquet")})
        now = {w.name: w.unit for w in work.workers} if work else {}
        return bool(now.get(chosen[0].name))

    process = stop_in_the_middle(find, still, run)
    others.add(chosen[0].name)
    return process


def wait_for(happened: Callable[[], Any], run: subprocess.Popen) -> None:
    while not happened():
        if run.poll() is not None:
            raise RuntimeError(ENDED.format(run.returncode))
        time.sleep(0.01)


def lose_actor_node_and_driver(run: subprocess.Popen, folder: Path, nodes: Nodes) -> list[str]:
    """The first attempt: an actor killed and a node lost in the middle of a unit each, the driver in the middle of judging."""
    sample, judge = folder / "iteration-1" / "sample", folder / "iteration-1" / "judge"
    said, known = [], set[str]()
    actor = stop_actor(sample, known, run)
    wait_for(lambda: list(judge.glob("*.parquet")), run)  # the actor's unit is still out
    said.append(
        "the judge had begun while samples were still to come" if not (sample.parent / "sample.json").exists() else ""
    )
    actor.kill()
    other = stop_actor(sample, known, run)
    raylet = other.ppid()
    nodes.remove(raylet)
    other.kill()
    nodes.add()
    said += ["an actor was killed", "a node was lost"]

    def judging() -> bool:
        return len(list(judge.glob("*.parquet"))) >= 2 and not judge.with_suffix(".json").exists()

    total = len(units_of(folder))
    driver = psutil.Process(run.pid)
    stopped = stop_in_the_middle(
        lambda: driver if judging() else None, lambda: len(list(judge.glob("*.parquet"))) < total, run
    )
    actors = [psutil.Process(int(name.rpartition("-")[2])) for name in claimed(sample)]
    stopped.kill()
    run.wait()
    said.append("the driver was killed while judging")
    gone = psutil.wait_procs(actors, timeout=120)[1] == []
    said.append("its actors ended" if gone else "")
    return said


def claimed(stage: Path) -> list[str]:
    """Names of workers at work, of those whose processes are there."""
    from nashtune.scale.claims import at_work

    work = at_work(stage, {file.name for file in stage.glob("*.parquet")})
    names = [worker.name for worker in work.workers] if work else []
    return [name for name in names if psutil.pid_exists(int(name.rpartition("-")[2]))]


def lose_rank(run: subprocess.Popen, folder: Path) -> str:
    """The second attempt: a training rank killed between two checkpoints."""
    from test_torchrun import ranks_below

    train = folder / "iteration-1" / "train"

    def find() -> psutil.Process | None:
        if not list(train.glob("checkpoint-*/state.json")):
            return None
        ranks = ranks_below(run.pid)
        return ranks[1] if len(ranks) == 2 else None

    rank = stop_in_the_middle(find, lambda: not train.with_suffix(".json").exists(), run)
    rank.kill()
    return "a training rank was killed"


def units_of(folder: Path) -> range:
    """The units of iteration 1."""
    import pyarrow.parquet

    return range(pyarrow.parquet.ParquetFile(folder / "prompts" / "part-1.parquet").num_row_groups)
