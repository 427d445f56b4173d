"""One rank of a training job that torchrun started: ``python -m nashtune.training.rank FOLDER``."""

from __future__ import annotations

import json
import os
import pickle
import sys
from dataclasses import asdict
from pathlib import Path

from nashtune.errors import NashtuneError
from nashtune.scale.lifetime import leave_with
from nashtune.store.files import write_atomic
from nashtune.training.job import StepMetrics, finished
from nashtune.training.launch import EVENTS, FAILURE, JOB, Order
from nashtune.training.pulse import interval
from nashtune.training.trainer import train_in_world
from nashtune.training.world import World


def main(folder: Path) -> None:
    """Do the job in ``folder`` together with the other ranks."""
    leave_with(os.getppid())
    try:
        work(folder)
    except NashtuneError:
        os._exit(1)  # no farewell to the others: they may wait for this rank in vain


def work(folder: Path) -> None:
    """Take part in the job in ``folder``, as the rank that the environment says. Leaves there, and raises, what is refused."""
    order: Order = pickle.loads((folder / JOB).read_bytes())
    try:
        _work(folder, order)
    except NashtuneError as error:
        write_atomic(folder / FAILURE, pickle.dumps(error))
        raise


def _work(folder: Path, order: Order) -> None:
    scale = order.scale
    world = World.join(order.sizes, timeout_s=scale.train_timeout_s)
    world.pulse.start(folder, world.rank, world.size, interval(scale.train_timeout_s))
    if world.agree(lambda: finished(order.job, order.key)) is None:

        def on_step(metrics: StepMetrics) -> None:
            if world.first:
                with (folder / EVENTS).open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(asdict(metrics)) + "\n")

        train_in_world(order.job, order.key, world, on_step)
    world.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
