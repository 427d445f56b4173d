"""Judging that begins with the first finished unit of samples, not after the last; and what can follow it at once."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

from nashtune.judging.registry import judges_in_batches, parts_of
from nashtune.progress import progress
from nashtune.run import Run
from nashtune.scale.claims import open_stage
from nashtune.scale.local import Unit
from nashtune.scale.units import Role, WorkEngine
from nashtune.stage import Stage
from nashtune.stages.ahead import Ahead
from nashtune.stages.candidates import Candidates, Judgments
from nashtune.stages.endpoints import check_endpoints
from nashtune.stages.judge_workers import engine_seconds, judge_role, judge_workers, judges_in_units
from nashtune.stages.judging import is_waited_for, judge_stage, judge_units
from nashtune.stages.local_judge import is_local, own_workers
from nashtune.stages.work import engine_of
from nashtune.store.files import files_in
from nashtune.store.objects import absent, on_store, undone

POLL_SECONDS = 0.1
STORE_POLL_SECONDS = 1.0
"""Between requests to an object store, which are paid for."""

Watch = Callable[[], str]
"""Called by the sampler after each unit: raises what stopped the judge, returns a note for the progress line."""


@contextmanager
def judged_alongside(run: Run, candidates: Candidates) -> Iterator[Watch]:
    """While the body samples the last group of ``candidates``, judge what is complete; ends when all is judged.

    It only commits the judging stage's units, the same as judging afterwards would; the stage itself is recorded by
    ``judge``. Of training sets the pairs are made as well, and the trainer makes a head start once the sampler has done. An
    error in the body, or Ctrl-C, stops it, once the calls in flight have their replies.
    """
    if not _worthwhile(run, candidates):
        yield lambda: ""
        return
    check_endpoints(run, candidates.iteration, run.recipe.judge(validation=candidates.validation))
    judging = _Alongside(run, candidates)
    judging.start()
    try:
        yield judging.watch
        judging.follow()
    except BaseException:  # Ctrl-C too: the thread must not go on alone
        judging.abandoned.set()
        judging.thread.join()
        raise
    judging.watch()


def _worthwhile(run: Run, candidates: Candidates) -> bool:
    """Whether there is a judge to be waited for, that has not judged already."""
    if not judges_alongside(run, validation=candidates.validation):
        return False
    stage, _, units = judge_stage(run, candidates)
    todo = any(absent([units.file(index) for index in range(candidates.part.units)]))
    return todo and not stage.file.exists()


def judges_alongside(run: Run, *, validation: bool) -> bool:
    """Whether the judge mostly waits for a server, or has workers to itself, so that it can work beside the sampler."""
    section = run.recipe.judge(validation=validation)
    if section is None or not run.recipe.scale.overlap:
        return False
    if judges_in_units(run, section) and own_workers(section) is not None:
        return True
    parts = list(parts_of(section))
    served = any(is_waited_for(part) for part in parts)
    served &= not any(map(is_local, parts))
    served &= not judges_in_batches(section)  # one batch of all is better than one for each unit
    return served


class _Abandoned(Exception):
    """The sampler stopped, so that no more units will come."""


class Arriving:
    """Units to be judged, as the answers to their prompts are committed: in no fixed order, as a lost worker's come late."""

    def __init__(self, candidates: Candidates, units: Sequence[Unit], abandoned: threading.Event):
        self._groups = [units for g in candidates.groups for units in (g.responses, g.logprobs) if units is not None]
        self._remote = any(on_store(units.folder) for units in self._groups)
        self._waiting = {unit.index: unit for unit in units}
        self._here: deque[Unit] = deque()
        self._abandoned = abandoned

    def __len__(self) -> int:
        return len(self._waiting) + len(self._here)

    async def next(self) -> Unit | None:
        """The next whose answers are all there, None after the last. Raises where no more will come."""
        while len(self):
            if self._abandoned.is_set():
                raise _Abandoned
            if not self._here:
                await asyncio.to_thread(self._look)
            if self._here:
                return self._here.popleft()
            await asyncio.sleep(STORE_POLL_SECONDS if self._remote else POLL_SECONDS)
        return None

    def give_back(self, unit: Unit) -> None:
        self._here.appendleft(unit)

    async def all_here(self) -> list[Unit]:
        """Every unit whose answers are there, at least one; none after the last."""
        first = await self.next()
        if first is None:
            return []
        found = [first, *self._here]
        self._here.clear()
        return found

    def _look(self) -> None:
        """One listing of each folder, however many units there are."""
        there = [{file.name for file in files_in(units.folder, "*.parquet")} for units in self._groups]
        for index in list(self._waiting):
            if all(units.file(index).name in names for units, names in zip(self._groups, there, strict=True)):
                self._here.append(self._waiting.pop(index))


class _Alongside:
    def __init__(self, run: Run, candidates: Candidates):
        self.run, self.candidates = run, candidates
        stage, _, units = judge_stage(run, candidates)
        self.title = f"iteration {candidates.iteration}: {stage.name}"
        self.ahead = None if candidates.validation else Ahead(run, Judgments(candidates, units))
        self.abandoned = threading.Event()
        self.error: Exception | None = None
        self.judged = 0
        self.workers: WorkEngine | None = None
        self.role: Role | None = None
        section = run.recipe.judge(validation=candidates.validation)
        if section is not None and judges_in_units(run, section):
            self.workers, self.role = judge_workers(run, section), judge_role(run, section, candidates)
        self.thread = threading.Thread(target=self._work, name="judge", daemon=True)

    def start(self) -> None:
        if self.workers is not None:
            self.workers.start()
        self.thread.start()

    def watch(self) -> str:
        if self.error is not None:
            raise self.error
        while self.ahead is not None and self.ahead.pairs():
            pass
        return f"{self.judged} judged" if self.judged else ""

    def follow(self) -> None:
        """All is sampled: wait for the judge, doing beside it what comes next. What it leaves undone the next stages do."""
        left = self.candidates.part.prompts - self.judged
        if left:
            engine_of(self.run).pause()
        with progress(self.title, left, "prompts") if left else nullcontext(lambda number, note="": None) as advance:
            shown = self.judged
            while self.thread.is_alive():
                busy = self.ahead is not None and self.ahead.step()
                advance(self.judged - shown, "")
                shown = self.judged
                if not busy:
                    self.thread.join(POLL_SECONDS)
            advance(self.judged - shown, "")
        if self.workers is not None:
            self.workers.release()
        if self.ahead is not None and self.error is None:
            self.ahead.leave()

    def _work(self) -> None:
        try:
            asyncio.run(self._judge())
        except _Abandoned:
            pass
        except Exception as error:  # noqa: BLE001 - raised in the sampler's thread
            self.error = error

    async def _judge(self) -> None:
        stage, _, units = judge_stage(self.run, self.candidates)
        part = self.candidates.part
        work = [Unit(index, part.file, units.file(index)) for index in range(part.units)]
        arriving = Arriving(self.candidates, undone(work), self.abandoned)
        first = await arriving.next()
        assert first is not None
        arriving.give_back(first)
        with stage.clock() as tick:

            def done(count: int) -> None:
                self.judged += count
                tick()

            if self.workers is None or self.role is None:
                await judge_units(self.run, self.candidates, len(arriving), arriving.next, done)
            else:
                await self._judge_on(self.workers, self.role, stage, arriving, done)

    async def _judge_on(
        self, workers: WorkEngine, role: Role, stage: Stage, arriving: Arriving, done: Callable[[int], None]
    ) -> None:
        """Give the judge's own workers what is there, again and again. Between two rounds those that are done first wait for the
        last one's unit; the more the judge lags behind, the longer its rounds are."""
        open_stage(stage.folder, self.candidates.part.units, stage.names())
        seconds = 0.0
        while units := await arriving.all_here():
            for _, facts in workers.run(role, [replace(unit, stage=stage.folder) for unit in units]):
                seconds += facts.get("engine_seconds", 0.0)
                done(int(facts.get("prompts", 0)))
                if self.abandoned.is_set():
                    raise _Abandoned
        self.run.leave(engine_seconds(stage), seconds)
