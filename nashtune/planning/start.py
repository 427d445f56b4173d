"""What a run on this machine takes beside its work: starting processes, loading libraries, reading prompts."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nashtune.errors import PlanError
from nashtune.recipe import Recipe
from nashtune.store.files import read_json

SHOWN = 2_000
"""Characters of a failed rehearsal's output that are told."""


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds that a rehearsal (``nashtune.planning.rehearsal``), in a process of its own, took for a run's first steps, with
    the recipe's model and as many sampling processes as it asks for, all at the same time."""

    run: float
    """From starting the run's process to its first stage: libraries, the model found, prompts read and split."""
    crew: float
    """From then until every worker could load a model. Worker processes are started before the prompts are read."""
    worker: float
    """From starting a worker's process until it could load a model: what replacing a lost one takes."""
    trainer: float
    """What the first training takes more than later ones: its libraries, in a process that has done what is above."""
    load: float
    """Loading a sampler where its libraries are there: on every worker, all at the same time."""

    def assumptions(self) -> str:
        """What a plan's reader is told."""
        return (
            f"starting: {self.run:.1f} s to the first stage, {self.crew:.1f} s more until all workers can load a model, "
            f"{self.trainer:.1f} s of libraries in the first training: rehearsed, files of libraries in the machine's cache"
        )


def start_of(recipe: Recipe) -> Start:
    """Rehearse the start of the recipe's run in a scratch folder, in a fresh process.

    Raises PlanError, with what it said, where the rehearsal fails.
    """
    with tempfile.TemporaryDirectory(prefix="nashtune-start-") as place:
        file, found = Path(place) / "recipe.yaml", Path(place) / "start.json"
        file.write_text(yaml.safe_dump(rehearsed(recipe.written(), place, recipe.scale.workers)), encoding="utf-8")
        command = [sys.executable, "-m", "nashtune.planning.rehearsal", str(file), str(found), repr(time.time())]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode or not found.exists():
            raise PlanError(f"--calibrate: the rehearsal of the run's start failed:\n{done.stdout[-SHOWN:]}")
        return Start(**read_json(found))


def rehearsed(written: Mapping[str, Any], place: str, workers: int) -> dict[str, Any]:
    """The recipe of the rehearsal: processes of this machine, in a folder that is thrown away."""
    return {**written, "folder": place, "scale": {"workers": workers}}
