"""The processes that train together: ranks 0, 1, ... of a world, or one process alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from nashtune.errors import TrainingError
from nashtune.model.loading import default_device
from nashtune.training.pulse import Pulse

T = TypeVar("T")
GRACE = timedelta(minutes=1)
"""How much longer than the run itself a rank waits for another (one loads or reads back a whole model, say) before it takes that
one for dead: the run can say who hangs. torchrun sees the death of a rank at once and does not wait for this."""
BACKENDS = "cpu:gloo,cuda:nccl"
"""NCCL between GPUs, gloo between CPUs."""


@dataclass(frozen=True, slots=True)
class World:
    """This process's place among those that train together. Every method that says so must be called by all ranks."""

    rank: int = 0
    size: int = 1
    pulse: Pulse = field(default_factory=Pulse, compare=False, repr=False)
    """Told how far this rank has come."""

    @staticmethod
    def join(sizes: range, timeout_s: float = 1800) -> World:
        """Meet the other ranks, at the address that a launcher put into the environment; NCCL between GPUs, one for each
        rank, gloo between CPUs. A launcher may have brought them together already.

        Raises TrainingError where the number of ranks is not one of ``sizes`` (launchers exist that start independent jobs
        instead), or there are fewer GPUs than ranks on this machine.
        """
        found = int(os.environ.get("WORLD_SIZE", "1"))
        if found not in sizes:
            asked = " to ".join(str(size) for size in sorted({sizes[0], sizes[-1]}))
            raise TrainingError(
                f"scale.train_processes (of all machines) is {asked}, but {found} processes were started together"
            )
        if dist.is_initialized():
            return World(dist.get_rank(), dist.get_world_size())
        local, here = (int(os.environ.get(name, "0")) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
        timeout = timedelta(seconds=timeout_s) + GRACE
        if torch.cuda.is_available():
            if here > torch.cuda.device_count():
                raise TrainingError(
                    f"scale.train_processes is {here}; accepted: at most {torch.cuda.device_count()}, a GPU for each process"
                )
            torch.cuda.set_device(local)
            dist.init_process_group(BACKENDS, timeout=timeout, device_id=torch.device("cuda", local))
        else:
            dist.init_process_group("gloo", timeout=timeout)
        return World(dist.get_rank(), dist.get_world_size())

    def leave(self) -> None:
        """Part from the other ranks."""
        if dist.is_initialized():
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes what is written once."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """The accelerator or CPU that this rank computes on."""
        device = default_device()
        return device if device.type == "cpu" else torch.device(device.type, torch.cuda.current_device())

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's part of ``items``."""
        return items[self.rank :: self.size]

    def gather(self, value: T) -> list[T]:
        """Every rank's value, by rank. For all ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def agree(self, decide: Callable[[], T]) -> T:
        """What ``decide`` returns in rank 0, which alone calls it. For all ranks."""
        if self.size == 1:
            return decide()
        value: list[Any] = [decide() if self.first else None]
        dist.broadcast_object_list(value)
        return value[0]

    def meet(self) -> None:
        """Wait for the other ranks. For all ranks."""
        self.gather(None)

    def in_turn(self, work: Callable[[], T]) -> T:
        """Have the ranks of each machine do ``work`` one after the other, so that what it needs for a moment is needed once.
        For all ranks."""
        if self.size == 1:
            return work()
        here, local = (int(os.environ.get(name, "0")) for name in ("LOCAL_WORLD_SIZE", "LOCAL_RANK"))
        result: list[T] = []
        for turn in range(max(self.gather(here or self.size))):
            if turn == local:
                self.pulse.beat("loading the model")
                result.append(work())
                self.pulse.beat("waiting until the others have loaded the model")
            self.meet()
        return result[0]


ALONE = World()
"""One process that trains by itself."""
