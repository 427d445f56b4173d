"""Which pairs are trained on, in which order, and with which tokens: new ones, and replayed ones of earlier iterations."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from nashtune.objectives import WORDS
from nashtune.pairs import TOLERANCE, replay
from nashtune.recipe import ObjectiveSection, ReplaySection
from nashtune.records import Pair, Prompt, Response
from nashtune.run import Run
from nashtune.seeds import seed_for
from nashtune.stages.work import policy_of
from nashtune.store import tables
from nashtune.training.packing import TrainingPair


def in_training_order(run: Run, iteration: int, new: Iterable[Pair]) -> list[Pair]:
    """An iteration's new pairs with those replayed, as they are handed to the trainer."""
    recipe, new = run.recipe, list(new)
    if recipe.train.order == "judged":
        order = JudgedOrder(run, iteration)
        return [pair for _, group in groupby(new, lambda p: p.prompt_id) for pair in order.add(list(group))]
    used = [*new, *replay(recipe.replay, len(new), _earlier(run, iteration), _replay_seed(run, iteration))]
    return one_per_positive(used) if recipe.objective.row.sides == 1 else used


class JudgedOrder:
    """New pairs in the order of their prompts, told one prompt at a time, each followed by the replayed pairs that are due."""

    def __init__(self, run: Run, iteration: int):
        seed = _replay_seed(run, iteration)
        self._replay = ReplayInTurn(run.recipe.replay, _earlier(run, iteration), seed)
        self._one_sided = run.recipe.objective.row.sides == 1
        self._seen: set[str] = set()

    def add(self, new: Sequence[Pair]) -> list[Pair]:
        """What is trained on next, once a prompt's new pairs are known."""
        due = [*new, *self._replay.due(len(new))]
        if not self._one_sided:
            return due
        fresh = [pair for pair in one_per_positive(due) if pair.chosen_id not in self._seen]
        self._seen |= {pair.chosen_id for pair in fresh}
        return fresh


class ReplayInTurn:
    """The pairs that ``pairs.replay`` would choose for n new ones, given out while n grows: of iteration t-1 as many as the
    fraction of n, and so on, in an order by seed. With the fraction "all" they come first of all."""

    def __init__(self, section: ReplaySection, earlier: Sequence[Sequence[Pair]], seed: int):
        self._section = section
        self._waiting = [_by_seed(pairs, seed) for pairs in earlier]
        self._given = [0] * len(earlier)
        self._ids: set[str] = set()
        self._new = 0

    def due(self, new: int) -> list[Pair]:
        """What is replayed after ``new`` more new pairs."""
        self._new += new
        found: list[Pair] = []
        for age, waiting in enumerate(self._waiting):
            while waiting and self._given[age] < self._limit(age):
                pair = heapq.heappop(waiting)[-1]
                if pair.id not in self._ids:
                    self._ids.add(pair.id)
                    self._given[age] += 1
                    found.append(pair)
        return found

    def _limit(self, age: int) -> float:
        fraction = self._section.fraction
        if fraction == "all":
            return math.inf
        return math.floor(fraction * self._section.decay**age * self._new + TOLERANCE)


def _by_seed(pairs: Sequence[Pair], seed: int) -> list[tuple[int, int, Pair]]:
    heap = [(seed_for(seed, pair.id), place, pair) for place, pair in enumerate(pairs)]
    heapq.heapify(heap)
    return heap


def _earlier(run: Run, iteration: int) -> list[list[Pair]]:
    """Pairs of earlier iterations, the last one's first."""
    return [tables.read(Pair, run.stage(t, "pairs").folder / "pairs.parquet") for t in range(iteration - 1, 0, -1)]


def _replay_seed(run: Run, iteration: int) -> int:
    return seed_for(run.recipe.seed, "replay", iteration)


def one_per_positive(pairs: Iterable[Pair]) -> list[Pair]:
    """Each positive once, by its first pair, for objectives that do not read negatives."""
    first: dict[str, Pair] = {}
    for pair in pairs:
        first.setdefault(pair.chosen_id, pair)
    return list(first.values())


def told(objective: ObjectiveSection, pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs of which the oracle said all that the objective reads."""
    words = words_read(objective)
    return [pair for pair in pairs if all(getattr(pair, word) is not None for word in words)]


def words_read(objective: ObjectiveSection) -> list[str]:
    """The fields of a pair that the objective reads."""
    return [f"{WORDS[n]}_{side}" for n in objective.row.needs(objective.settings) for side in ("chosen", "rejected")]


class PairTokens:
    """Token ids of pairs' prompts and answers, as sampled."""

    def __init__(self, run: Run):
        from nashtune.model.loading import load_tokenizer

        self._run = run
        self._tokenizer = load_tokenizer(policy_of(run, 0))
        self._prompts: dict[str, tuple[int, ...]] = {}
        self._answers: dict[str, tuple[int, ...]] = {}
        self._read: set[int] = set()

    def of(
        self, pairs: Sequence[Pair], prompts: Iterable[Prompt] = (), answers: Iterable[Response] = ()
    ) -> Iterator[Any]:
        """Training pairs. What is not among ``prompts`` and ``answers`` is read from where earlier iterations, and this one
        once its pairs are made, keep it."""
        rendered, tokens = self._rendered(prompts), {r.id: r.token_ids for r in answers}
        for pair in pairs:
            if pair.chosen_id not in tokens:
                self._read_iteration(pair.iteration)
            yield TrainingPair(
                id=pair.id,
                prompt_ids=rendered.get(pair.prompt_id) or self._prompts[pair.prompt_id],
                chosen_ids=tokens[pair.chosen_id] if pair.chosen_id in tokens else self._answers[pair.chosen_id],
                rejected_ids=tokens[pair.rejected_id]
                if pair.rejected_id in tokens
                else self._answers[pair.rejected_id],
                r_chosen=pair.r_chosen,
                r_rejected=pair.r_rejected,
                score_chosen=pair.score_chosen,
                score_rejected=pair.score_rejected,
                p_chosen=pair.p_chosen,
                p_rejected=pair.p_rejected,
            )

    def _read_iteration(self, born: int) -> None:
        if born in self._read:
            return
        folder = self._run.stage(born, "pairs").folder
        self._prompts |= self._rendered(tables.read(Prompt, folder / "prompts.parquet"))
        self._answers |= {r.id: r.token_ids for r in tables.read(Response, folder / "responses.parquet")}
        self._read.add(born)

    def _rendered(self, prompts: Iterable[Prompt]) -> dict[str, tuple[int, ...]]:
        from nashtune.model.loading import render

        return {p.id: tuple(render(self._tokenizer, p.messages)) for p in prompts}
