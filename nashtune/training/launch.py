"""A training job in several processes: started by torchrun, watched from here."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from nashtune.errors import TrainingError
from nashtune.scale.torchrun import RESTARTS, Torchrun
from nashtune.store.files import write_atomic
from nashtune.training.job import StepMetrics, TrainJob

JOB, EVENTS, FAILURE, LOG = "job.pickle", "steps.jsonl", "failure.pickle", "torchrun.log"
LAST_LINES = 30


@dataclass(frozen=True, slots=True)
class Order:
    """What the ranks are told."""

    job: TrainJob
    key: str
    processes: int


def train_with_torchrun(job: TrainJob, processes: int, on_step: Callable[[StepMetrics], None] | None) -> None:
    """Train in ``processes`` ranks. Where one dies, all go on from the last checkpoint; ``on_step`` hears of every step
    once.

    Raises what a rank raised; TrainingError where there are fewer GPUs than ``processes``, or ranks died again and again.
    """
    gpus = torch.cuda.device_count()
    if torch.cuda.is_available() and processes > gpus:
        raise TrainingError(f"scale.train_processes is {processes}; accepted: at most {gpus}, a GPU for each process")
    folder = job.folder / "ranks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_atomic(folder / JOB, pickle.dumps(Order(job, job.key(), processes)))
    threads = max(1, torch.get_num_threads() // processes)
    told = _Told(folder, on_step)
    with Torchrun(
        "nashtune.training.rank", [str(folder)], processes=processes, threads=threads, log=folder / LOG
    ) as ranks:
        code = ranks.watch(told.look)
    if code:
        lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
        raise TrainingError(
            f"iteration {job.iteration}: the {processes} training processes ended with code {code} after {RESTARTS} "
            f"restarts; run the same command again to go on from the last checkpoint. The end of {folder / LOG}:\n"
            + "\n".join(lines[-LAST_LINES:])
        )
    shutil.rmtree(folder)


class _Told:
    """What the ranks have said so far."""

    def __init__(self, folder: Path, on_step: Callable[[StepMetrics], None] | None):
        self._failure, self._events, self._on_step = folder / FAILURE, folder / EVENTS, on_step
        self._read = self._step = 0

    def look(self) -> None:
        """Pass on new steps. Raises what a rank raised."""
        if self._on_step is not None and self._events.exists():
            for metrics in self._new_steps():
                if metrics.step > self._step:  # after a restart some come again
                    self._step = metrics.step
                    self._on_step(metrics)
        if self._failure.exists():
            raise pickle.loads(self._failure.read_bytes())

    def _new_steps(self) -> list[StepMetrics]:
        with self._events.open("rb") as stream:
            stream.seek(self._read)
            whole = stream.read().rpartition(b"\n")[0]  # the last line may still be in the making
        self._read += len(whole) + 1 if whole else 0
        return [StepMetrics(**json.loads(line)) for line in whole.splitlines() if line]
