"""Pair building, replay and Table 2's columns, against values worked by hand."""

import random
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nashtune.dynamics import Dynamics, dynamics
from nashtune.errors import PairError
from nashtune.pairs import RULES, Item, PairSet, build_pairs, replay
from nashtune.recipe import PairsSection, ReplaySection
from nashtune.records import Judgment, Message, Pair, Prompt, Response
from nashtune.seeds import content_hash

PROMPT = Prompt.make([Message("user", "Name a river.")])


def response(name: str, text: str | None = None, defects: tuple[str, ...] = (), prompt: Prompt = PROMPT) -> Response:
    """A name starting with T is the teacher's."""
    source = "teacher" if name.startswith("T") else "student"
    return Response(name, prompt.id, 0, source, "p", text if text is not None else f"answer {name}", defects=defects)


def scored(scores: dict[str, float | None], defects: Sequence[str] = (), texts: dict[str, str] | None = None) -> Item:
    texts = texts or {}
    answers = [response(name, texts.get(name), ("repeated",) if name in defects else ()) for name in scores]
    return PROMPT, answers, Judgment(PROMPT.id, tuple(scores), "test", scores=tuple(scores.values()))


def compared(names: Sequence[str], matrix: Sequence[Sequence[float | None]], defects: Sequence[str] = ()) -> Item:
    answers = [response(name, defects=("empty",) if name in defects else ()) for name in names]
    return PROMPT, answers, Judgment(PROMPT.id, tuple(names), "test", matrix=tuple(map(tuple, matrix)))


def build(*items: Item, seed: int = 0, **settings_: Any) -> PairSet:
    return build_pairs(items, PairsSection.model_validate(settings_), iteration=2, seed=seed)


def names(pairs: PairSet) -> set[str]:
    return {f"{pair.chosen_id}>{pair.rejected_id}" for pair in pairs.pairs}


# Teacher 5; students 6, 5, 4, 3 and one the judge liked (6) that repeats itself.
SIX = scored({"T": 5, "a": 6, "b": 5, "c": 4, "d": 3, "e": 6}, defects=("e",))


def test_the_papers_rule_by_hand() -> None:
    result = build(SIX)
    assert names(result) == {
        *("T>d", "T>e"),  # 2 and 5 points; T>c has only 1, and the teacher needs 2
        *("a>T", "a>b", "a>c", "a>d", "a>e"),  # a student needs 1 point; b is a positive and a negative too
        *("b>c", "b>d", "b>e"),
    }
    assert result.kinds == {"T>S": 2, "S>T": 1, "S>S": 7, "T>T": 0}
    assert result.margins == pytest.approx({"T>S": (2 + 5) / 2, "S>T": 1, "S>S": (1 + 2 + 3 + 6 + 1 + 2 + 5) / 7})
    assert result.dropped == {"candidate: defect repeated": 1, "pair: margin too small": 1}
    assert [pair.margin for pair in result.pairs] == [6, 5, 5, 3, 2, 2, 2, 1, 1, 1]


def test_a_pair_carries_scores_win_rates_kind_and_content_id() -> None:
    pair = next(pair for pair in build(SIX).pairs if (pair.chosen_id, pair.rejected_id) == ("T", "e"))
    # T loses to a, ties with b, beats c, d and the automatic negative e, which itself counts as lowest: score 0, r 0.
    assert pair == Pair(content_hash("T", "e"), PROMPT.id, "T", "e", "T>S", 3.5 / 5, 0.0, 5, 0.0, 2, 3.5 / 5, 0.0)


def test_every_kind_of_pair() -> None:
    kinds = build(scored({"T1": 6, "T2": 4, "a": 6, "b": 3})).kinds
    assert kinds == {"T>S": 1, "S>T": 1, "S>S": 1, "T>T": 1}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("restrictive", {"T>d", "T>e"}),
        ("best_worst", {"a>e"}),
        (
            "all",
            {
                *("a>T", "a>b", "a>c", "a>d", "a>e", "T>c", "T>d", "T>e"),
                *("b>c", "b>d", "b>e", "c>d", "c>e", "d>e"),
            },
        ),
    ],
)
def test_the_other_rules_by_hand(rule: str, expected: set[str]) -> None:
    assert names(build(SIX, rule=rule)) == expected


def test_the_recipe_offers_exactly_the_registered_rules() -> None:
    assert set(get_args(PairsSection.model_fields["rule"].annotation)) == set(RULES)


def test_an_oracle_that_only_compares_is_read_in_win_rates() -> None:
    # Intransitive: a beats T, T beats c, c beats a. r: T 2/3, a 2/3, b 0.4/3, c 1.6/3.
    matrix = [[None, 0, 1, 1], [1, None, 1, 0], [0, 0, None, 0.4], [0, 1, 0.6, None]]
    result = build(compared(["T", "a", "b", "c"], matrix))
    assert names(result) == {"T>b", "a>b"}
    assert result.dropped == {"pair: margin too small": 2}
    assert result.margins == pytest.approx({"T>S": 1.6 / 3, "S>S": 1.6 / 3})
    assert {pair.score_chosen for pair in result.pairs} == {None}
    assert names(build(compared(["T", "a", "b", "c"], matrix), rule="best_worst")) < {"T>b", "a>b"}


# A strict order of six: r = 1, 0.8, 0.6, 0.4, 0.2, 0 and the teacher third; 0.6 - 0.2 is 0.39999... in floats.
ORDER = compared(["a", "b", "T", "c", "d", "e"], [[float(i < j) for j in range(6)] for i in range(6)])


def test_a_margin_of_two_wins_in_five_counts_as_two_fifths() -> None:
    assert names(build(ORDER)) == {"a>T", "a>c", "a>d", "a>e", "b>c", "b>d", "b>e", "T>d", "T>e"}
    seventh = {build(ORDER, seed=seed, max_per_prompt=7).pairs[-1].id for seed in range(40)}
    assert content_hash("T", "d") in seventh  # it ties with a>T and b>c, so some seed prefers it to one of them


def test_automatic_negatives_lose_whatever_the_oracle_said() -> None:
    liked = compared(["a", "b"], [[None, 0], [1, None]], defects=("b",))
    pair = build(liked).pairs[0]
    assert (pair.chosen_id, pair.rejected_id, pair.r_chosen, pair.r_rejected) == ("a", "b", 1, 0)
    assert names(build(scored({"a": 6, "b": None}, defects=("b",)))) == {"a>b"}  # rejected without a score
    assert names(build(scored({"a": -1, "b": -3, "c": 2}, ("c",)), positive_score=-2)) == {"a>b", "a>c"}
    assert names(build(scored({"a": 6, "b": 6}, ("a", "b")), rule="best_worst")) == set()
    for seed in range(10):  # the defect is worse than a score of 0
        assert names(build(scored({"a": 6, "b": 0, "c": 5}, ("c",)), rule="best_worst", seed=seed)) == {"a>c"}
    # A sound answer on which the oracle was silent does not become a positive by beating a defective one.
    assert names(build(compared(["a", "b"], [[None, None], [None, None]], defects=("b",)))) == set()


def test_candidates_of_unknown_score_are_neither() -> None:
    result = build(scored({"T": 6, "a": None, "b": 2}), rule="all")
    assert names(result) == {"T>b"}
    assert result.dropped == {"candidate: no verdict": 1}


def unusable() -> Item:
    return PROMPT, [response("a"), response("b")], Judgment(PROMPT.id, ("a", "b"), "test", "unusable", "no JSON")


@pytest.mark.parametrize(
    ("item", "rest", "dropped"),
    [
        (unusable(), {}, {"prompt: unusable judgment": 1}),
        (scored({"T": 4, "a": 1}), {}, {"prompt: no positive": 1}),
        (scored({"T": 4, "a": 6}), {"rule": "restrictive"}, {"prompt: no positive": 1}),
        (scored({"a": 6, "b": 6}), {}, {"prompt: no negative a clear margin below": 1}),
        (scored({"a": 6, "b": 6}), {"rule": "best_worst"}, {"prompt: no negative a clear margin below": 1}),
        (
            scored({"T": 5, "a": 4}),
            {},
            {"pair: margin too small": 1, "prompt: no negative a clear margin below": 1},
        ),
        (scored({"a": 6, "b": 5}, texts={"a": "Nile", "b": "Nile"}), {}, {"pair: identical text": 1}),
        (scored({"a": 6, "b": 5, "c": 2}), {"max_per_prompt": 1}, {"pair: over the limit per prompt": 2}),
    ],
)
def test_each_reason_for_dropping(item: Item, rest: dict[str, Any], dropped: dict[str, int]) -> None:
    assert build(item, **rest).dropped == dropped


def test_dropped_reasons_add_up_over_prompts() -> None:
    assert build(unusable(), scored({"a": 1, "b": 0}), unusable()).dropped == {
        "prompt: unusable judgment": 2,
        "prompt: no positive": 1,
    }


def test_length_control_refuses_only_the_smallest_margin_won_by_length() -> None:
    def kept(scores: dict[str, float | None], long: str, **rest: Any) -> set[str]:
        texts = {name: "x" * (300 if name == long else 100) + name for name in scores}
        return names(build(scored(scores, texts=texts), min_length_ratio=0.5, **rest))

    assert kept({"a": 6, "b": 5}, "a") == set()
    assert kept({"a": 6, "b": 4}, "a") == {"a>b"}  # more than the margin needed
    assert kept({"a": 6, "b": 5}, "b") == {"a>b"}  # the shorter one won
    assert kept({"T": 6, "b": 4}, "T") == set()  # for a teacher 2 points are the smallest
    assert kept({"a": 2, "b": 1}, "a", rule="all") == set()
    prompt, answers, judgment = ORDER  # in win rates a step is a fifth: T>d has the smallest margin, T>e one more
    wordy = [answer.replace(text="x" * 99) if answer.id == "T" else answer for answer in answers]
    assert {pair for pair in names(build((prompt, wordy, judgment), min_length_ratio=0.5)) if pair[0] == "T"} == {"T>e"}
    texts = {"a": "x" * 200, "b": "y" * 100}
    assert names(build(scored({"a": 6, "b": 5}, texts=texts), min_length_ratio=0.5)) == {"a>b"}  # not below the ratio
    assert build(scored({"a": 6, "b": 5}, texts=texts), min_length_ratio=0.6).dropped == {
        "pair: length is the only difference": 1
    }


def test_the_limit_keeps_the_widest_margins_and_breaks_ties_by_seed() -> None:
    assert names(build(SIX, max_per_prompt=3)) == {"a>e", "T>e", "b>e"}
    tied = scored({"a": 6, "b": 3, "c": 3, "d": 3})
    assert len({frozenset(names(build(tied, max_per_prompt=1, seed=seed))) for seed in range(30)}) == 3


def test_building_streams() -> None:
    """500 prompts with 20 MB of text go through both consumers in one pass, and none of it is held."""
    long = "x" * 20_000

    def stream() -> Iterator[Item]:
        for i in range(500):
            yield scored({"a": 6, "b": 1}, texts={"a": f"{long}{i}", "b": f"{i}{long}"})

    gathered = Dynamics()
    tracemalloc.start()
    built = build_pairs(gathered.watch(stream()), PairsSection.model_validate({}), 1, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(built.pairs), gathered.columns()["inputs"]) == (500, 500)
    assert peak < 2_000_000


VERDICTS = st.lists(
    st.tuples(st.sampled_from(["T", "s"]), st.none() | st.integers(0, 6), st.booleans(), st.sampled_from("xyz")),
    min_size=1,
    max_size=6,
)
SECTIONS = st.builds(
    PairsSection,
    rule=st.sampled_from(sorted(RULES)),
    max_per_prompt=st.none() | st.integers(1, 3),
    min_length_ratio=st.none() | st.just(0.5),
)


def as_item(verdicts: list[tuple[str, int | None, bool, str]], compare: bool) -> Item:
    answers = [
        response(f"{who}{i}", text * (i + 1), ("repeated",) if bad else ())
        for i, (who, _, bad, text) in enumerate(verdicts)
    ]
    ids, scores = tuple(answer.id for answer in answers), tuple(score for _, score, _, _ in verdicts)
    judgment = Judgment(PROMPT.id, ids, "test", scores=scores)
    if compare:
        # Thirteenths have no exact float, so that sums in another order differ in the last bit.
        rows = [[None if None in (a, b) else 0.5 + (a - b) / 13 for b in scores] for a in scores]  # type: ignore[operator]
        judgment = Judgment(PROMPT.id, ids, "test", matrix=tuple(map(tuple, rows)))
    return PROMPT, answers, judgment


@settings(deadline=None, max_examples=200)
@given(VERDICTS, SECTIONS, st.booleans())
def test_no_pair_violates_its_margin_or_chooses_a_defect(
    verdicts: list[tuple[str, int | None, bool, str]], section: PairsSection, compare: bool
) -> None:
    _, answers, _verdict = item = as_item(verdicts, compare)
    by_id = {answer.id: answer for answer in answers}
    result = build_pairs([item], section, 1, 0)
    least, student_least = (
        (section.rate_margin, section.student_rate_margin) if compare else (section.margin, section.student_margin)
    )
    for pair in result.pairs:
        chosen, rejected = by_id[pair.chosen_id], by_id[pair.rejected_id]
        assert not chosen.defects
        assert chosen.text != rejected.text
        assert 0 <= pair.r_rejected < pair.r_chosen <= 1 or not compare
        assert (pair.score_chosen is None) == compare
        if section.rule in ("paper", "restrictive"):
            assert pair.margin >= (student_least if chosen.source == "student" else least) - 1e-9
            positive = section.positive_rate if compare else section.positive_score
            assert (pair.r_chosen if compare else pair.score_chosen or 0) >= positive - 1e-9
        assert pair.margin > 0
        assert section.rule != "restrictive" or chosen.source == "teacher"
    assert len({pair.id for pair in result.pairs}) == len(result.pairs) == sum(result.kinds.values())
    assert section.max_per_prompt is None or len(result.pairs) <= section.max_per_prompt


@settings(deadline=None, max_examples=100)
@given(VERDICTS, SECTIONS, st.booleans(), st.randoms(use_true_random=False))
def test_the_order_of_candidates_decides_nothing(
    verdicts: list[tuple[str, int | None, bool, str]], section: PairsSection, compare: bool, rng: random.Random
) -> None:
    prompt, answers, judgment = as_item(verdicts, compare)
    order = rng.sample(range(len(answers)), len(answers))
    shuffled = Judgment(
        PROMPT.id,
        tuple(judgment.response_ids[i] for i in order),
        "test",
        scores=tuple(judgment.scores[i] for i in order) if judgment.scores is not None else None,
        matrix=tuple(tuple(judgment.matrix[i][j] for j in order) for i in order) if judgment.matrix else None,
    )
    expected = build_pairs([(prompt, answers, judgment)], section, 1, 7)
    assert build_pairs([(prompt, [answers[i] for i in order], shuffled)], section, 1, 7) == expected
    assert build_pairs([(prompt, rng.sample(answers, len(answers)), judgment)], section, 1, 7) == expected


def judged(**changes: Any) -> Judgment:
    return Judgment(**{"prompt_id": PROMPT.id, "response_ids": ("a", "b"), "oracle": "test"} | changes)


@pytest.mark.parametrize(
    ("judgment", "message"),
    [
        (judged(response_ids=("a", "c")), r"response_ids are \['a', 'c'\].*\['a', 'b'\]"),
        (judged(response_ids=("a",)), "response_ids"),
        (judged(response_ids=("a", "b", "b")), "response_ids"),
        (judged(prompt_id="other"), "judgment is of prompt other"),
        (judged(scores=(1.0,)), "scores has 1 entries; accepted: 2"),
        (judged(scores=(1.0, float("nan"))), "scores is.*finite"),
        (judged(matrix=((None, 1.0),)), "matrix has rows of.*2 x 2"),
        (judged(matrix=((None, 1.5), (0.0, None))), r"matrix holds 1.5; accepted: numbers in \[0, 1\]"),
        (judged(response_ids=("a", "c"), outcome="unusable"), "response_ids"),
    ],
)
@pytest.mark.parametrize("stage", [build, lambda item: dynamics([item])])
def test_a_judgment_of_something_else_is_refused(
    stage: Callable[[Item], object], judgment: Judgment, message: str
) -> None:
    with pytest.raises(PairError, match=f"prompt {PROMPT.id}: .*{message}"):
        stage((PROMPT, [response("a"), response("b")], judgment))


def test_an_answer_to_another_prompt_is_refused() -> None:
    stranger = response("b", prompt=Prompt.make([Message("user", "Another.")]))
    with pytest.raises(PairError, match=r"\['b'\] answer another prompt"):
        build((PROMPT, [response("a"), stranger], judged(scores=(6, 1))))


def old_pairs(iteration: int, count: int) -> list[Pair]:
    return [
        Pair(content_hash(iteration, i), "p", f"c{i}", f"r{i}", "S>S", 1, 0, None, None, iteration)
        for i in range(count)
    ]


def test_replay_takes_30_15_and_7_5_per_cent_exactly() -> None:
    earlier = [old_pairs(born, 500) for born in (3, 2, 1)]
    taken = replay(ReplaySection(), 400, earlier, seed=1)
    assert [sum(pair.iteration == born for pair in taken) for born in (3, 2, 1)] == [120, 60, 30]
    assert len({pair.id for pair in taken}) == 210
    assert [pair.iteration for pair in replay(ReplaySection(fraction=0.29, decay=1), 100, earlier, 1)].count(2) == 29
    assert replay(ReplaySection(), 400, [list(reversed(pairs)) for pairs in earlier], seed=1) == taken
    assert set(replay(ReplaySection(), 400, earlier, seed=2)) != set(taken)


def test_replay_never_exceeds_what_there_is_nor_repeats_a_pair() -> None:
    few = old_pairs(1, 5)
    assert set(replay(ReplaySection(), 1000, [few, few, few + few], seed=0)) == set(few)
    assert len(replay(ReplaySection(), 1000, [few, few], seed=0)) == 5
    overlapping = [old_pairs(1, 10), old_pairs(1, 10) + old_pairs(2, 5)]
    assert set(replay(ReplaySection(fraction=1), 10, overlapping, seed=0)) == set(overlapping[1])
    assert replay(ReplaySection(fraction=0), 1000, [few], seed=0) == ()
    assert replay(ReplaySection(), 3, [few], seed=0) == ()  # 0.9 of a pair is none: "at most"
    assert len(replay(ReplaySection(decay=0), 100, [few, old_pairs(2, 5)], seed=0)) == 5


def test_the_columns_of_table_2_by_hand() -> None:
    texts = {"a": "one two three", "b": "one", "c": "one two"}
    columns = dynamics(
        [
            scored({"T": 4, "a": 6, "b": 5, "c": 4}, texts=texts),  # two students above the teacher
            scored({"T": 5, "a": 5, "b": 3, "c": 6}, defects=("c",), texts=texts),  # a tie; a defect never wins
            scored({"a": 1, "b": 2}, texts=texts),  # no teacher
            unusable(),  # "answer a", "answer b"
        ]
    )
    assert columns == pytest.approx(
        {
            "inputs": 4,
            "student_words_mean": 20 / 10,
            "student_words_sd": (6 / 9) ** 0.5,
            "best_of_n_beats_teacher": 1 / 2,
            "student_wins_per_prompt": 2 / 2,
            "student_score": (6 + 5 + 4 + 5 + 3 + 6 + 1 + 2) / 8,
            "teacher_score": (4 + 5) / 2,
        }
    )


def test_columns_without_scores_or_teacher_are_none() -> None:
    columns = dynamics([compared(["T", "a"], [[None, 0.4], [0.6, None]])])
    assert columns["best_of_n_beats_teacher"] == 1
    assert (columns["student_score"], columns["teacher_score"], columns["student_words_sd"]) == (None, None, None)
    assert dynamics([])["best_of_n_beats_teacher"] is None
    assert dynamics([])["inputs"] == 0
