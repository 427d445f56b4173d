"""The first steps of a run, and its first loading of the trainer's model, with the seconds they took: a process of its own.

    python -m nashtune.planning.rehearsal RECIPE.yaml FOUND.json STARTED

STARTED is when this process was started (Unix seconds). Nothing is sampled or trained.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nashtune.planning.start import Start
from nashtune.recipe import Recipe, load_recipe
from nashtune.run import Run
from nashtune.sampling.role import Sampler
from nashtune.scale.local import Facts, Unit
from nashtune.stages.prepare import validation_part
from nashtune.stages.training import job_without_pairs
from nashtune.stages.work import engine_of, policy_of, warm_up
from nashtune.store.files import write_json


@dataclass(frozen=True, slots=True)
class Opening:
    """A sampler that opens and does nothing. ``which``: two of them load, though they are of one policy."""

    sampler: Sampler
    which: str

    def key(self) -> str:
        return f"{self.which} opening {self.sampler.key()}"

    def open(self) -> Facts:
        """When it could begin to load (Unix seconds), and the seconds of that."""
        began = time.time()
        self.sampler.open()
        return {"began": began, "load": time.time() - began}

    def work(self, opened: Facts, unit: Unit) -> Facts:
        return opened


def rehearse(recipe: Recipe, started: float) -> Start:
    """As ``nashtune.loop.improve`` begins."""
    with Run.open(recipe) as run:
        spawned = time.time() if recipe.scale.workers > 1 else started  # a single worker is the run's own process
        warm_up(run)
        part = validation_part(run)
        ready = time.time()
        first, again = (_opened(run, part.file, which) for which in ("first", "second"))
        could, load = max(f["began"] for f in first), max(f["load"] for f in again)
        libraries = max(0.0, max(f["load"] for f in first) - load)  # those that a first loading loads on its way
        engine_of(run).release()
        return Start(
            run=ready - started,
            crew=could - ready + libraries,
            worker=could - spawned + libraries,
            trainer=_trainer(run),
            load=load,
        )


def _opened(run: Run, prompts: Path, which: str) -> list[Facts]:
    """What every worker, all at the same time, said of its opening."""
    sampler = Sampler(policy_of(run, 0), run.recipe.sampling, 1, run.recipe.seed, "rehearsal", is_initial=True)
    units = [Unit(i, prompts, run.folder / f"{which}-{i}") for i in range(run.recipe.scale.workers)]
    return [facts for _, facts in engine_of(run).run(Opening(sampler, which), units)]


def _trainer(run: Run) -> float:
    """Seconds by which the first loading for training exceeds the second."""
    seconds: list[float] = []
    for _ in range(2):
        began = time.perf_counter()
        _load_for_training(run)
        seconds.append(time.perf_counter() - began)
    return max(0.0, seconds[0] - seconds[1])


def _load_for_training(run: Run) -> Any:
    from nashtune.training.trainer import HeadStart

    HeadStart(job_without_pairs(run, 1)).load()


def main() -> None:
    """The three arguments above."""
    recipe, found, started = sys.argv[1:]
    write_json(Path(found), asdict(rehearse(load_recipe(recipe), float(started))))


if __name__ == "__main__":
    main()
