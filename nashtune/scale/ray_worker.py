"""What runs in a Ray actor: one process that hosts any role."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from contextlib import ExitStack, suppress

from nashtune.errors import NashtuneError, SamplingError
from nashtune.scale.home import Home, Receiving, unseen
from nashtune.scale.units import Facts, Opened, Role, Unit, obey
from nashtune.store.objects import on_store


class RayWorker:
    """Opens what a role needs and does units one after the other, as a worker process of the local engine does."""

    def __init__(self, folder: str, threads: int, preload: str | None, home: Home | None):
        with suppress(OSError):  # paths of the run may be relative to where it was started
            os.chdir(folder)
        os.environ.update(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads), TOKENIZERS_PARALLELISM="false")
        self._threads = threads
        self._kept = ExitStack()
        self._ready = False
        self._name = f"{platform.node()}-{os.getpid()}"
        self._opened = Opened(self._name)
        self._sees = home is None or home.seen()
        self._receiving = None if self._sees or home is None or home.store is None else Receiving(home)
        if preload is not None:
            importlib.import_module(preload)

    def hello(self) -> tuple[str, str, bool]:
        """What it is called, its machine, and whether that sees the run folder."""
        return self._name, platform.node(), self._sees

    def work(self, role: Role, unit: Unit) -> tuple[Facts, Exception | None, bool]:
        """Do a unit -> its facts, what went wrong, and whether another worker may fare better."""
        self._set_up()
        lost = not self._sees and self._receiving is None  # a file at the same path would be another run's
        if lost or (not on_store(unit.source) and not unit.source.exists()):
            return {}, unseen(unit, platform.node()), False
        if self._receiving is not None:
            try:
                role = self._receiving.received(role)
            except NashtuneError as error:
                return {}, error, True
        facts, error = obey(self._opened, (role, unit))
        return facts, error, isinstance(error, SamplingError)

    def rest(self) -> None:
        """Give back everything."""
        self._opened.close()

    def _set_up(self) -> None:
        """Threads and memory, once torch is there; a role that needs none should not have to wait for it."""
        if not self._ready and "torch" in sys.modules:
            import torch

            from nashtune.model.allocator import freed_memory_kept

            torch.set_num_threads(self._threads)
            self._kept.enter_context(freed_memory_kept())
            self._ready = True
