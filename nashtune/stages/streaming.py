"""Judging that begins with the first finished unit of samples, not after the last; and what can follow it at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from nashtune import recipe
from nashtune.judging.registry import judges_in_batches, parts_of
from nashtune.progress import progress
from nashtune.run import Run
from nashtune.scale.local import Unit
from nashtune.stages.ahead import Ahead
from nashtune.stages.candidates import Candidates, Judgments
from nashtune.stages.endpoints import check_endpoints
from nashtune.stages.judging import judge_stage, judge_units
from nashtune.store.objects import absent, is_there, on_store, undone

POLL_SECONDS = 0.1
STORE_POLL_SECONDS = 1.0
"""Between requests to an object store, which are paid for."""
LOCAL = (recipe.SelfOracle, recipe.RewardModelOracle, recipe.PreferenceModelOracle)
"""Oracles that would compete with the sampler for memory and processors."""

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
    judging.thread.start()
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
    """Whether the judge mostly waits for a server, so that it can work beside the sampler."""
    section = run.recipe.judge(validation=validation)
    if section is None or not run.recipe.scale.overlap:
        return False
    parts = list(parts_of(section))
    served = any(_is_waited_for(part) for part in parts)
    served &= not any(isinstance(part, LOCAL) for part in parts)
    served &= not judges_in_batches(section)  # one batch of all is better than one for each unit
    return served


def _is_waited_for(part: recipe.Oracle) -> bool:
    if isinstance(part, recipe.ScriptedOracle):
        return part.latency_s > 0
    return hasattr(part, "engine") or isinstance(part, recipe.PeopleOracle)


class _Abandoned(Exception):
    """The sampler stopped, so that no more units will come."""


class _Alongside:
    def __init__(self, run: Run, candidates: Candidates):
        self.run, self.candidates = run, candidates
        stage, _, units = judge_stage(run, candidates)
        self.title = f"iteration {candidates.iteration}: {stage.name}"
        self.ahead = None if candidates.validation else Ahead(run, Judgments(candidates, units))
        self.abandoned = threading.Event()
        self.error: Exception | None = None
        self.judged = 0
        self.thread = threading.Thread(target=self._work, name="judge", daemon=True)

    def watch(self) -> str:
        if self.error is not None:
            raise self.error
        while self.ahead is not None and self.ahead.pairs():
            pass
        return f"{self.judged} judged" if self.judged else ""

    def follow(self) -> None:
        """All is sampled: wait for the judge, doing beside it what comes next. What it leaves undone the next stages do."""
        left = self.candidates.part.prompts - self.judged
        with progress(self.title, left, "prompts") if left else nullcontext(lambda number, note="": None) as advance:
            shown = self.judged
            while self.thread.is_alive():
                busy = self.ahead is not None and self.ahead.step()
                advance(self.judged - shown, "")
                shown = self.judged
                if not busy:
                    self.thread.join(POLL_SECONDS)
            advance(self.judged - shown, "")
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
        todo = undone(work)
        await self._ready(todo[0])
        with stage.clock() as tick:

            def done(count: int) -> None:
                self.judged += count
                tick()

            await judge_units(self.run, self.candidates, todo, done, self._ready)

    async def _ready(self, unit: Unit) -> None:
        """Wait until all answers to the unit's prompts are committed."""
        groups = self.candidates.groups
        files = [units.file(unit.index) for g in groups for units in (g.responses, g.logprobs) if units is not None]
        remote = any(map(on_store, files))
        while True:
            if self.abandoned.is_set():
                raise _Abandoned
            if await asyncio.to_thread(_all_there, files) if remote else _all_there(files):
                return
            await asyncio.sleep(STORE_POLL_SECONDS if remote else POLL_SECONDS)


def _all_there(files: Sequence[Path]) -> bool:
    return all(is_there(file) for file in files)
