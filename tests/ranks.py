"""Ranks of a training job as forks of a server that has its libraries loaded: torchrun's start of fresh processes takes
seconds a rank, and its own tests are enough."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path

import torch

from nashtune.training.job import StepMetrics, TrainJob
from nashtune.training.trainer import train_in_world
from nashtune.training.world import World

LIBRARIES = ["ranks", "tiny_pairs", "nashtune.training.sharding", "torch.distributed.checkpoint", "peft", "pandas"]
Hook = Callable[[StepMetrics], None]


def train_in_ranks(
    job: TrainJob, size: int = 2, *, on_step: Hook | None = None, before: Callable[[], None] | None = None
) -> None:
    """Train ``job`` in ``size`` ranks; ``before`` is called in each of them first. Raises what the first of them raised."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job.folder.mkdir(parents=True, exist_ok=True)
    arguments = [(rank, size, port, job, on_step, before) for rank in range(size)]
    ranks = [context.Process(target=_rank, args=a, daemon=True) for a in arguments]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(300)
        assert process.exitcode is not None, "a rank hangs"
    failures = [job.folder / f"rank-{rank}.failure" for rank in range(size)]
    errors = [pickle.loads(file.read_bytes()) for file in failures if file.exists()]
    for file in failures:
        file.unlink(missing_ok=True)
    if errors:
        assert len(errors) == size, f"{errors} in some ranks only"
        raise errors[0]
    assert [process.exitcode for process in ranks] == [0] * size


def _rank(
    rank: int, size: int, port: int, job: TrainJob, on_step: Hook | None, before: Callable[[], None] | None
) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    if before is not None:
        before()
    try:
        world = World.join(range(size, size + 1))
        train_in_world(job, job.key(), world, on_step)
        world.leave()
    except Exception as error:  # noqa: BLE001 - told to the test, which raises it
        Path(job.folder, f"rank-{rank}.failure").write_bytes(pickle.dumps(error))
        os._exit(1)
