"""What the iteration's next steps can do while the judge is still at work: pairs, the trainer's model, reference log-probs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nashtune import recipe
from nashtune.judging.registry import parts_of
from nashtune.run import Run
from nashtune.stages.candidates import Judgments
from nashtune.stages.pairing import BEGUN, PairMaker
from nashtune.stages.training import job_without_pairs
from nashtune.stages.training_order import JudgedOrder, PairTokens, told
from nashtune.stages.work import HEAD_START, engine_of

if TYPE_CHECKING:
    from nashtune.training.head_start import HeadStart


class Ahead:
    """Follows a judge through its committed units. Everything is left in the run for the stages that ask for it, which do
    themselves whatever is not there: the results are the same."""

    def __init__(self, run: Run, judgments: Judgments):
        self._run, self._judgments = run, judgments
        self._maker = PairMaker(run, judgments)
        self._head_start: HeadStart | None = None
        self._order: JudgedOrder | None = None
        self._tokens: PairTokens | None = None

    def pairs(self) -> bool:
        """Make the pairs of one more judged unit, if there is one. Cheap enough for between two units of samples. Not where
        their tokens are wanted for reference log-probs, once the trainer's model is there."""
        if self._early or not self._maker.ready:
            return False
        self._next_unit()
        return True

    def step(self) -> bool:
        """Something that has to be done anyway; False where there is nothing now. To be called when sampling is over: the
        sampler's models make room for the trainer's."""
        if not self._trains:
            return self.pairs()
        if self._head_start is None:
            self._load()
            return True
        if self._head_start.step():
            return True
        if not self._maker.ready:
            return False
        self._next_unit()
        return True

    def _next_unit(self) -> None:
        for prompt, answers, pairs in self._maker.next_unit():
            if self._head_start is not None and self._order is not None and self._tokens is not None:
                used = told(self._run.recipe.objective, self._order.add(pairs))
                self._head_start.add(list(self._tokens.of(used, [prompt], answers)))

    def leave(self) -> None:
        """Hand over to the stages that follow."""
        self._run.leave(BEGUN, self._maker)
        if self._head_start is not None:
            self._run.leave(HEAD_START, self._head_start)

    @property
    def _trains(self) -> bool:
        """Whether the trainer's model may wait in memory: not for people, who take days, not where there is no model, and not
        where other processes will train, or workers of this machine need the memory for reference log-probs."""
        settings = self._run.recipe
        waits = any(isinstance(part, recipe.PeopleOracle) for part in parts_of(settings.oracle))
        return not waits and settings.sampling.engine != "scripted" and settings.scale.trains_here and self._references

    @property
    def _early(self) -> bool:
        """Whether batches are complete before all pairs are known."""
        return self._trains and self._run.recipe.train.order == "judged"

    @property
    def _references(self) -> bool:
        """Whether the trainer computes its references. In the order of judging it does so while the judge is at work, which no
        worker of this machine could do any sooner."""
        scale = self._run.recipe.scale
        return not scale.references_by_workers or (scale.engine == "local" and self._run.recipe.train.order == "judged")

    def _load(self) -> None:
        from nashtune.training.head_start import HeadStart

        engine_of(self._run).release()
        iteration = self._judgments.candidates.iteration
        self._head_start = HeadStart(job_without_pairs(self._run, iteration))
        self._head_start.load()
        if self._early:
            self._order, self._tokens = JudgedOrder(self._run, iteration), PairTokens(self._run)
