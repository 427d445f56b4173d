"""Which pairs go into which optimizer step and micro-batch, and how a micro-batch is laid out as one row of tokens."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from nashtune.errors import TrainingError
from nashtune.seeds import seed_for

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from nashtune.model.attention import PackedKernel, PackedLayout

Answers = tuple[Sequence[int], Sequence[Sequence[int]]]
"""A prompt's token ids, and those of each of its answers."""


@dataclass(frozen=True, slots=True)
class TrainingPair:
    """A pair as training needs it: token ids as sampled (never made again from text), win rates, scores and estimates of
    P(y beats pi_t)."""

    id: str
    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    """Empty only for sft."""
    r_chosen: float
    r_rejected: float
    score_chosen: float | None
    score_rejected: float | None
    p_chosen: float | None = None
    p_rejected: float | None = None

    def answers(self, sides: int = 2) -> Answers:
        """The prompt with both answers, or with the chosen one alone (``sides`` 1)."""
        return self.prompt_ids, (self.chosen_ids, self.rejected_ids)[:sides]


@dataclass(frozen=True, slots=True)
class Plan:
    """Optimizer steps over a set of pairs. Indices are positions in the sequence of pairs that was planned."""

    batches: tuple[tuple[tuple[int, ...], ...], ...]
    """batch -> micro-batch -> pair. The same in every epoch, so stored log-probs fit the layout they came from."""
    order: tuple[int, ...]
    """step -> batch."""

    @property
    def steps(self) -> int:
        return len(self.order)


def input_tokens(answers: Answers) -> int:
    """Tokens computed for one shared prompt and its answers; an answer's last token is predicted but never an input."""
    prompt, responses = answers
    return len(prompt) + sum(max(len(r) - 1, 0) for r in responses)


def packed_tokens(pairs: Sequence[TrainingPair], sides: int = 2) -> int:
    """Tokens computed for pairs of one micro-batch, what they have in common once."""
    return sum(map(input_tokens, share(pairs, sides)[0]))


def shortest(pairs: Sequence[TrainingPair]) -> TrainingPair:
    """The pair that costs least to compute, for passes whose result nobody reads."""
    return min(pairs, key=lambda pair: (packed_tokens([pair]), pair.id))


def plan_steps(
    pairs: Sequence[TrainingPair],
    *,
    batch_size: int,
    microbatch_tokens: int,
    epochs: int,
    seed: int,
    sides: int = 2,
    shuffle: bool = True,
    processes: int = 1,
) -> Plan:
    """A pure function of its arguments. Prompts are shuffled by a hash of (seed, ids of their pairs), and the pairs of a
    prompt stay together, so that ``share`` computes prompt and repeated answers once. The pairs are cut into batches of
    equal size (to one pair, at most ``batch_size``), each batch into micro-batches of prompts of similar cost and at most
    ``microbatch_tokens`` tokens (a costlier prompt is alone). Every epoch visits the same batches in its own order.

    Without ``shuffle`` the pairs stay in their order and are cut by ``cuts_in_order``.

    ``processes`` changes no batch and no order. Where several share a batch it has as many micro-batches as they need to
    be busy to the end, and the costliest come first, so that every process's [rank::processes] is of like cost.

    Raises TrainingError where there are no pairs or an id occurs twice.
    """
    if not pairs:
        raise TrainingError("there are 0 pairs to train on; accepted: at least 1")
    ids = [pair.id for pair in pairs]
    if len(set(ids)) < len(ids):
        raise TrainingError(f"pair id {next(i for i in ids if ids.count(i) > 1)!r} occurs more than once")
    count = -(-len(pairs) // batch_size)
    if shuffle:
        sequence, cuts = _shuffled(pairs, seed), [len(pairs) * n // count for n in range(count + 1)]
    else:
        sequence, cuts = list(range(len(pairs))), cuts_in_order(len(pairs), batch_size)
    batches = tuple(
        tuple(_microbatches(sequence[start:end], pairs, microbatch_tokens, sides, processes))
        for start, end in pairwise(cuts)
    )
    order = [
        batch
        for epoch in range(epochs)
        for batch in sorted(range(len(batches)), key=lambda b: seed_for(seed, "epoch", epoch, b))
    ]
    return Plan(batches, tuple(order))


def _shuffled(pairs: Sequence[TrainingPair], seed: int) -> list[int]:
    """Places of the pairs, their prompts in an order by seed."""
    rank = [(seed_for(seed, "pairs", pair.id), pair.id) for pair in pairs]
    first: dict[tuple[int, ...], tuple[int, str]] = {}
    for pair, place in zip(pairs, rank, strict=True):
        first[pair.prompt_ids] = min(place, first.get(pair.prompt_ids, place))
    return sorted(range(len(pairs)), key=lambda i: (first[pairs[i].prompt_ids], rank[i]))


def cuts_in_order(count: int, batch_size: int) -> list[int]:
    """Where ``count`` pairs in a fixed order are cut into as few batches as can be: all full but the last two, which share
    what is left evenly (a step on two leftover pairs would be mostly noise). So the first n batches are full ones, whatever
    follows, once (n + 1) * batch_size pairs are there: see ``settled``."""
    batches = -(-count // batch_size)
    cuts = [batch_size * n for n in range(batches)] + [count]
    if batches > 1:
        cuts[-2] = (cuts[-3] + count) // 2
    return cuts


def settled(count: int, batch_size: int) -> int:
    """How many of the first batches ``cuts_in_order`` would cut the same whatever pairs came after these ``count``."""
    return max(0, count // batch_size - 1)


def _microbatches(
    batch: Sequence[int], pairs: Sequence[TrainingPair], budget: int, sides: int, processes: int
) -> Iterator[tuple[int, ...]]:
    """Cut a batch between prompts; each prompt costs what ``share`` leaves of its pairs."""
    groups = [list(group) for _, group in groupby(batch, key=lambda i: pairs[i].prompt_ids)]
    costs = [packed_tokens([pairs[i] for i in group], sides) for group in groups]
    similar = sorted(range(len(groups)), key=lambda g: (costs[g], pairs[groups[g][0]].id))
    cut = level(similar, costs, budget, processes)
    if processes > 1:
        cut.sort(key=lambda chosen: -sum(costs[g] for g in chosen))
    for chosen in cut:
        yield tuple(i for g in chosen for i in groups[g])


def share(pairs: Sequence[TrainingPair], sides: int = 2) -> tuple[list[Answers], list[int]]:
    """What has to be computed for ``pairs``: each distinct prompt once, with its distinct answers; and for every pair's
    answers in turn (``sides`` each) the place of that answer's log-prob in the result of ``response_logprobs``."""
    wanted = [(pair.prompt_ids, answer) for pair in pairs for answer in (pair.chosen_ids, pair.rejected_ids)[:sides]]
    found: dict[tuple[int, ...], dict[tuple[int, ...], None]] = {}
    for prompt, answer in wanted:
        found.setdefault(prompt, {})[answer] = None
    distinct = ((prompt, answer) for prompt, answers in found.items() for answer in answers)
    place = {key: number for number, key in enumerate(distinct)}
    return [(prompt, tuple(answers)) for prompt, answers in found.items()], [place[key] for key in wanted]


def fill(items: Sequence[int], cost: Sequence[int], budget: int) -> list[tuple[int, ...]]:
    """Cut ``items`` in their order into groups whose summed cost stays within ``budget`` (a costlier item is alone)."""
    groups: list[list[int]] = []
    used = budget + 1
    for item in items:
        if used + cost[item] > budget:
            groups.append([])
            used = 0
        groups[-1].append(item)
        used += cost[item]
    return [tuple(group) for group in groups]


def level(items: Sequence[int], cost: Sequence[int], budget: int, multiple: int = 1) -> list[tuple[int, ...]]:
    """As ``fill``, with the smallest budget that needs no more groups (rounded up to a ``multiple``): the same number of
    passes, less memory in each."""
    groups = -(-len(fill(items, cost, budget)) // multiple) * multiple
    smallest = bisect_left(range(budget), -groups, key=lambda b: -len(fill(items, cost, b)))
    return fill(items, cost, smallest)


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Prompts and their answers as one row of L input tokens, T of whose outputs predict the T answer tokens."""

    input_ids: Tensor
    """[1, L]"""
    position_ids: Tensor
    """[1, L]; an answer's positions start at its prompt's length."""
    layout: PackedLayout
    predicting: Tensor
    """[T] the position in [0, L) whose output predicts each answer token; a prompt's last token predicts the first
    token of all its answers."""
    targets: Tensor
    """[T] the answer tokens."""
    segments: Tensor
    """[T] which answer each target belongs to, counted through the batch."""
    responses: int
    """Number of answers."""


def pack(items: Sequence[Answers], device: torch.device | str = "cpu", kernel: PackedKernel = "auto") -> PackedBatch:
    """Lay prompts and answers out end to end, each prompt once. Every prompt needs a token; an answer may be empty."""
    import torch

    from nashtune.model.attention import Block, PackedLayout

    blocks: list[Block] = []
    inputs, predicting, targets, segments = [], [], [], []
    start, count = 0, 0
    for prompt, responses in items:
        branches = tuple(max(len(r) - 1, 0) for r in responses)
        inputs += prompt
        branch_start = start + len(prompt)
        for response, branch in zip(responses, branches, strict=True):
            inputs += response[:branch]
            if response:
                predicting += [start + len(prompt) - 1, *range(branch_start, branch_start + branch)]
            targets += response
            segments += [count] * len(response)
            branch_start += branch
            count += 1
        blocks.append(Block(len(prompt), branches))
        start = branch_start
    layout = PackedLayout(blocks, device, kernel)
    tensors = [torch.tensor(x, dtype=torch.long, device=device) for x in (inputs, predicting, targets, segments)]
    return PackedBatch(tensors[0][None], layout.position_ids, layout, *tensors[1:], responses=count)
