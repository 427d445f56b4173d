"""A run folder: what is done, by what recipe, and how to go on.

    RUN/recipe.yaml              as written, overrides applied       RUN/environment.json   versions, git, hardware
    RUN/recipe.resolved.yaml     every default filled in             RUN/ledger.sqlite      paid calls
    RUN/prompts/                 the prompts, split once and kept    RUN/best/              the exported policy
    RUN/iteration-T/STAGE/       committed units, if not on a store  RUN/export.json        which policy that is
    RUN/average/STAGE/           the same, of the averaged policy    RUN/report.html
    RUN/evaluations/NAME/        figures by published suites (evaluated.py)
    RUN/iteration-T/STAGE.json   the stage's record: what it was made from, what came out, how long it took

A stage is done when its record exists; a record is written last, atomically, and names the fingerprint of its inputs.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from nashtune.environment import describe_environment
from nashtune.errors import DriftError, StoreError
from nashtune.evaluated import iteration_of, place_of, scores_of, selection
from nashtune.recipe import Recipe, load_recipe
from nashtune.records import IterationSummary
from nashtune.stage import Stage
from nashtune.store.copying import copy_ledger, link_folders
from nashtune.store.files import exclusive, files_in, read_json, remove_partials, write_atomic, write_json
from nashtune.store.objects import check_store, on_store, open_store
from nashtune.summaries import AVERAGE, called, exported_policy, selection_value, summary_from

# What decides the identity of samples already drawn; a rollback or fork cannot change it under kept iterations.
FROZEN_SECTIONS = ("name", "seed", "policy", "prompts")
# Stages that commit no units: what they make stays in the run folder wherever units go.
KEPT_HERE = ("pairs", "train", "weights")


class Run:
    """One run folder. ``Run.open`` for working on it (locked), ``Run.read`` for looking."""

    def __init__(self, folder: Path, recipe: Recipe):
        self.folder = folder
        self.recipe = recipe
        self._working = False
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
        run._working = True
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
        shared, store = self.recipe.shared, self.recipe.scale.store
        elsewhere = None if store is None or name in KEPT_HERE else self.store_folder
        return Stage(self.iteration_folder(iteration), name, Path(shared).expanduser() if shared else None, elsewhere)

    def store_folder(self) -> Path:
        """This run's folder on scale.store. Whoever works on the run first tests that the store creates objects once only.

        Raises StoreError naming scale.store where it cannot be used.
        """

        assert self.recipe.scale.store is not None
        folder = self.resource("store", lambda: open_store(self.recipe.scale.store or "") / self.id)
        if self._working and on_store(folder):  # a folder of this machine's file system has hard links
            self.resource("store tested", lambda: check_store(folder))
        return folder

    def begun_stages(self, iteration: int) -> list[str]:
        """Stages of an iteration that have left something, in order of their names."""
        inside = self.iteration_folder(iteration)
        found = {f.name for f in inside.glob("*") if f.is_dir() and f.name != "policy"}
        found |= {f.stem for f in inside.glob("*.json") if f.name != "summary.json" and "units" in read_json(f)}
        if self.recipe.scale.store is not None:
            found |= {f.name for f in files_in(self.store_folder() / inside.name, "*")}
        return sorted(found)

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
            if not wanting and (left := self.unevaluated()):
                return f"finished but for {left[0][0]} of {called(left[0][1])}"
            return "finished but for the average of its weights" if wanting else "finished"
        done = [f.stem for f in self.iteration_folder(pending).glob("*.json")]
        after = f" after {', '.join(sorted(done))}" if done else ""
        return f"in iteration {pending} of {self.recipe.iterations}{after}"

    def unevaluated(self) -> list[tuple[str, int]]:
        """What the recipe's suites have yet to look at of a trained run: evaluation and iteration."""
        best = self.held_in_best()
        ends = {0} if best is None else {0, best}
        return [
            (suite.called, t)
            for suite in self.recipe.evaluate
            for t in sorted(ends | ({0, *self.iterations()} if suite.when == "each" else set()))
            if scores_of(self.folder, suite.called, t) is None
        ]

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
        kept: list[str | Path] = ["prompts", *(f"iteration-{t}" for t in range(iteration + 1))]
        for name in (suite.called for suite in recipe.evaluate if suite in self.recipe.evaluate):
            places = self.folder.glob(f"evaluations/{name}/iteration-*")
            kept += [p.relative_to(self.folder) for p in places if (iteration_of(p.name) or 0) <= iteration]
        link_folders(self.folder, partial, kept)
        write_atomic(partial / "recipe.yaml", yaml.safe_dump(recipe.written(), sort_keys=False, allow_unicode=True))
        write_json(partial / "forked.json", {"from": str(self.folder), "iteration": iteration})
        copy_ledger(self.folder / "ledger.sqlite", partial / "ledger.sqlite")
        partial.rename(target)
        return Run.open(recipe, target)

    def _check_fork(self, recipe: Recipe) -> None:
        before, after = self.recipe.identity(), recipe.identity()
        frozen = [key for key in FROZEN_SECTIONS if key != "name" and before[key] != after[key]]
        if frozen:
            raise DriftError(
                f"{self.folder}: a fork keeps {', '.join(FROZEN_SECTIONS[1:])}, but the overrides change {', '.join(frozen)}"
            )


def recipe_file(path: str | Path) -> Path:
    """A recipe file, given it or a run folder."""
    path = Path(path)
    return path / "recipe.yaml" if (path / "recipe.yaml").is_file() else path


def runs_below(folder: Path) -> Iterator[Path]:
    """Run folders directly inside ``folder``."""
    return (f.parent for f in sorted(folder.glob("*/recipe.yaml")))
