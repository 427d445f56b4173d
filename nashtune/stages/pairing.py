"""Line 6 of Algorithm 2: large-margin pairs, unit by unit as judgments are committed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nashtune.dynamics import Dynamics
from nashtune.errors import PairError
from nashtune.pairs import PairBuilder
from nashtune.recipe import identity
from nashtune.records import Pair, Prompt, Response
from nashtune.run import Run
from nashtune.stages.candidates import Judgments
from nashtune.store import tables
from nashtune.store.files import write_atomic
from nashtune.store.objects import is_there

BEGUN = "pairs begun"
"""Where pairs that were begun while the judge was at work are left."""
Made = tuple[Prompt, list[Response], list[Pair]]


def make_pairs(run: Run, judgments: Judgments) -> list[Pair]:
    """The iteration's new pairs; counts of what gave none go into the stage's record. Raises PairError if there are none."""
    iteration = judgments.candidates.iteration
    stage = run.stage(iteration, "pairs")
    inputs = (judgments.units.key, identity(run.recipe.pairs), run.recipe.seed)
    begun: PairMaker | None = run.take(BEGUN)
    if not stage.done(*inputs):
        maker = begun if begun is not None and begun.judgments == judgments else PairMaker(run, judgments)
        with stage.clock():
            facts = maker.finish()
        stage.finish(inputs, facts)
    pairs = tables.read(Pair, stage.folder / "pairs.parquet")
    if not pairs:
        counts = stage.record()["facts"]["dropped"]
        raise PairError(
            f"iteration {iteration}: not one training pair from {judgments.candidates.part.prompts} prompts ({counts}). "
            "Accepted: a pair rule and margins that the oracle's verdicts can meet (section `pairs`); `nashtune status` "
            "shows the best iteration so far"
        )
    return pairs


class PairMaker:
    """Makes an iteration's pairs of judged units, one unit in memory at a time, in the order of the prompts."""

    def __init__(self, run: Run, judgments: Judgments):
        self.judgments = judgments
        self._folder = run.stage(judgments.candidates.iteration, "pairs").folder
        self._next = 0
        self._dynamics = Dynamics()
        self._builder = PairBuilder(run.recipe.pairs, judgments.candidates.iteration, run.recipe.seed)
        # Beside the pairs, the prompts and responses they name are kept, so that later iterations can replay them.
        self._prompts, self._responses = tables.Encoder(Prompt), tables.Encoder(Response)

    @property
    def ready(self) -> bool:
        """Whether the next unit is judged."""
        return self._next < self.judgments.candidates.part.units and is_there(self.judgments.units.file(self._next))

    def next_unit(self) -> Iterator[Made]:
        """The prompts of the next unit that gave pairs, with the answers in them; to be used up before the next call."""
        for prompt, answers, judgment in self.judgments.unit(self._next):
            self._dynamics.add(prompt, answers, judgment)
            pairs = self._builder.add(prompt, answers, judgment)
            wanted = {i for pair in pairs for i in (pair.chosen_id, pair.rejected_id)}
            named = [answer for answer in answers if answer.id in wanted]
            if pairs:
                self._prompts.add(prompt)
                for answer in named:
                    self._responses.add(answer)
                yield prompt, named, pairs
        self._next += 1

    def finish(self) -> dict[str, Any]:
        """Make what is left and write it all; returns the stage's facts."""
        while self._next < self.judgments.candidates.part.units:
            for _ in self.next_unit():
                pass
        made = self._builder.finish()
        write_atomic(self._folder / "pairs.parquet", tables.encode(Pair, made.pairs))
        write_atomic(self._folder / "prompts.parquet", self._prompts.finish())
        write_atomic(self._folder / "responses.parquet", self._responses.finish())
        return {
            "kinds": made.kinds,
            "margins": made.margins,
            "dropped": made.dropped,
            "dynamics": self._dynamics.columns(),
        }
