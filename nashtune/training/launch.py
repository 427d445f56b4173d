"""A training job in several processes: started by torchrun, srun or Ray Train, watched from here."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nashtune.errors import TrainingError
from nashtune.recipe import ScaleSection
from nashtune.scale.slurm import Srun
from nashtune.scale.started import Started, tied
from nashtune.scale.torchrun import ENVIRONMENT, RESTARTS, Torchrun
from nashtune.store.files import write_atomic
from nashtune.training.job import StepMetrics, TrainJob, finished
from nashtune.training.pulse import Watch

JOB, EVENTS, FAILURE, LOG = "job.pickle", "steps.jsonl", "failure.pickle", "torchrun.log"
LAST_LINES = 30
RANK = "nashtune.training.rank"


@dataclass(frozen=True, slots=True)
class Order:
    """What the ranks are told."""

    job: TrainJob
    key: str
    scale: ScaleSection
    threads: int
    """Of each rank, where this machine is like the others."""

    @property
    def sizes(self) -> range:
        """Numbers of ranks that may train."""
        scale = self.scale
        return range(
            (scale.min_train_nodes or scale.train_nodes) * scale.train_processes, scale.ranks + 1, scale.train_processes
        )


def train_with_ranks(job: TrainJob, scale: ScaleSection, on_step: Callable[[StepMetrics], None] | None) -> None:
    """Train in the ranks that ``scale`` asks for. Where one dies, all go on from the last checkpoint; ``on_step`` hears of
    every step once.

    Raises what a rank raised; TrainingError where there are fewer GPUs than ranks, ranks died again and again, or one hangs.
    """
    gpus = torch.cuda.device_count()
    if scale.launcher == "local" and torch.cuda.is_available() and scale.train_processes > gpus:
        raise TrainingError(
            f"scale.train_processes is {scale.train_processes}; accepted: at most {gpus}, a GPU for each process"
        )
    folder = job.folder / "ranks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    order = Order(job, job.key(), scale, max(1, torch.get_num_threads() // scale.train_processes))
    write_atomic(folder / JOB, pickle.dumps(order))
    told, code = _Told(folder, on_step), 0
    attempts = 1 + RESTARTS if scale.launcher == "slurm" else 1  # torchrun and Ray start ranks again by themselves
    for attempt in range(attempts):
        watch = Watch(folder, scale.train_timeout_s)
        with _start(order, folder, attempt) as ranks:
            code = ranks.watch(lambda: told.look(watch))  # noqa: B023 - called within the iteration
        if not code or finished(job, order.key) is not None:
            break
        for sign in folder.glob("pulse-*"):
            sign.unlink(missing_ok=True)
    else:
        free = shutil.disk_usage(folder).free / 1e6
        lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
        raise TrainingError(
            f"iteration {job.iteration}: the {scale.ranks} training processes ended with code {code} after {RESTARTS} "
            f"restarts ({free:,.0f} MB are free in {folder}); run the same command again to go on from the last checkpoint. "
            f"The end of {folder / LOG}:\n" + "\n".join(lines[-LAST_LINES:])
        )
    shutil.rmtree(folder)


def _start(order: Order, folder: Path, attempt: int) -> Started:
    """The ranks of an order, not yet begun."""
    scale, log, where = order.scale, folder / LOG, str(folder.absolute())
    if scale.launcher == "slurm":
        least = scale.min_train_nodes or scale.train_nodes
        nodes, processes = scale.train_nodes, scale.train_processes
        return Srun(
            RANK,
            [where],
            nodes=nodes,
            least=least,
            processes=processes,
            prefix=scale.rank_prefix,
            log=log,
            attempt=attempt,
        )
    if scale.launcher == "ray":
        command = [sys.executable, "-m", "nashtune.training.ray_ranks", where]
        return Started(tied(command), log, {**ENVIRONMENT, **_cluster_of_this_process()})
    return Torchrun(RANK, [where], processes=scale.train_processes, threads=order.threads, log=log)


def _cluster_of_this_process() -> dict[str, str]:
    """The Ray cluster that this process is a driver of, if any, for another driver."""
    ray: Any = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return {}
    return {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}


class _Told:
    """What the ranks have said so far."""

    def __init__(self, folder: Path, on_step: Callable[[StepMetrics], None] | None):
        self._failure, self._events, self._on_step = folder / FAILURE, folder / EVENTS, on_step
        self._read = self._step = 0

    def look(self, watch: Watch) -> None:
        """Pass on new steps. Raises what a rank raised, or TrainingError for one that hangs."""
        if self._on_step is not None and self._events.exists():
            for metrics in self._new_steps():
                if metrics.step > self._step:  # after a restart some come again
                    self._step = metrics.step
                    self._on_step(metrics)
        if self._failure.exists():
            raise pickle.loads(self._failure.read_bytes())
        watch.look()

    def _new_steps(self) -> list[StepMetrics]:
        with self._events.open("rb") as stream:
            stream.seek(self._read)
            whole = stream.read().rpartition(b"\n")[0]  # the last line may still be in the making
        self._read += len(whole) + 1 if whole else 0
        return [StepMetrics(**json.loads(line)) for line in whole.splitlines() if line]
