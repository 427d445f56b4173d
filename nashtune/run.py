"""A run folder: what is done, by what recipe, and how to go on.

    RUN/recipe.yaml              as written, overrides applied       RUN/environment.json   versions, git, hardware
    RUN/recipe.resolved.yaml     every default filled in             RUN/ledger.sqlite      paid calls
    RUN/prompts/                 the prompts, split once and kept    RUN/best/              the exported policy
    RUN/iteration-T/STAGE/       committed units of a stage          RUN/export.json        which policy that is
    RUN/average/STAGE/           the same, of the averaged policy    RUN/report.html
    RUN/evaluations/NAME/        figures by published suites (evaluated.py)
    RUN/iteration-T/STAGE.json   the stage's record: what it was made from, what came out, how long it took

A stage is done when its record exists; a record is written last, atomically, and names the fingerprint of its inputs.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from nashtune.environment import describe_environment
from nashtune.errors import DriftError, StoreError
from nashtune.evaluated import iteration_of, place_of, scores_of, selection
from nashtune.recipe import Recipe, load_recipe
from nashtune.records import IterationSummary
from nashtune.seeds import content_hash
from nashtune.store.files import (
    digest_files,
    exclusive,
    link_once,
    read_json,
    remove_partials,
    write_atomic,
    write_json,
)
from nashtune.summaries import AVERAGE, exported_policy, selection_value, summary_from

# What decides the identity of samples already drawn; a rollback or fork cannot change it under kept iterations.
FROZEN_SECTIONS = ("name", "seed", "policy", "prompts")


class Run:
    """One run folder. ``Run.open`` for working on it (locked), ``Run.read`` for looking."""

    def __init__(self, folder: Path, recipe: Recipe):
        self.folder = folder
        self.recipe = recipe
        self._held = ExitStack()
        self._resources: dict[str, Any] = {}

    @classmethod
    def open(cls, recipe: Recipe | str | Path, folder: str | Path | None = None) -> Run:
        """Create or resume the run of ``recipe`` (a Recipe, a recipe file, or a run folder) and hold its lock.

        Raises RunLockedError where another process works on it, DriftError where the recipe changed in a way that
        would change results, RecipeError for a bad recipe.
        """
        if not isinstance(recipe, Recipe):
            recipe = load_recipe(recipe_file(recipe))
        run = cls(Path(folder) if folder else Path(recipe.folder) / recipe.name, recipe)
        run._held.enter_context(exclusive(run.folder / "lock"))
        try:
            remove_partials(run.folder)
            run._adopt(recipe)
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def read(cls, folder: str | Path) -> Run:
        """A run folder to look at, without its lock. Raises StoreError where it is none."""
        folder = Path(folder)
        if not (folder / "recipe.yaml").is_file():
            raise StoreError(f"{folder}: not a run folder (it has no recipe.yaml)")
        return cls(folder, load_recipe(folder / "recipe.yaml"))

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the lock and of whatever was put on ``hold``."""
        self._held.close()

    def hold(self, resource: Any) -> Any:
        """Keep a context manager open until the run closes."""
        return self._held.enter_context(resource)

    def resource(self, name: str, make: Callable[[], Any]) -> Any:
        """Something costly the run needs once, made at first use."""
        if name not in self._resources:
            self._resources[name] = make()
        return self._resources[name]

    def leave(self, name: str, thing: Any) -> None:
        """Leave something for a later stage to ``take``, in place of what lies there under that name."""
        self._resources[name] = thing

    def take(self, name: str) -> Any:
        """What was left under that name, no longer kept; None where nothing was."""
        return self._resources.pop(name, None)

    # ---- recipe ------------------------------------------------------------------------------------------------------

    def _adopt(self, recipe: Recipe) -> None:
        file = self.folder / "recipe.yaml"
        if file.exists():
            self._refuse_drift(load_recipe(file), recipe)
        for name, values in (("recipe.yaml", recipe.written()), ("recipe.resolved.yaml", recipe.resolved())):
            text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
            if not (self.folder / name).exists() or (self.folder / name).read_text(encoding="utf-8") != text:
                write_atomic(self.folder / name, text)
        if not (self.folder / "environment.json").exists():
            write_json(self.folder / "environment.json", describe_environment())

    def _refuse_drift(self, old: Recipe, new: Recipe) -> None:
        before, after = old.identity(), new.identity()
        changed = {key for key in before | after if before.get(key) != after.get(key)}
        if new.iterations > old.iterations and (new.prompts.per_iteration or self.last_iteration() < 0):
            changed.discard("iterations")  # later iterations take prompts that no earlier one touched
        marker = self.folder / "rolled-back.json"
        if marker.exists():
            changed -= set(before) - set(FROZEN_SECTIONS)
        if changed and self.last_iteration() >= 0:
            detail = "; ".join(f"{key}: {before.get(key)!r} -> {after.get(key)!r}" for key in sorted(changed))
            raise DriftError(
                f"{self.folder}: the recipe changed since this run began ({detail}). Results would mix two recipes. "
                "Accepted: the old values; `nashtune rollback` first (all but policy, prompts, seed and name may then change); "
                "`nashtune fork` to try the change beside this run; or another `name`"
            )
        marker.unlink(missing_ok=True)

    @property
    def id(self) -> str:
        """What this run is called in ledgers; a fork has its own."""
        file = self.folder / "id"
        if not file.exists():
            write_atomic(file, uuid.uuid4().hex)
        return file.read_text(encoding="utf-8")

    # ---- places --------------------------------------------------------------------------------------------------------

    def iteration_folder(self, iteration: int) -> Path:
        return self.folder / ("average" if iteration == AVERAGE else f"iteration-{iteration}")

    @property
    def ledger_file(self) -> Path:
        """The run's own ledger of paid calls, or the one the recipe shares with other runs."""
        shared = self.recipe.ledger
        return Path(shared).expanduser() if shared else self.folder / "ledger.sqlite"

    def iterations(self) -> range:
        """The training iterations t = 1..T."""
        return range(1, self.recipe.iterations + 1)

    def finished(self, iteration: int) -> bool:
        """Whether an iteration is trained and validated."""
        return (self.iteration_folder(iteration) / "summary.json").exists()

    def last_iteration(self) -> int:
        """The last iteration that was begun; -1 where none was."""
        numbers = [int(f.name.removeprefix("iteration-")) for f in self.folder.glob("iteration-*")]
        return max(numbers, default=-1)

    # ---- stage records ---------------------------------------------------------------------------------------------------

    def stage(self, iteration: int, name: str) -> Stage:
        shared = self.recipe.shared
        return Stage(self.iteration_folder(iteration), name, Path(shared).expanduser() if shared else None)

    # ---- results ---------------------------------------------------------------------------------------------------------

    def record(self, summary: IterationSummary) -> None:
        """Keep an iteration's row of the table."""
        write_json(self.iteration_folder(summary.iteration) / "summary.json", asdict(summary))

    def summaries(self) -> list[IterationSummary]:
        """The rows of all validated iterations, in order."""
        files = [self.iteration_folder(t) / "summary.json" for t in range(self.last_iteration() + 1)]
        return [summary_from(read_json(file)) for file in files if file.exists()]

    def best(self) -> IterationSummary | None:
        """The best validated iteration by validate.select; ties go to the earlier one (Algorithm 2, line 9)."""
        return self.best_of(self.summaries())

    def best_of(self, summaries: Iterable[IterationSummary]) -> IterationSummary | None:
        """The best of some rows, in order of the iterations."""
        chosen, highest = None, float("-inf")
        for summary in summaries:
            value, unfit = self._selected_by(summary)
            if value is not None and not unfit and value > highest:
                chosen, highest = summary, value
        return chosen

    def _selected_by(self, summary: IterationSummary) -> tuple[float | None, str]:
        """The figure that validate.select names, of the held-out contest or of a suite, and why it may not be believed."""
        metric = self.recipe.validate_.select
        if (found := self.recipe.evaluation(metric)) is None:
            return selection_value(summary, metric), ""
        return selection(scores_of(self.folder, found[0].called, summary.iteration), metric)

    def passed_over(self) -> dict[int, str]:
        """Iterations that cannot be the best, whatever their figure, with the reason."""
        return {s.iteration: reason for s in self.summaries() if (reason := self._selected_by(s)[1])}

    def averaged(self) -> IterationSummary | None:
        """The row of the averaged policy, where it is the average of all the recipe's iterations."""
        weights, row = self.stage(AVERAGE, "weights"), self.iteration_folder(AVERAGE) / "summary.json"
        if not row.exists() or weights.record()["facts"]["iterations"] != list(self.iterations()):
            return None
        return summary_from(read_json(row))

    def held_in_best(self) -> int | None:
        """The iteration (or AVERAGE) whose policy lies in ``best/``; without a record of it, the best one. None: none does."""
        if not (self.folder / "best").is_dir():
            return None
        if (file := self.folder / "export.json").exists():
            return read_json(file)["iteration"]
        return best.iteration if (best := self.best()) else None

    def exported(self) -> str:
        """Which policy lies in ``best/``, in words; "" where none does, or no record of it."""
        file = self.folder / "export.json"
        return exported_policy(read_json(file), self.recipe.iterations) if file.exists() else ""

    def state(self) -> str:
        """What the run is at, in words: "finished", or the iteration and stage that comes next."""
        pending = next((t for t in range(self.recipe.iterations + 1) if not self.finished(t)), None)
        if pending is None:
            wanting = self.recipe.average == "weights" and self.averaged() is None
            return "finished but for the average of its weights" if wanting else "finished"
        done = [f.stem for f in self.iteration_folder(pending).glob("*.json")]
        after = f" after {', '.join(sorted(done))}" if done else ""
        return f"in iteration {pending} of {self.recipe.iterations}{after}"

    def rollback(self, iteration: int) -> list[Path]:
        """Go back to the state after ``iteration``: later iterations are moved aside, not deleted; returns their new places.

        Raises StoreError where the run has no such finished iteration.
        """
        if not self.finished(iteration):
            finished = [s.iteration for s in self.summaries()]
            raise StoreError(f"{self.folder}: no finished iteration {iteration} to go back to; accepted: {finished}")
        aside = self.folder / "rolled-back" / time.strftime("%Y%m%d-%H%M%S")
        moved = []
        for number in (*range(iteration + 1, self.last_iteration() + 1), AVERAGE):
            if (folder := self.iteration_folder(number)).exists():
                aside.mkdir(parents=True, exist_ok=True)
                moved.append(Path(shutil.move(folder, aside / folder.name)))
            for evaluated in self.folder.glob(f"evaluations/*/{place_of(number)}"):
                target = aside / "evaluations" / evaluated.parent.name
                target.mkdir(parents=True, exist_ok=True)
                moved.append(Path(shutil.move(evaluated, target / evaluated.name)))
        shutil.rmtree(self.folder / "best", ignore_errors=True)
        for name in ("report.html", "export.json"):
            (self.folder / name).unlink(missing_ok=True)
        write_json(self.folder / "rolled-back.json", {"to": iteration, "moved": [str(m) for m in moved]})
        return moved

    def fork(self, target: Path, iteration: int, overrides: tuple[str, ...] = ()) -> Run:
        """A new run beside this one that starts after ``iteration``; files are hard-linked, so it costs no disk.

        Raises StoreError where ``target`` exists or the iteration is not finished.
        """
        if target.exists():
            raise StoreError(f"{target}: exists already; give the fork a new folder")
        if not self.finished(iteration):
            raise StoreError(
                f"{self.folder}: iteration {iteration} is not finished; accepted: {[s.iteration for s in self.summaries()]}"
            )
        recipe = load_recipe(
            self.folder / "recipe.yaml", [*overrides, f"name={target.name}", f"folder={target.parent}"]
        )
        self._check_fork(recipe)
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        for name in ["prompts", *(f"iteration-{t}" for t in range(iteration + 1))]:
            shutil.copytree(self.folder / name, partial / name, copy_function=_link)
        for name in (suite.called for suite in recipe.evaluate if suite in self.recipe.evaluate):
            for place in self.folder.glob(f"evaluations/{name}/iteration-*"):
                if (iteration_of(place.name) or 0) <= iteration:
                    copy = partial / "evaluations" / name / place.name
                    shutil.copytree(place, copy, copy_function=_link)
        write_atomic(partial / "recipe.yaml", yaml.safe_dump(recipe.written(), sort_keys=False, allow_unicode=True))
        write_json(partial / "forked.json", {"from": str(self.folder), "iteration": iteration})
        if (ledger := self.folder / "ledger.sqlite").exists():  # what was paid for here is not paid for again there
            with sqlite3.connect(ledger) as source, sqlite3.connect(partial / "ledger.sqlite") as copy:
                source.backup(copy)
        partial.rename(target)
        return Run.open(recipe, target)

    def _check_fork(self, recipe: Recipe) -> None:
        before, after = self.recipe.identity(), recipe.identity()
        frozen = [key for key in FROZEN_SECTIONS if key != "name" and before[key] != after[key]]
        if frozen:
            raise DriftError(
                f"{self.folder}: a fork keeps {', '.join(FROZEN_SECTIONS[1:])}, but the overrides change {', '.join(frozen)}"
            )


class Stage:
    """One stage of one iteration: its folder of units, and its record. ``shared`` is where runs leave units for each other."""

    def __init__(self, iteration_folder: Path, name: str, shared: Path | None = None):
        self.folder = iteration_folder / name
        self.file = iteration_folder / f"{name}.json"
        self.name = name
        self.shared = shared

    def done(self, *inputs: Any) -> bool:
        """Whether the stage is recorded as made from ``inputs``. Raises DriftError where it was made from others.

        A stage of a finished iteration is done whatever the recipe says now: a fork or rollback keeps it as it is.
        """
        if not self.file.exists():
            return False
        if (self.file.parent / "summary.json").exists():
            return True
        record = read_json(self.file)
        if record["fingerprint"] != content_hash(self.name, *inputs):
            raise DriftError(
                f"{self.file}: made from other inputs ({record['inputs']}) than now ({list(inputs)}). "
                "Something under it changed: roll back to the iteration before, or fork"
            )
        return True

    def key(self, inputs: Sequence[Any]) -> str:
        """What the names of the stage's units carry: a hash of its inputs, or what a finished stage recorded."""
        if self.file.exists():
            return self.record()["key"]
        return content_hash(self.name, *inputs, length=10)

    def borrow(self, inputs: Sequence[Any]) -> None:
        """Take over the units that another run made from the same inputs, if runs share theirs."""
        if self.shared is not None and not self.file.exists():
            for file in self._exchange(inputs).glob("*.parquet"):
                link_once(file, self.folder / file.name)

    def lend(self, inputs: Sequence[Any]) -> None:
        """Leave the units for other runs, if runs share theirs."""
        if self.shared is not None:
            for file in self.folder.glob(f"*-{self.key(inputs)}.parquet"):
                link_once(file, self._exchange(inputs) / file.name)

    def _exchange(self, inputs: Sequence[Any]) -> Path:
        assert self.shared is not None
        return self.shared / content_hash(self.name, *inputs)

    @contextmanager
    def clock(self) -> Iterator[Clock]:
        """Count this stage's seconds, those of interrupted attempts included."""
        clock = Clock(self.file.with_name(f".{self.name}.seconds"))
        try:
            yield clock
        finally:
            clock()

    def seconds(self) -> float:
        """Seconds spent on the stage so far, over all attempts."""
        return Clock(self.file.with_name(f".{self.name}.seconds")).before

    def finish(self, inputs: Sequence[Any], facts: Mapping[str, Any], output: str | None = None) -> None:
        """Write the record, last of all."""
        self.lend(inputs)
        write_json(
            self.file,
            {
                "stage": self.name,
                "fingerprint": content_hash(self.name, *inputs),
                "key": self.key(inputs),
                "inputs": list(inputs),
                "output": output or digest_files(self.files()),
                "seconds": round(self.seconds(), 3),
                "facts": dict(facts),
            },
        )

    def record(self) -> dict[str, Any]:
        return read_json(self.file)

    @property
    def output(self) -> str:
        """Fingerprint of what the stage made."""
        return self.record()["output"]

    def files(self) -> list[Path]:
        """The committed units, in order of the input."""
        return sorted(self.folder.glob("*.parquet"))

    def committed(self) -> list[Path]:
        """The units that the stage's record is about, in order of the input."""
        return sorted(self.folder.glob(f"*-{self.record()['key']}.parquet"))

    def count(self) -> int:
        """Units committed so far."""
        return sum(1 for _ in self.folder.glob("*.parquet"))


class Clock:
    """Seconds of a stage, kept in a small file so that they survive a kill; call it to write them down."""

    def __init__(self, file: Path):
        self.file = file
        self.before = float(file.read_text()) if file.exists() else 0.0
        self._started = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds of this attempt."""
        return time.monotonic() - self._started

    def __call__(self) -> None:
        write_atomic(self.file, f"{self.before + self.elapsed:.3f}")


def recipe_file(path: str | Path) -> Path:
    """A recipe file, given it or a run folder."""
    path = Path(path)
    return path / "recipe.yaml" if (path / "recipe.yaml").is_file() else path


def _link(source: str, target: str) -> None:
    link_once(Path(source), Path(target))


def runs_below(folder: Path) -> Iterator[Path]:
    """Run folders directly inside ``folder``."""
    return (f.parent for f in sorted(folder.glob("*/recipe.yaml")))
