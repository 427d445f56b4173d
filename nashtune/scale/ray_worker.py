"""What runs in a Ray actor: one process that hosts any role."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from contextlib import ExitStack, suppress

from nashtune.errors import SamplingError
from nashtune.scale.units import Facts, Opened, Role, Unit, obey
from nashtune.store.objects import is_there


class RayWorker:
    """Opens what a role needs and does units one after the other, as a worker process of the local engine does."""

    def __init__(self, folder: str, threads: int, preload: str | None):
        with suppress(OSError):  # paths of the run may be relative to where it was started
            os.chdir(folder)
        os.environ.update(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads), TOKENIZERS_PARALLELISM="false")
        self._threads = threads
        self._kept = ExitStack()
        self._ready = False
        self._name = f"{platform.node()}-{os.getpid()}"
        self._opened = Opened(self._name)
        if preload is not None:
            importlib.import_module(preload)

    def name(self) -> str:
        return self._name

    def work(self, role: Role, unit: Unit) -> tuple[Facts, Exception | None, bool]:
        """Do a unit -> its facts, what went wrong, and whether another worker may fare better."""
        self._set_up()
        if not is_there(unit.source):
            return {}, _unseen(unit), False
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


def _unseen(unit: Unit) -> SamplingError:
    return SamplingError(
        f"node {platform.node()} does not see {unit.source.absolute()}; scale.engine 'ray' needs the run folder and the models "
        "at the same place on every node, as on a shared file system"
    )
