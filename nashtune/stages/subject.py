"""Whose answers a suite is given: a policy of a run, or any model."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nashtune.errors import EvaluationError
from nashtune.evaluated import place_of
from nashtune.recipe import EvaluationFile, PolicySection, SamplingSection, ScaleSection
from nashtune.records import Policy
from nashtune.run import Run
from nashtune.sampling.on_vllm.target import Target
from nashtune.scale.home import Home
from nashtune.stages.serving import served
from nashtune.stages.work import engine_of, ledger_of, new_engine, payer_of, policy_of
from nashtune.store.files import exclusive, remove_partials, write_atomic
from nashtune.store.objects import check_store, on_store, open_store
from nashtune.summaries import AVERAGE, called

if TYPE_CHECKING:
    from nashtune.judging.dispatch import Payer
    from nashtune.scale.units import WorkEngine
    from nashtune.store.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Subject:
    """A policy to evaluate, and what it takes: an engine that samples, a ledger that pays.

    ``run``: opened for the work, so that its lock is held; ``folder``: where evaluations go; ``place``: the folder of this
    policy's inside each; ``policy`` gives None for the scripted engine, and is only called where something is sampled, so that
    a finished evaluation needs no weights.
    """

    run: Run | None
    folder: Path
    iteration: int
    place: str
    title: str
    generator: str
    fingerprint: str
    policy: Callable[[], Policy | None]
    seed: int
    confidence: float
    sampling: SamplingSection
    engine: Callable[[], WorkEngine]
    ledger: Callable[[], Ledger]
    payer: Callable[[], Payer]
    target: Callable[[], Target | None] = lambda: None
    shared: Path | None = None
    """Where answers lie for other evaluations that want the same."""
    store: Callable[[], Path] | None = None
    """The folder on scale.store where answers are committed; None: in ``folder``."""
    answers: Path | None = None
    """A file of answers, given instead of a policy that could be asked."""


def of_run(run: Run, iteration: int) -> Subject:
    """Policy ``iteration`` of an open run (0 the initial one, AVERAGE the averaged one). Raises EvaluationError where it is
    not trained yet, StoreError where its weights were removed."""
    made = run.stage(iteration, "weights" if iteration == AVERAGE else "train")
    if iteration and not made.file.exists():
        raise EvaluationError(
            f"{run.folder}: {called(iteration)} has no policy yet; accepted: {[s.iteration for s in run.summaries()]}"
        )
    recipe, folder = run.recipe, run.folder / "evaluations"
    scripted = recipe.sampling.engine == "scripted"
    return Subject(
        run=run,
        folder=folder,
        iteration=iteration,
        place=place_of(iteration),
        title=called(iteration),
        generator=f"{recipe.name}-{'average' if iteration == AVERAGE else iteration}",
        fingerprint="scripted" if scripted else policy_of(run, 0).fingerprint if iteration == 0 else made.output,
        policy=lambda: None if scripted else policy_of(run, iteration),
        seed=recipe.seed,
        confidence=recipe.validate_.confidence,
        sampling=recipe.sampling,
        engine=lambda: engine_of(run),
        ledger=lambda: ledger_of(run),
        payer=lambda: payer_of(run, iteration),
        target=lambda: served(run, iteration),
        shared=Path(recipe.shared).expanduser() if recipe.shared else folder / "answers",
        store=None if recipe.scale.store is None else run.store_folder,
    )


def of_model(stack: ExitStack, folder: Path, model: str, settings: EvaluationFile) -> Subject:
    """Any model (hub name, folder, .gguf file, package:NAME), or a file of answers (.json, .jsonl), with a folder of its own,
    which is locked until ``stack`` ends. Raises ModelError where it is none."""
    stack.enter_context(exclusive(folder / "lock"))
    remove_partials(folder)
    answers = Path(model).expanduser() if model.endswith((".json", ".jsonl")) else None
    policy = None
    if answers is None and settings.engine != "scripted":
        from nashtune.model.loading import find_policy

        policy = find_policy(
            PolicySection(model=model, revision=settings.revision, trust_remote_code=settings.trust_remote_code)
        )
    kept = _Kept(stack, folder, settings)
    return Subject(
        run=None,
        folder=folder,
        iteration=0,
        place=plain_name(model),
        title=model,
        generator=plain_name(model) if Path(model).expanduser().exists() else model,
        fingerprint="scripted" if policy is None else policy.fingerprint,
        policy=lambda: policy,
        seed=settings.seed,
        confidence=settings.confidence,
        sampling=settings.sampling,
        engine=kept.engine,
        ledger=kept.ledger,
        payer=kept.payer,
        target=lambda: None if policy is None or settings.engine != "vllm" else Target(policy, policy),
        shared=folder / "answers",
        store=None if settings.scale.store is None else kept.store,
        answers=answers,
    )


def plain_name(model: str) -> str:
    """A model's name as a folder's."""
    name = Path(model).stem if model.endswith((".json", ".jsonl", ".gguf")) else model.rstrip("/")
    name = name.rsplit("/", 1)[-1] if Path(model).expanduser().exists() else name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"


class _Kept:
    """What is made at first use, and closed at the end."""

    def __init__(self, stack: ExitStack, folder: Path, settings: EvaluationFile):
        self._stack, self._folder, self._settings = stack, folder, settings
        self._engine: WorkEngine | None = None
        self._ledger: Ledger | None = None
        self._store: Path | None = None

    def engine(self) -> WorkEngine:
        if self._engine is None:
            own = self._settings.scale
            scale = ScaleSection(engine=own.engine, ray=own.ray, workers=self._settings.workers)
            store = None if own.store is None else self.store()
            home = Home(self._folder.absolute(), self._id(), store if store is not None and on_store(store) else None)
            made = new_engine(self._settings.sampling, scale, home)
            self._engine = self._stack.enter_context(closing(made))
        return self._engine

    def store(self) -> Path:
        """The evaluation's folder on its store, which is tested at first use. Raises StoreError."""
        if self._store is None:
            self._store = open_store(self._settings.scale.store or "") / self._id()
            if on_store(self._store):
                check_store(self._store)
        return self._store

    def _id(self) -> str:
        file = self._folder / "id"
        if not file.exists():
            write_atomic(file, uuid.uuid4().hex)
        return file.read_text(encoding="utf-8")

    def ledger(self) -> Ledger:
        from nashtune.store.ledger import Ledger

        if self._ledger is None:
            own = self._settings.ledger
            file = Path(own).expanduser() if own else self._folder / "ledger.sqlite"
            file.parent.mkdir(parents=True, exist_ok=True)
            self._ledger = self._stack.enter_context(Ledger(file))
        return self._ledger

    def payer(self) -> Payer:
        from nashtune.judging.dispatch import Payer
        from nashtune.store.ledger import Caps

        return Payer(self._id(), 0, Caps(self._settings.budget_usd, None))
