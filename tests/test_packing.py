"""Plans are pure functions of the pairs; packed rows say which position predicts which answer token."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nashtune.errors import TrainingError
from nashtune.training.packing import Plan, TrainingPair, fill, input_tokens, level, pack, plan_steps, share


def pair(name: str, prompt: int, chosen: int, rejected: int) -> TrainingPair:
    return TrainingPair(name, (1,) * prompt, (2,) * chosen, (3,) * rejected, 1.0, 0.0, None, None)


def some_pairs(count: int, seed: int = 0) -> list[TrainingPair]:
    draw = random.Random(seed)
    return [pair(f"p{i}", draw.randint(1, 30), draw.randint(1, 60), draw.randint(1, 60)) for i in range(count)]


def plan(pairs: list[TrainingPair], *, epochs: int = 1, seed: int = 0, batch_size: int = 4, tokens: int = 200) -> Plan:
    return plan_steps(pairs, batch_size=batch_size, microbatch_tokens=tokens, epochs=epochs, seed=seed)


def ids(pairs: list[TrainingPair], made: Plan) -> list[list[list[str]]]:
    return [[[pairs[i].id for i in micro] for micro in made.batches[batch]] for batch in made.order]


def test_every_pair_once_an_epoch_in_batches_of_the_size_asked_for() -> None:
    made = plan(some_pairs(18))
    assert sorted(sum(map(len, batch)) for batch in made.batches) == [3, 3, 4, 4, 4]  # no small last batch
    assert sorted(i for batch in made.batches for micro in batch for i in micro) == list(range(18))
    assert sorted(made.order) == [0, 1, 2, 3, 4]


def test_plan_does_not_depend_on_the_order_of_pairs() -> None:
    pairs = some_pairs(30)
    mixed = random.Random(5).sample(pairs, len(pairs))
    assert ids(pairs, plan(pairs, epochs=3)) == ids(mixed, plan(mixed, epochs=3))


def test_epochs_differ_in_the_order_of_batches_only() -> None:
    made = plan(some_pairs(40), epochs=3)
    epochs = [made.order[start : start + 10] for start in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(epochs)) == 3
    assert made.batches == plan(some_pairs(40), epochs=1).batches


def test_seed_changes_the_plan() -> None:
    assert plan(some_pairs(30), seed=1) != plan(some_pairs(30), seed=2)
    assert plan(some_pairs(30), seed=1) == plan(some_pairs(30), seed=1)


def test_microbatches_keep_to_the_budget_and_sort_by_cost() -> None:
    pairs = some_pairs(32)
    made = plan(pairs, batch_size=16, tokens=150)
    for batch in made.batches:
        cost = [[input_tokens(item) for item in share([pairs[i] for i in micro])[0]] for micro in batch]
        assert all(sum(c) <= 150 or len(c) == 1 for c in cost)
        assert all(a <= b for a, b in pairwise(max(c) for c in cost))


@pytest.mark.parametrize("tokens", [512, 1024, 4096])
def test_microbatches_are_level_and_few(tokens: int) -> None:
    """Pairs of 20 to 200 tokens an answer, as on the quickstart: no padding, as few passes as the tokens ask for and at most one
    more, all about as large."""
    draw = random.Random(3)
    sizes = [(draw.randint(30, 60), draw.randint(20, 200), draw.randint(20, 200)) for _ in range(256)]
    pairs = [replace(pair(f"p{i}", *size), prompt_ids=(i + 4,) * size[0]) for i, size in enumerate(sizes)]
    for batch in plan(pairs, batch_size=64, tokens=tokens).batches:
        cost = [sum(input_tokens(pairs[i].answers()) for i in micro) for micro in batch]
        packed = [pack([pairs[i].answers() for i in micro]).input_ids.numel() for micro in batch]
        assert packed == cost
        largest = max(input_tokens(pairs[i].answers()) for micro in batch for i in micro)
        assert len(batch) <= -(-sum(cost) // (tokens - largest // 2)) + 1
        assert max(cost) <= min(tokens, sum(cost) / len(batch) + largest)


def test_pairs_of_a_prompt_stay_together() -> None:
    pairs = [TrainingPair(f"{n}-{k}", (n,), (1, k), (2, k), 1.0, 0.0, None, None) for k in range(3) for n in range(20)]
    for batch in plan(pairs, batch_size=6, tokens=24).batches:
        prompts = [[pairs[i].prompt_ids for i in micro] for micro in batch]
        assert len({p for micro in prompts for p in micro}) == 2  # 6 pairs of 2 prompts
        assert all(a.isdisjoint(b) for a, b in pairwise(map(set, prompts)))


def test_shared_prompts_and_answers_are_computed_once() -> None:
    a = TrainingPair("a", (1, 2), (5, 6), (7,), 1.0, 0.0, None, None)
    b = TrainingPair("b", (1, 2), (5, 6), (8, 9), 1.0, 0.0, None, None)
    c = TrainingPair("c", (3,), (5, 6), (7,), 1.0, 0.0, None, None)
    items, places = share([a, c, b])
    assert items == [((1, 2), ((5, 6), (7,), (8, 9))), ((3,), ((5, 6), (7,)))]
    assert places == [0, 1, 3, 4, 0, 2]
    assert share([a, b], 1) == ([((1, 2), ((5, 6),))], [0, 0])


def test_cost_counts_the_shared_prompt_once_and_no_last_tokens() -> None:
    assert input_tokens(pair("a", 10, 5, 7).answers()) == 10 + 4 + 6
    assert input_tokens(pair("a", 10, 5, 7).answers(1)) == 10 + 4


def test_bad_pairs_are_refused() -> None:
    with pytest.raises(TrainingError, match="0 pairs"):
        plan([])
    with pytest.raises(TrainingError, match="pair id 'b' occurs more than once"):
        plan([pair("a", 1, 1, 1), pair("b", 1, 1, 1), pair("b", 2, 2, 2)])


def test_fill_leaves_what_exceeds_the_budget_alone() -> None:
    assert fill([0, 1, 2, 3], [4, 6, 11, 1], 10) == [(0, 1), (2,), (3,)]
    assert fill([0, 1], [0, 0], -3) == [(0,), (1,)]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 120))
def test_level_needs_no_more_groups_and_no_larger_ones(cost: list[int], budget: int) -> None:
    items = list(range(len(cost)))
    greedy, even = fill(items, cost, budget), level(items, cost, budget)
    assert [i for group in even for i in group] == items
    assert len(even) == len(greedy)
    assert max(sum(cost[i] for i in g) for g in even) <= max(sum(cost[i] for i in g) for g in greedy)


def test_level_evens_out() -> None:
    assert level(range(4), [5, 5, 5, 5], 15) == [(0, 1), (2, 3)]


def test_packed_row_by_hand() -> None:
    # Row: prompt 5 6 7, chosen 10 (11), rejected 20 21 (22); then prompt 8, chosen (30), rejected 40 (41).
    first = TrainingPair("a", (5, 6, 7), (10, 11), (20, 21, 22), 1.0, 0.0, None, None)
    second = TrainingPair("b", (8,), (30,), (40, 41), 1.0, 0.0, None, None)
    batch = pack([first.answers(), second.answers()])
    assert batch.input_ids.tolist() == [[5, 6, 7, 10, 20, 21, 8, 40]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 3, 4, 0, 1]]
    assert batch.targets.tolist() == [10, 11, 20, 21, 22, 30, 40, 41]
    assert batch.predicting.tolist() == [2, 3, 2, 4, 5, 6, 6, 7]
    assert batch.segments.tolist() == [0, 0, 1, 1, 1, 2, 3, 3]
    assert batch.responses == 4


def test_empty_answers_have_no_targets() -> None:
    batch = pack([((5, 6), ((), (7,)))])
    assert batch.input_ids.tolist() == [[5, 6]]
    assert (batch.targets.tolist(), batch.predicting.tolist(), batch.segments.tolist()) == ([7], [1], [1])
