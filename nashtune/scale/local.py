"""The ``local`` engine: work units in this process, or in worker processes of this machine."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import signal
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait

from nashtune.errors import SamplingError
from nashtune.scale.lifetime import leave_with
from nashtune.scale.units import Facts, Opened, Reopening, Resting, Role, Unit, obey
from nashtune.store.objects import undone

__all__ = ["Facts", "LocalEngine", "Reopening", "Resting", "Role", "Unit"]


class LocalEngine:
    """Runs units; with ``workers`` > 1, in that many processes with cores/workers threads each, kept until ``close``.
    ``preload`` names a module that they import as they start. ``environments``: further variables of each worker process,
    as the devices it sees; where given, no unit runs in this process, which has no share of its own."""

    def __init__(
        self, workers: int = 1, preload: str | None = None, environments: Sequence[Mapping[str, str]] | None = None
    ):
        self.workers = workers
        self._preload = preload
        self._environments = environments
        self._here = Opened()
        self._pool: list[_Worker] = []

    def run(self, role: Role, units: Sequence[Unit]) -> Iterator[tuple[Unit, Facts]]:
        """Do the units that are not committed yet, yielding each as it ends (any order)."""
        todo = undone(units)
        if self._environments is None and (self.workers == 1 or len(todo) < 2):
            for unit in todo:
                yield unit, self._here.work(role, unit)
        else:
            yield from self._spread(role, todo)

    def start(self) -> None:
        """Have the worker processes load their libraries while the caller does something else."""
        alone = self.workers == 1 and self._environments is None
        while not alone and len(self._pool) < self.workers:
            extra = self._environments[len(self._pool)] if self._environments else {}
            self._pool.append(_Worker(max(1, (os.cpu_count() or 1) // self.workers), self._preload, extra))

    def pause(self) -> None:
        """Nothing: what is loaded costs nobody anything, and is wanted again."""

    def release(self) -> None:
        """Forget what was loaded for units, here and in the worker processes, before something else needs the memory."""
        self._here.rest()
        for worker in self._pool:
            worker.release()

    def close(self) -> None:
        self._here.close()
        for worker in self._pool:
            worker.end()
        self._pool = []

    def _spread(self, role: Role, todo: list[Unit]) -> Iterator[tuple[Unit, Facts]]:
        self.start()
        waiting = todo[::-1]
        busy = {worker.pipe: worker for worker in self._pool[: len(todo)]}
        for worker in busy.values():
            worker.give(role, waiting.pop())
        while busy:
            for pipe in wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]
                yield worker.take()
                if waiting:
                    worker.give(role, waiting.pop())
                else:
                    del busy[pipe]  # type: ignore[arg-type]


class _Worker:
    """A child process and the pipe to it. Spawned, not forked: torch and its threads do not survive a fork."""

    def __init__(self, threads: int, preload: str | None, extra: Mapping[str, str]):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.unit: Unit | None = None
        self.process = context.Process(target=_serve, args=(theirs, threads, os.getpid(), preload), daemon=True)
        variables = {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            **extra,
        }
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)  # thread pools are sized when the child imports its libraries
        try:
            self.process.start()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        theirs.close()

    def give(self, role: Role, unit: Unit) -> None:
        self.unit = unit
        self.pipe.send_bytes(pickle.dumps((role, unit)))

    def take(self) -> tuple[Unit, Facts]:
        """The result of the unit given last. Raises the worker's error, or SamplingError if the worker died."""
        assert self.unit is not None
        try:
            facts, error = pickle.loads(self.pipe.recv_bytes())
        except (EOFError, ConnectionResetError):
            self.process.join(5)
            raise SamplingError(
                f"worker process {self.process.pid} died (exit code {self.process.exitcode}) on unit {self.unit.target.name}; "
                "run the same command again to go on, with a smaller scale.workers or sampling.slots if memory ran out"
            ) from None
        if error is not None:
            raise error
        return self.unit, facts

    def release(self) -> None:
        """Have an idle worker give back memory, and wait until it has. One that died has none, nor one that had no unit."""
        if self.unit is None:
            return
        try:
            self.pipe.send_bytes(pickle.dumps(None))
            _, error = pickle.loads(self.pipe.recv_bytes())
        except (EOFError, ConnectionResetError, BrokenPipeError):
            return
        if error is not None:
            raise error

    def end(self) -> None:
        self.pipe.close()  # the child reads end of file and leaves
        self.process.join(5)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join()


def _serve(pipe: Connection, threads: int, parent: int, preload: str | None) -> None:
    """A worker's life: take a unit, do it, tell; leave when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    leave_with(parent)
    import torch

    from nashtune.model.allocator import freed_memory_kept

    torch.set_num_threads(threads)
    if preload is not None:
        importlib.import_module(preload)
    with freed_memory_kept():
        _serve_units(pipe)


def _serve_units(pipe: Connection) -> None:
    opened = Opened()
    try:
        while True:
            order = pickle.loads(pipe.recv_bytes())
            pipe.send_bytes(pickle.dumps(obey(opened, order)))
    except (EOFError, BrokenPipeError):
        return
    finally:
        opened.close()
