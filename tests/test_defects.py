"""Defects of samples: each found where it is, and nowhere else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nashtune.errors import SamplingError
from nashtune.recipe import DefectsSection
from nashtune.records import Finish
from nashtune.sampling.defects import find_defects, repeat_share, word_count

ENGLISH = (
    "The Danube rises in the Black Forest and flows through ten countries before it reaches the sea. "
    "Its delta is home to pelicans, sturgeons and a great many reeds."
)
CHINESE = "多瑙河发源于德国南部的黑森林,流经十个国家后注入黑海,是欧洲第二长的河流,沿岸有维也纳和布达佩斯等城市。"
GERMAN = "Die Donau entspringt im Schwarzwald und fließt durch zehn Länder, bevor sie das Schwarze Meer erreicht."
DEFAULT = DefectsSection.model_validate({})


def defects(text: str, finish: Finish = "stop", **changes: object) -> tuple[str, ...]:
    return find_defects(text, finish, DefectsSection.model_validate(changes))


@pytest.mark.parametrize("text", [ENGLISH, CHINESE, GERMAN, "Yes.", "42", "👍", "a b c d"])
def test_sound_answers_have_no_defects(text: str) -> None:
    assert defects(text) == ()


def test_repeat_share_by_hand() -> None:
    assert repeat_share("a b c a b c a b c", 3) == pytest.approx(1 - 3 / 7)  # abc bca cab abc bca cab abc
    assert repeat_share("A b a B", 2) == pytest.approx(1 - 2 / 3)  # ab ba ab: letter case is ignored
    assert repeat_share("go go go go", 4) == 0  # one 4-gram alone repeats nothing
    assert repeat_share("go go go go go", 4) == 0.5
    assert repeat_share("", 4) == 0
    assert repeat_share(ENGLISH, 4) == 0


def test_repeat_share_without_spaces_by_hand() -> None:
    assert repeat_share("a" * 24, 1) == 0  # one word, however odd
    assert repeat_share("a" * 25, 1) == pytest.approx(1 - 1 / 23)  # 23 character 3-grams, one distinct
    # 16 characters in words that repeat nothing, 48 in a run with 46 equal 3-grams.
    words = "one two three fours"
    assert repeat_share(f"{words} {'a' * 48}", 1) == pytest.approx((0 * 16 + (1 - 1 / 46) * 48) / 64)


@pytest.mark.parametrize(
    "text",
    [
        "I am sorry. " * 20,
        "a" * 500,
        "haha" * 100,
        "多瑙河很长。" * 30,
        ENGLISH + " " + "z" * 400,
        ENGLISH + " and so on and on" * 20,
        CHINESE + "黑海" * 60,
    ],
)
def test_runaway_repetition_is_found(text: str) -> None:
    assert defects(text) == ("repeated",)


def test_a_line_of_dashes_or_a_link_is_no_runaway() -> None:
    assert defects(f"{ENGLISH}\n{'-' * 60}\n{GERMAN}") == ()
    assert defects(f"{ENGLISH} See https://example.org/rivers/europe/danube/the-danube-delta-and-its-birds.html") == ()


def test_the_limits_of_repetition_are_the_recipes() -> None:
    text = "go go go go go"  # share 0.5 in 4-grams
    assert defects(text, max_repeat_share=0.5) == ()
    assert defects(text, max_repeat_share=0.49) == ("repeated",)
    assert defects(text, repeat_ngram=5) == ()


@settings(deadline=None)
@given(st.text(), st.integers(1, 6))
def test_repeat_share_is_a_share(text: str, n: int) -> None:
    assert 0 <= repeat_share(text, n) < 1


@settings(deadline=None)
@given(st.lists(st.sampled_from(["ab", "cd", "ef"]), max_size=30), st.integers(1, 4))
def test_distinct_ngrams_mean_no_repetition(words: list[str], n: int) -> None:
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    assert (repeat_share(" ".join(words), n) == 0) == (len(set(grams)) == len(grams))


@pytest.mark.parametrize("text", ["", " \n\t ", "\u200b\n", "\x00"])
def test_nothing_visible_is_empty(text: str) -> None:
    assert defects(text) == ("empty",)


def test_truncation_is_a_defect_where_the_recipe_says_so() -> None:
    assert defects(ENGLISH, "length") == ("truncated",)
    assert defects(ENGLISH, "length", truncated=False) == ()
    assert defects(ENGLISH, "unknown") == ()


@pytest.mark.parametrize(
    "text",
    [
        "Paris.<|im_end|>",
        "Paris.<|im_start|>user\nWhere?",
        "Paris.<|eot_id|>",
        "Paris.</s>",
        "[INST] Where? [/INST] Paris.",
        "Paris.<start_of_turn>user",
        "Paris.<end_of_turn>",
        "<<SYS>> Be brief. <</SYS>>",
        "Paris.\n\n### Instruction:\nName a river.",
        "Paris.\nHuman: and Italy?",
        "Paris.\n  Assistant: Rome.",
    ],
)
def test_template_debris_is_found(text: str) -> None:
    assert defects(text) == ("template_debris",)


@pytest.mark.parametrize(
    "text",
    [
        "Assistant: Paris.",  # the first line may be an address
        "I am an assistant: ask me.",
        "### Rivers\nThe Danube.",
        "x |> f <| y",
        "Humans built it.\nHuman rights: see below.",
    ],
)
def test_what_resembles_debris_is_left_alone(text: str) -> None:
    assert defects(text) == ()


def test_language() -> None:
    assert defects(GERMAN, language="en") == ("wrong_language",)
    assert defects(GERMAN, language="de") == ()
    assert defects(GERMAN) == ()
    assert defects(CHINESE, language="zh") == ()
    assert defects(CHINESE, language="en") == ("wrong_language",)
    assert defects("Ja.", language="en") == ()  # too short to tell
    assert defects("https://example.org/the/danube/and/its/delta", language="de") == ()  # nothing but a link


def test_detection_repeats_itself() -> None:
    mixed = "The river runs far. Der Fluss ist lang. Le fleuve est long. El agua es clara."
    assert len({defects(mixed, language="en") for _ in range(20)}) == 1


def test_an_undetectable_language_is_refused() -> None:
    with pytest.raises(
        SamplingError, match=r"sampling\.defects\.language is 'english'; accepted: null or one of .*\ben\b"
    ):
        defects("", language="english")


def test_several_defects_come_in_a_fixed_order() -> None:
    found = defects("Der Fluss ist sehr lang. " * 20 + "\nHuman: und?", "length", language="en")
    assert found == ("repeated", "truncated", "wrong_language", "template_debris")
    assert find_defects("", "length", DEFAULT) == ("empty", "truncated")


def test_word_count() -> None:
    assert word_count(" one  two\nthree ") == 3
    assert word_count("") == 0
