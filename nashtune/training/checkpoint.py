"""Training checkpoints: the last one only, in a folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from nashtune.errors import TrainingError
from nashtune.store.files import read_json, write_json
from nashtune.training.optimizer import Optimizer

PREFIX = "checkpoint-"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """State after ``step`` optimizer steps: weights and moments on disk, and the metrics of every step so far."""

    folder: Path
    step: int
    metrics: Sequence[Mapping[str, Any]]

    def restore(self, optimizer: Optimizer) -> None:
        """Read weights and moments, one tensor in memory at a time."""
        with safe_open(self.folder / "state.safetensors", framework="pt") as file:
            optimizer.restore(file.get_tensor, frozenset(file.keys()))


def save_checkpoint(
    folder: Path, key: str, step: int, state: Mapping[str, Tensor], metrics: Sequence[Mapping[str, Any]]
) -> None:
    """Write ``checkpoint-STEP`` into ``folder`` and drop earlier ones. ``key`` says what job it belongs to."""
    final = folder / f"{PREFIX}{step}"
    partial = folder / f"{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, partial / "state.safetensors")
    with (partial / "state.safetensors").open("rb") as stream:
        os.fsync(stream.fileno())
    write_json(partial / "state.json", {"key": key, "step": step, "metrics": list(metrics)})
    partial.rename(final)
    _drop(folder, keep=final)


def last_checkpoint(folder: Path, key: str) -> Checkpoint | None:
    """The newest whole checkpoint, if any. Raises TrainingError where it belongs to another job than ``key``."""
    whole = [f for f in folder.glob(f"{PREFIX}*") if f.name.removeprefix(PREFIX).isdigit()]
    if not whole:
        return None
    newest = max(whole, key=lambda f: int(f.name.removeprefix(PREFIX)))
    state = read_json(newest / "state.json")
    if state["key"] != key:
        raise TrainingError(
            f"{newest} was made with other pairs, policy or settings (key {state['key']}, now {key}); "
            "remove it to train from the start"
        )
    return Checkpoint(newest, state["step"], state["metrics"])


def remove_checkpoints(folder: Path) -> None:
    """Drop all checkpoints, whole or partial."""
    _drop(folder, keep=None)


def _drop(folder: Path, keep: Path | None) -> None:
    for other in folder.glob(f"{PREFIX}*"):
        if other != keep:
            shutil.rmtree(other)
