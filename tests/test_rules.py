import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nashtune.errors import OracleError
from nashtune.judging.rules import RulesOracle, names_topic, preference, talks_about_instruction
from nashtune.prompt_sets import PROMPT_SETS
from nashtune.recipe import parse_recipe
from nashtune.records import Constraint, Message, Prompt, Response

GOOD = "owls are quiet birds that hunt at night"


def oracle(**guard):
    recipe = parse_recipe(
        {
            "name": "x",
            "policy": {"model": "m"},
            "prompts": {"source": "p"},
            "oracle": {"kind": "rules", "guard": guard},
        }
    )
    return RulesOracle(recipe.oracle)


def prompt(*constraints, topic="owls"):
    made = [Constraint(kind, args) for kind, args in constraints or [("lowercase", {})]]
    return Prompt.make([Message("user", "Tell me about owls.")], constraints=tuple(made), topic=topic, source="p:1")


def response(text, **changes):
    return Response(id=text[:12], prompt_id="p", k=0, source="student", policy="t", text=text, finish="stop").replace(
        **changes
    )


def judge(the_prompt, *responses, **guard):
    return asyncio.run(oracle(**guard).judge(the_prompt, responses, seed=0))


def test_table_of_scores_by_hand():
    two = prompt(("lowercase", {}), ("no_commas", {}))
    answers = [
        response(GOOD),  # good and satisfied
        response(GOOD.replace("birds", "birds,")),  # good, one of two met
        response(GOOD.upper().replace("BIRDS", "BIRDS,")),  # good, none met
        response("bats are quiet things that hunt at night"),  # satisfied, off topic: 1 of 6 guards failed
        response("owls, yes", finish="length"),  # neither: too short, cut off, one of two met
        response(GOOD, defects=("repetition",)),
        response("  "),
    ]
    verdict = judge(two, *answers)
    assert verdict.scores == (6.0, 3.5, 3.0, 2 + (1 - 1 / 6), 1.5, 1.0, 1.0)
    assert verdict.measures["satisfied"] == (1, 0, 0, 1, 0, 1, 0)
    assert verdict.measures["good"] == (1, 1, 1, 0, 0, 0, 0)
    assert verdict.measures["satisfied_and_good"] == (1, 0, 0, 0, 0, 0, 0)
    failed = [item["failed"] for item in json.loads(verdict.raw)]
    assert failed == [[], [], [], ["on_topic"], ["min_words", "finished"], ["defect"], ["empty"]]


def test_preferences_by_hand():
    verdict = judge(prompt(("lowercase", {}), ("no_commas", {})), response(GOOD), response("Owls " + GOOD[4:]))
    assert verdict.preference(0, 1) == 1.0
    assert verdict.win_rates() == (1.0, 0.0)
    assert (preference(3.5, 3.0), preference(3.0, 3.5), preference(6, 6), preference(1, 6)) == (0.75, 0.25, 0.5, 0.0)


@given(st.lists(st.tuples(st.text(max_size=40), st.sampled_from(["stop", "length"]), st.booleans()), max_size=6))
def test_preferences_are_antisymmetric_and_follow_scores(answers):
    the_prompt = prompt(("lowercase", {}), ("words_at_most", {"n": 5}), ("no_commas", {}))
    made = [response(text, finish=end, defects=("x",) if bad else ()) for text, end, bad in answers]
    verdict = judge(the_prompt, *made)
    assert verdict.matrix is not None
    assert verdict.scores is not None
    for i, row in enumerate(verdict.matrix):
        for j, p in enumerate(row):
            assert p is not None
            assert p + (verdict.matrix[j][i] or 0) == 1
            assert (p > 0.5) == (verdict.scores[i] > verdict.scores[j])
    assert all(1 <= s <= 6 for s in verdict.scores)


@pytest.mark.parametrize(
    ("guard", "name", "text", "changes"),
    [
        ({"finished": False}, "finished", GOOD, {"finish": "length"}),
        ({"min_words": 2}, "min_words", "owls hunt", {}),
        ({"max_words": 100}, "max_words", " ".join(f"owls{i}" for i in range(60)) + " owls", {}),
        ({"on_topic": False}, "on_topic", "bats are quiet things that hunt at night", {}),
        ({"min_distinct_words": 0.1}, "min_distinct_words", "owls owls owls owls owls hunt hunt hunt", {}),
        ({"no_meta": False}, "no_meta", "here are owls in all lowercase letters now", {}),
    ],
)
def test_each_guard_fails_alone_and_can_be_relaxed(guard, name, text, changes):
    strict = oracle().verdict(prompt(), response(text, **changes))
    assert strict.failed == (name,)
    assert oracle(**guard).verdict(prompt(), response(text, **changes)).good


def test_finish_unknown_counts_as_finished():
    assert oracle().verdict(prompt(), response(GOOD, finish="unknown", source="teacher")).good


def test_fluency_guard_reads_log_probs_of_the_initial_policy():
    judge_ = oracle(min_fluency=-2.0)
    assert oracle().needs_logprobs == frozenset()
    assert judge_.needs_logprobs == {"0"}
    at_bound = response(GOOD, token_ids=(1, 2, 3, 4), logprobs={"0": -8.0})
    assert judge_.verdict(prompt(), at_bound).good
    assert judge_.verdict(prompt(), at_bound.replace(logprobs={"0": -8.1})).failed == ("min_fluency",)
    with pytest.raises(OracleError, match=r"min_fluency.*log-probs for \['t'\]"):
        judge_.verdict(prompt(), at_bound.replace(logprobs={"t": -8.0}))
    with pytest.raises(OracleError, match="it has 0 tokens"):
        judge_.verdict(prompt(), at_bound.replace(token_ids=()))


def test_prompt_without_constraints_is_refused_by_name():
    bare = Prompt.make([Message("user", "Hi")], source="prompts.jsonl:7")
    with pytest.raises(OracleError, match=r"prompts\.jsonl:7.*no constraints.*accepted"):
        judge(bare, response(GOOD))


@pytest.mark.parametrize(
    ("text", "topic", "named"),
    [
        ("THE OWL sees", "owls", True),
        ("owls' nests", "the owl", True),
        ("a bowl", "owls", False),
        ("a team teaches", "tea", False),
        ("a cave", "caves", True),
        ("one wolf", "wolves", True),
        ("a butterfly", "butterflies", True),
        ("one potato", "potatoes", True),
        ("clear glass", "glass", True),
        ("cold cream", "ice cream", True),
        ("a bee", "honey bees", True),
        ("bus", "bu", False),
        ("the moon", "the moon, and the sun", False),
    ],
)
def test_names_topic(text, topic, named):
    assert names_topic(text, topic) is named


@pytest.mark.parametrize(
    "text",
    [
        "Here is a sentence about owls in lowercase.",
        "OWLS IN ALL CAPITAL LETTERS",
        "- This is the first bullet point about owls",
        'I will use the word "because" here.',
        "My answer is that owls hunt at night.",
        "Sure, owls without any commas.",
        "As you requested, owls hunt.",
        "Here's a short description of owls:",
        "Owls in double quotation marks",
        "Please tell me something about owls",
        "The prompt asks about owls.",
        "I followed your instructions about owls.",
    ],
)
def test_talk_about_the_instruction_is_found(text):
    assert talks_about_instruction(prompt(), text)


@pytest.mark.parametrize(
    "text",
    [
        "Paris is the capital of France and many owls live there.",
        "Owls hunt because they are hungry, and they answer calls of other owls.",
        "Owls point their heads; the quotes of poets mention them.",
        "Writers of letters love owls, and instructors teach with them.",
    ],
)
def test_ordinary_text_is_not_talk_about_the_instruction(text):
    assert not talks_about_instruction(prompt(), text)


def test_ordered_words_are_no_talk_about_the_instruction():
    ordered = prompt(("starts_with", {"phrase": "My answer:"}), ("include_keywords", {"keywords": ["sentence"]}))
    text = "My answer: owls serve no sentence at night"
    assert not talks_about_instruction(ordered, text)
    assert talks_about_instruction(prompt(), text)
    assert talks_about_instruction(prompt(("bullets_exactly", {"n": 1, "marker": "any"})), "in any commas")
    assert not talks_about_instruction(prompt(topic="commas"), "Owls know commas.")


def test_no_instruction_of_the_built_in_set_orders_what_a_guard_forbids():
    """A plain answer that follows the instruction can be good and satisfied, for every kind in the set."""
    body = "{topic} can be seen all over our wide world"
    dressed = {
        "lowercase": body,
        "highlighted": f"*{body}*",
        "bullets_exactly": f"- {body}\n- people like them\n- so do we",
        "starts_with": "Here it is: " + body,
        "ends_with": body + ". DONE",
        "ends_with_question": body + "?",
        "no_commas": body,
        "include_keywords": body + " {keyword} for us",
    }
    seen = set()
    for item in PROMPT_SETS["constraints"](0):
        first = item.prompt.constraints[0]
        key = first.kind
        topic = item.prompt.topic or ""
        text = dressed[key].replace("{topic}", topic)
        text = text.replace("{keyword}", *first.args.get("keywords", [""]))
        verdict = oracle().verdict(item.prompt, response(text))
        assert verdict.score == 6, (item.prompt.text, text, verdict)
        seen.add(key)
    assert seen == set(dressed)
