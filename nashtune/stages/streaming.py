"""Judging that begins with the first finished unit of samples, not after the last."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nashtune import recipe
from nashtune.judging.registry import judges_in_batches, parts_of
from nashtune.run import Run
from nashtune.scale.local import Unit
from nashtune.stages.candidates import Candidates
from nashtune.stages.endpoints import check_endpoints
from nashtune.stages.judging import judge_stage, judge_units

POLL_SECONDS = 0.1
LOCAL = (recipe.SelfOracle, recipe.RewardModelOracle, recipe.PreferenceModelOracle)
"""Oracles that would compete with the sampler for memory and processors."""

Watch = Callable[[], str]
"""Called by the sampler after each unit: raises what stopped the judge, returns a note for the progress line."""


@contextmanager
def judged_alongside(run: Run, candidates: Candidates) -> Iterator[Watch]:
    """While the body samples the last group of ``candidates``, judge what is complete; ends when all is judged.

    It only commits the judging stage's units, the same as judging afterwards would; the stage itself is recorded by
    ``judge``. An error in the body stops it, once the calls in flight have their replies.
    """
    if not _worthwhile(run, candidates):
        yield lambda: ""
        return
    check_endpoints(run, candidates.iteration, run.recipe.judge(validation=candidates.validation))
    judging = _Alongside(run, candidates)
    judging.thread.start()
    try:
        yield judging.watch
    except BaseException:  # Ctrl-C too: the thread must not go on alone
        judging.abandoned.set()
        judging.thread.join()
        raise
    judging.thread.join()
    judging.watch()


def _worthwhile(run: Run, candidates: Candidates) -> bool:
    """Whether the judge mostly waits for a server, and has not judged already."""
    section = run.recipe.judge(validation=candidates.validation)
    if section is None:
        return False
    parts = list(parts_of(section))
    stage, _, units = judge_stage(run, candidates)
    todo = not all(units.file(index).exists() for index in range(candidates.part.units))
    served = any(hasattr(part, "engine") or isinstance(part, recipe.PeopleOracle) for part in parts)
    served &= not any(isinstance(part, LOCAL) for part in parts)
    served &= not judges_in_batches(section)  # one batch of all is better than one for each unit
    return served and todo and not stage.file.exists() and run.recipe.scale.overlap


class _Abandoned(Exception):
    """The sampler stopped, so that no more units will come."""


class _Alongside:
    def __init__(self, run: Run, candidates: Candidates):
        self.run, self.candidates = run, candidates
        self.abandoned = threading.Event()
        self.error: Exception | None = None
        self.judged = 0
        self.thread = threading.Thread(target=self._work, name="judge", daemon=True)

    def watch(self) -> str:
        if self.error is not None:
            raise self.error
        return f"{self.judged} judged" if self.judged else ""

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
        todo = [unit for unit in work if not unit.target.exists()]
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
        while not all(file.exists() for file in files):
            if self.abandoned.is_set():
                raise _Abandoned
            await asyncio.sleep(POLL_SECONDS)
