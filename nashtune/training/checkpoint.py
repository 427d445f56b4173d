"""Training checkpoints: the last one only, in a folder that appears whole or not at all.

Tensors are in the format of torch.distributed.checkpoint, each rank's parts in a file of its own; they are put together
anew as they are read, so that another number of ranks can go on from them.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nashtune.errors import TrainingError
from nashtune.store.files import read_json, write_json
from nashtune.training.optimizer import Optimizer
from nashtune.training.world import ALONE, World

PREFIX = "checkpoint-"
TENSORS = "tensors"
STATE = "state.json"
"""Written last, before the folder gets its name."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """State after ``step`` optimizer steps: weights and moments on disk, and the metrics of every step so far."""

    folder: Path
    step: int
    metrics: Sequence[Mapping[str, Any]]

    def restore(self, optimizer: Optimizer) -> None:
        """Read weights and moments, each rank its parts. For all ranks.

        Raises TrainingError where the checkpoint cannot be read; what a rank's death makes the others raise.
        """
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.state_dict_loader import load

        reader = FileSystemReader(self.folder / TENSORS)
        try:
            stored = reader.read_metadata().state_dict_metadata
            tensors = {name: _place(name, entry, optimizer.masters) for name, entry in stored.items()}
            _quietly(lambda: load(tensors, storage_reader=reader))  # type: ignore[arg-type]
        except (CheckpointException, OSError, RuntimeError) as error:
            _raise_if_left_alone(error)
            raise TrainingError(
                f"{self.folder}: cannot be read ({type(error).__name__}: {str(error).splitlines()[0]}); "
                "remove it to train from the start"
            ) from error
        optimizer.restore(tensors.__getitem__, frozenset(tensors))


def _place(name: str, entry: Any, masters: Mapping[str, Tensor]) -> Tensor:
    """Where a stored tensor is read to: parts of what belongs to a parameter that is in parts, else a whole tensor."""
    kind, _, parameter = name.partition(".")
    master = masters.get(parameter)
    if kind == "master" and master is not None:
        return master.detach()  # in place
    if master is not None and master.shape == entry.size and master.dtype == entry.properties.dtype:
        return torch.zeros_like(master.detach())
    return torch.empty(entry.size, dtype=entry.properties.dtype)


def save_checkpoint(
    folder: Path,
    key: str,
    step: int,
    state: Mapping[str, Tensor],
    metrics: Sequence[Mapping[str, Any]],
    world: World = ALONE,
) -> None:
    """Write ``checkpoint-STEP`` into ``folder`` and drop earlier ones. ``key`` says what job it belongs to. For all ranks.

    Raises TrainingError where it cannot be written; what a rank's death makes the others raise.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    final = folder / f"{PREFIX}{step}"
    partial = folder / f"{final.name}.partial"
    if world.first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    world.meet()
    try:
        _quietly(lambda: save(dict(state), storage_writer=FileSystemWriter(partial / TENSORS)))
    except (CheckpointException, OSError, RuntimeError) as error:
        _raise_if_left_alone(error)
        raise TrainingError(
            f"{partial}: cannot be written ({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error
    if world.first:  # every rank's file is on disk by now
        write_json(partial / STATE, {"key": key, "step": step, "metrics": list(metrics)})
        partial.rename(final)
        _drop(folder, keep=final)


def last_checkpoint(folder: Path, key: str) -> Checkpoint | None:
    """The newest whole checkpoint, if any. Raises TrainingError where it belongs to another job than ``key``."""
    whole = [f for f in folder.glob(f"{PREFIX}*") if f.name.removeprefix(PREFIX).isdigit()]
    if not whole:
        return None
    newest = max(whole, key=lambda f: int(f.name.removeprefix(PREFIX)))
    state = read_json(newest / STATE)
    if state["key"] != key:
        raise TrainingError(
            f"{newest} was made with other pairs, policy or settings (key {state['key']}, now {key}); "
            "remove it to train from the start"
        )
    if not (newest / TENSORS).is_dir():
        raise TrainingError(
            f"{newest} has no folder {TENSORS!r}, so an earlier version made it; remove it to train from the start"
        )
    return Checkpoint(newest, state["step"], state["metrics"])


def remove_checkpoints(folder: Path) -> None:
    """Drop all checkpoints, whole or partial."""
    _drop(folder, keep=None)


def _drop(folder: Path, keep: Path | None) -> None:
    for other in folder.glob(f"{PREFIX}*"):
        if other != keep:
            shutil.rmtree(other)


def _raise_if_left_alone(error: BaseException) -> None:
    """Among several ranks, what goes wrong with files in one of them comes as a CheckpointException to all; a bare RuntimeError
    says that another rank is gone, after which all are started again, and is no refusal."""
    if isinstance(error, RuntimeError) and dist.is_initialized() and dist.get_world_size() > 1:
        raise error


def _quietly(work: Callable[[], Any]) -> None:
    """torch.distributed.checkpoint warns whenever it works for one process alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)
        work()
